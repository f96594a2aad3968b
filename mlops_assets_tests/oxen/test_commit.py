"""Commits: what is in them afterwards, on which branch, and what leaves none."""

from __future__ import annotations

import os
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from mlops_assets.oxen.errors import (
    InputChanged,
    OxenError,
    PathNotFound,
    RepositoryNotFound,
    RevisionNotFound,
    UnsafePath,
)
from mlops_assets.oxen.inputs import sources
from mlops_assets.oxen.repository import Repository
from mlops_assets_tests.oxen.conftest import contents


def test_a_new_repository_takes_its_first_commit(tmp_path: Path) -> None:
    repo = Repository(tmp_path / "new" / "repo")
    assert not repo.exists()
    with pytest.raises(RepositoryNotFound, match="mlops data import"):
        repo.heads()
    repo.init()
    repo.init()
    assert repo.exists()
    assert repo.heads() == {}
    assert "vnode_size = 1000\n" in (repo.path / ".oxen" / "config.toml").read_text()
    with pytest.raises(RevisionNotFound, match="create it first"):
        repo.commit("no", files={"a": b"1"}, branch="other")
    with pytest.raises(RevisionNotFound):
        repo.resolve("main")
    commit = repo.commit("first", files={"a": b"1"})
    assert commit is not None
    assert repo.heads() == {"main": commit.id}
    assert commit.parents == ()
    assert repo.log() == [commit]
    assert [item.name for item in repo.path.iterdir()] == [".oxen"]
    assert list((repo.path / ".oxen" / "mlops" / "work").iterdir()) == []


def test_a_commit_records_what_was_said_and_done(repo: Repository, head: str, tmp_path: Path) -> None:
    message = 'two\nlines, "quotes" and ü [mlops 12]'
    commit = repo.commit(
        message, files={"n/ew.txt": b"new"}, remove=["table.csv", "data/deep"], author='A "B" \\', email="a@b.c"
    )
    assert commit is not None
    assert (commit.message, commit.author, commit.email) == (message, 'A "B" \\', "a@b.c")
    assert commit.parents == (head,)
    assert abs(commit.timestamp - datetime.now(UTC)) < timedelta(minutes=1)
    assert contents(repo, commit.id, tmp_path / "cache") == {
        "data/x.bin": b"x2",
        "extra.txt": b"more",
        "n/ew.txt": b"new",
    }
    assert [each.message for each in repo.log()] == [message, "second", "first"]


def test_equal_messages_within_a_second_make_different_commits(repo: Repository) -> None:
    commits = [repo.commit("same", files={"a": bytes([n])}) for n in range(3)]
    assert len({commit.id for commit in commits if commit}) == 3


def test_nothing_changed_is_no_commit(repo: Repository, head: str, tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"x2")
    assert repo.commit("again", files={"data/x.bin": tmp_path / "x.bin", "extra.txt": b"more"}) is None
    assert repo.commit("nothing") is None
    assert repo.commit("stays", files={"extra.txt": b"more"}, remove=["extra.txt"]) is None
    assert repo.heads()["main"] == head


def test_a_commit_on_another_branch_leaves_main_alone(repo: Repository, head: str) -> None:
    commit = repo.commit("dev again", files={"dev.txt": b"e"}, branch="dev")
    assert commit is not None
    assert repo.heads() == {"main": head, "dev": commit.id}
    with pytest.raises(RevisionNotFound, match="ghost"):
        repo.commit("lost", files={"a": b"1"}, branch="ghost")


def test_new_content_of_equal_size_and_time_is_seen(repo: Repository, tmp_path: Path) -> None:
    """Oxen itself takes such a file for unchanged."""
    local = tmp_path / "local"
    for content in (b"AAAA", b"BBBB"):
        local.write_bytes(content)
        os.utime(local, ns=(10**18, 10**18))
        commit = repo.commit("same size, same time", files={"f": local})
        assert commit is not None
        assert repo.materialize("f", commit.id, tmp_path / "cache").read_bytes() == content


def test_a_directory_is_committed_with_all_below_it(repo: Repository, tmp_path: Path) -> None:
    local = tmp_path / "local"
    (local / "sub").mkdir(parents=True)
    for n in range(20):
        (local / f"{n}.txt").write_bytes(b"%d" % n)
    (local / "sub" / "s.txt").write_bytes(b"s")
    (local / ".hidden").write_bytes(b"h")
    (local / "link.txt").symlink_to(local / "0.txt")
    first = repo.commit("directory", files={"images": local})
    assert first is not None
    assert len(repo.entries("images", first.id)) == 23

    (local / "3.txt").write_bytes(b"changed")
    second = repo.commit("over it", files={"images": local / "sub", "images/3.txt": local / "3.txt"})
    assert second is not None
    assert repo.diff(first.id, second.id) == (("images/s.txt",), (), ("images/3.txt",))

    third = repo.commit("instead of it", files={"images": local / "sub"}, remove=["images"])
    assert third is not None
    assert [entry.path for entry in repo.entries("images", third.id)] == ["images/s.txt"]

    fourth = repo.commit("root", files={"": local}, remove=[""])
    assert fourth is not None
    assert repo.digest("", fourth.id) == repo.digest("images", _with_images(repo, local))


