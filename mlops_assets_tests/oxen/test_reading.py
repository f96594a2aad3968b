"""Reading versions: digests, entries, tables, differences, copies, and noticing change cheaply."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import polars as pl
import pytest

from mlops_assets.oxen import child
from mlops_assets.oxen.errors import PathNotFound, RevisionNotFound, UnsafePath
from mlops_assets.oxen.repository import Repository
from mlops_assets_tests.oxen.conftest import TABLE, contents


def test_a_digest_depends_on_names_and_bytes_alone(repo: Repository, head: str, tmp_path: Path) -> None:
    other = Repository(tmp_path / "other")
    other.init()
    other.commit("x", files={"elsewhere/deep/y.txt": b"z", "elsewhere/x.bin": b"x2"})
    commit = other.commit("y", files={"elsewhere/deep/y.txt": b"y", "copy": b"x2"})
    assert commit is not None
    assert other.digest("elsewhere", commit.id) == repo.digest("data", head)
    assert other.digest("copy", commit.id) == repo.digest("data/x.bin", head)


def test_a_digest_changes_where_content_does_and_returns_with_it(repo: Repository, head: str) -> None:
    def digests(commit: str) -> dict[str, str]:
        return {path: repo.digest(path, commit) for path in ("", "data", "data/x.bin", "data/deep", "table.csv")}

    before = digests(head)
    assert len(set(before.values())) == 5
    changed = repo.commit("change", files={"data/x.bin": b"x3"})
    reverted = repo.commit("revert", files={"data/x.bin": b"x2"})
    assert changed is not None
    assert reverted is not None
    after = digests(changed.id)
    assert {path for path in before if before[path] != after[path]} == {"", "data", "data/x.bin"}
    assert digests(reverted.id) == before


def test_moving_content_between_names_changes_the_digest(repo: Repository) -> None:
    one = repo.commit("one", files={"d/a": b"1", "d/b": b"2"})
    two = repo.commit("two", files={"d/a": b"2", "d/b": b"1"})
    three = repo.commit("three", files={"d/c/b": b"1"}, remove=["d/b"])
    assert len({repo.digest("d", each.id) for each in (one, two, three) if each}) == 3


def test_digests_are_fit_for_tags_and_file_names(repo: Repository, head: str) -> None:
    for path in ("", "table.csv"):
        assert re.fullmatch(r"(file|dir)-[0-9a-f]{32}", repo.digest(path, head))


def test_entries(repo: Repository, head: str) -> None:
    assert [(entry.path, entry.bytes) for entry in repo.entries("", head)] == [
        ("data/deep/y.txt", 1),
        ("data/x.bin", 2),
        ("extra.txt", 4),
        ("table.csv", len(TABLE)),
    ]
    assert [entry.path for entry in repo.entries("data/", head)] == ["data/deep/y.txt", "data/x.bin"]
    (entry,) = repo.entries("table.csv", head)
    assert f"file-{entry.hash}" == repo.digest("table.csv", head)


def test_what_is_not_there_is_named(repo: Repository, head: str) -> None:
    for path in ("nope", "data/nope", "table.csv/nope"):
        with pytest.raises(PathNotFound, match=path):
            repo.digest(path, head)
    with pytest.raises(UnsafePath):
        repo.digest("../x", head)
    for commit in ("main", head[:8], "0" * 32, ""):
        with pytest.raises(RevisionNotFound):
            repo.digest("", commit)


def test_tables(repo: Repository, head: str, tmp_path: Path) -> None:
    table = repo.table("table.csv", head)
    assert table is not None
    assert table.columns == (("x", "i64"), ("y", "f64"), ("label", "str"))
    assert table.rows == 2
    assert repo.table("data", head) is None
    assert repo.table("data/x.bin", head) is None
    frame = pl.DataFrame({"when": [1, 2, 3], "what": ["a", "b", "c"]}).with_columns(pl.col("when").cast(pl.Datetime))
    frame.write_parquet(tmp_path / "t.parquet")
    commit = repo.commit("tables", files={"t.parquet": tmp_path / "t.parquet", "empty.csv": b"", "bad.parquet": b"no"})
    assert commit is not None
    table = repo.table("t.parquet", commit.id)
    assert table is not None
    assert table.columns == (("when", "datetime[μs]"), ("what", "str"))
    assert table.rows == 3
    assert repo.table("empty.csv", commit.id) is None
    assert repo.table("bad.parquet", commit.id) is None


def test_differences(repo: Repository, head: str) -> None:
    first = repo.log()[-1].id
    assert repo.diff(first, head) == (("extra.txt",), (), ("data/x.bin",))
    assert repo.diff(head, first) == ((), ("extra.txt",), ("data/x.bin",))
    assert repo.diff(first, head, "data") == ((), (), ("data/x.bin",))
    assert repo.diff(first, head, "extra.txt") == (("extra.txt",), (), ())
    assert repo.diff(head, head) == ((), (), ())
    repo.commit("no data", remove=["data"])
    commit = repo.commit("another kind", files={"data": b"file"})
    assert commit is not None
    assert repo.diff(head, commit.id) == (("data",), ("data/deep/y.txt", "data/x.bin"), ())


@pytest.mark.slow
def test_differences_in_a_directory_of_many_buckets(repo: Repository, tmp_path: Path) -> None:
    local = tmp_path / "many"
    local.mkdir()
    for n in range(2100):
        (local / f"{n}.txt").write_bytes(b"%d" % n)
    one = repo.commit("many", files={"many": local})
    two = repo.commit("few", files={"many/7.txt": b"seven", "many/new.txt": b"new"}, remove=["many/9.txt"])
    assert one is not None
    assert two is not None
    assert repo.diff(one.id, two.id) == (("many/new.txt",), ("many/9.txt",), ("many/7.txt",))
    assert len(repo.entries("many", two.id)) == 2100


def test_the_log_of_a_branch_and_its_limit(repo: Repository, head: str) -> None:
    assert [commit.message for commit in repo.log("dev")] == ["on dev", "second", "first"]
    assert [commit.message for commit in repo.log("dev", limit=2)] == ["on dev", "second"]
    assert repo.log("dev", limit=0) == []
    assert [commit.message for commit in repo.log(head)] == ["second", "first"]
    second, first = repo.log()
    assert (second.author, second.email, second.parents) == ("Ada", "ada@example.org", (first.id,))


def test_a_copy_is_verified_complete_and_read_only(repo: Repository, head: str, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    path = repo.materialize("table.csv", head, cache)
    assert path == cache / repo.digest("table.csv", head) / "table.csv"
    assert path.read_bytes() == TABLE
    assert path.stat().st_mode & 0o777 == 0o444
    assert repo.materialize("data", head, cache).name == "data"
    assert contents(repo, head, cache) == {
        "data/deep/y.txt": b"y",
        "data/x.bin": b"x2",
        "extra.txt": b"more",
        "table.csv": TABLE,
    }
    assert not list(cache.glob(".new-*"))
    assert {entry.name for entry in repo.path.iterdir()} == {".oxen"}


def test_the_second_copy_is_the_first(repo: Repository, head: str, tmp_path: Path) -> None:
    first = repo.materialize("data", head, tmp_path)
    inode = (first / "x.bin").stat().st_ino
    shutil.rmtree(repo.path / ".oxen" / "versions")
    assert repo.materialize("data", head, tmp_path) == first
    assert (first / "x.bin").stat().st_ino == inode


@pytest.mark.parametrize("damage", ["shorter", "missing", "more", "all"])
def test_a_damaged_copy_is_made_anew(repo: Repository, head: str, tmp_path: Path, damage: str) -> None:
    path = repo.materialize("data", head, tmp_path)
    if damage == "shorter":
        (path / "x.bin").chmod(0o644)
        (path / "x.bin").write_bytes(b"")
    elif damage == "missing":
        (path / "x.bin").unlink()
    elif damage == "more":
        (path / "stray").write_bytes(b"1")
    else:
        shutil.rmtree(path)
        path.write_bytes(b"a file instead")
    again = repo.materialize("data", head, tmp_path)
    assert sorted(str(item.relative_to(again)) for item in again.rglob("*")) == ["deep", "deep/y.txt", "x.bin"]
    assert (again / "x.bin").read_bytes() == b"x2"


def test_files_of_equal_content_keep_their_names(repo: Repository, tmp_path: Path) -> None:
    commit = repo.commit("twins", files={"one.csv": b"same", "two.csv": b"same"})
    assert commit is not None
    paths = [repo.materialize(name, commit.id, tmp_path / "cache") for name in ("one.csv", "two.csv", "one.csv")]
    assert [path.name for path in paths] == ["one.csv", "two.csv", "one.csv"]
    assert all(path.read_bytes() == b"same" for path in paths)


def test_the_change_stamp_follows_the_branches_and_nothing_else(repo: Repository, head: str, tmp_path: Path) -> None:
    seen = [repo.change_stamp()]

    def moved() -> bool:
        seen.append(repo.change_stamp())
        return seen[-1] not in seen[:-1]

    fresh = Repository(repo.path)
    fresh.heads()
    fresh.resolve("dev")
    fresh.log("dev")
    fresh.digest("", head)
    fresh.diff(head, fresh.resolve("dev"))
    fresh.materialize("", head, tmp_path / "cache")
    fresh.init()
    assert not moved()
    for n in range(5):
        repo.commit("one", files={"a": b"%d" % n}, branch=("main", "dev")[n % 2])
        assert moved()
        repo.create_branch(f"branch-{n}")
        assert moved()


def test_heads_start_no_process_while_nothing_moved(repo: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    heads = repo.heads()
    monkeypatch.setattr(child, "call", None)
    assert repo.heads() == heads


def test_the_calling_process_never_loads_oxen(repo: Repository) -> None:
    import sys

    assert repo.commit("one", files={"a": b"1"}) is not None
    assert not [name for name in sys.modules if name.split(".")[0] in ("oxen", "oxen_py")]