def _with_images(repo: Repository, local: Path) -> str:
    commit = repo.commit("images", files={"images": local}, remove=[""])
    assert commit is not None
    return commit.id


def test_a_directory_can_take_the_place_of_a_file(repo: Repository) -> None:
    with pytest.raises(UnsafePath, match="remove it"):
        repo.commit("no", files={"extra.txt/below": b"f"})
    commit = repo.commit("yes", files={"extra.txt/below": b"f"}, remove=["extra.txt"])
    assert commit is not None
    assert [entry.path for entry in repo.entries("extra.txt", commit.id)] == ["extra.txt/below"]


def test_a_file_can_take_the_place_of_a_directory_in_a_second_commit(repo: Repository) -> None:
    """In one commit Oxen drops the file."""
    with pytest.raises(UnsafePath, match="of its own"):
        repo.commit("no", files={"data": b"file"}, remove=["data"])
    repo.commit("first", remove=["data"])
    commit = repo.commit("second", files={"data": b"file"})
    assert commit is not None
    assert [entry.path for entry in repo.entries("data", commit.id)] == ["data"]


def test_everything_can_be_removed_and_come_back(repo: Repository, head: str) -> None:
    commit = repo.commit("empty", remove=[""])
    assert commit is not None
    assert repo.entries("", commit.id) == []
    with pytest.raises(PathNotFound):
        repo.digest("data", commit.id)
    again = repo.commit("back", files={"data/x.bin": b"x2", "data/deep/y.txt": b"y"})
    assert again is not None
    assert repo.digest("data", again.id) == repo.digest("data", head)


def test_removing_what_is_not_there_is_an_error(repo: Repository, head: str) -> None:
    with pytest.raises(PathNotFound, match="tabel"):
        repo.commit("typo", files={"a": b"1"}, remove=["tabel.csv"])
    assert repo.heads()["main"] == head


def test_branches(repo: Repository, head: str) -> None:
    first = repo.log()[-1].id
    repo.create_branch("feature/x", "dev")
    repo.create_branch("old", first)
    assert repo.heads()["feature/x"] == repo.heads()["dev"]
    assert repo.resolve("old") == first
    assert repo.resolve(first.zfill(32)) == first
    with pytest.raises(OxenError, match="exists already"):
        repo.create_branch("dev")
    with pytest.raises(RevisionNotFound, match="nowhere"):
        repo.create_branch("new", "nowhere")
    with pytest.raises(RevisionNotFound, match="dev, feature/x, main, old"):
        repo.resolve(head[:10])


def test_a_file_changed_between_hashing_and_adding_is_refused(
    repo: Repository, head: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = tmp_path / "growing"
    local.write_bytes(b"one")

    def overtaken(files: dict[str, Path | bytes]) -> object:
        found = sources(files)
        local.write_bytes(b"one and two")
        return found

    monkeypatch.setattr("mlops_assets.oxen.repository.sources", overtaken)
    with pytest.raises(InputChanged, match="growing"):
        repo.commit("no", files={"f": local})
    assert repo.heads()["main"] == head


@pytest.mark.slow
def test_no_change_of_a_whole_directory_is_lost(repo: Repository) -> None:
    """Oxen's own adding of a directory that exists loses changes in one of ten rounds of this."""
    names = [f"old/{name}" for name in ("a", "b", "dir/a", "dir/b", "dir/sub/a", *(f"many/{n}" for n in range(12)))]
    for n in range(60):
        assert repo.commit("whole", files=dict.fromkeys(names, b"%4d" % n)) is not None


def _random_history(repo: Repository, seed: int, rounds: int) -> None:
    """Commit at random, with names made to collide, against a dictionary as the model."""
    random_ = random.Random(seed)
    names = ["a", "b", "dir/a", "dir/b", "dir/sub/a", "dir/sub/b", *(f"many/{n}" for n in range(12))]
    model = {entry.path: entry.hash for entry in repo.entries("", repo.resolve("main"))}
    history = {}
    for _ in range(rounds):
        files = {name: bytes(random_.choices(b"01", k=2)) for name in random_.sample(names, random_.randint(0, 14))}
        tops = sorted({prefix for path in model for prefix in (path, path.rpartition("/")[0], "dir", "many")})
        remove = random_.sample(tops, min(len(tops), random_.randint(0, 2)))
        remove = [path for path in remove if any(f"{each}/".startswith(f"{path}/") or not path for each in model)]
        gone = {each for each in model for path in remove if not path or f"{each}/".startswith(f"{path}/")}
        wanted = {path: content for path, content in model.items() if path not in gone}
        wanted |= {source.path: source.hash for source in sources(files)}
        commit = repo.commit(f"seed {seed}", files=files, remove=remove)
        assert (commit is None) == (wanted == model), (seed, files, remove)
        model = wanted
        history[repo.resolve("main")] = model
        for made, content in history.items():
            found = {entry.path: entry.hash for entry in repo.entries("", made)}
            assert found == content, (seed, files, remove)


@pytest.mark.slow
def test_random_histories_hold_what_was_asked(repo: Repository) -> None:
    _random_history(repo, seed=1, rounds=6)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 5))
def test_longer_random_histories(repo: Repository, seed: int) -> None:
    _random_history(repo, seed=seed, rounds=25)
