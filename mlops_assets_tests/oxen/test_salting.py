"""A commit never changes what another one holds, though Oxen gives parts of both one name."""

from __future__ import annotations

import random
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest

from mlops_assets.oxen import child
from mlops_assets.oxen.errors import RevisionNotFound, StoreCorrupt, UnsafePath
from mlops_assets.oxen.nodes import Dir, Nodes
from mlops_assets.oxen.pages import Snapshot
from mlops_assets.oxen.repository import Repository
from mlops_assets.oxen.salting import bucket, salts
from mlops_assets.oxen.tree import Tree
from mlops_assets_tests.oxen.conftest import TABLE

pytestmark = pytest.mark.slow


class Twins(NamedTuple):
    """Commits of which the last one gives a bucket the name that a bucket of the first one has."""

    base: dict[str, bytes]
    steps: list[tuple[str, dict[str, bytes], list[str]]]  # branch, files, removals


TWINS = {
    "a directory of directories, removed and made anew": Twins(
        {"a": b"1"}, [("main", {"d/s/x": b"0"}, []), ("main", {}, ["d"]), ("main", {"d/s/y": b"9"}, [])]
    ),
    "a directory of directories on each branch": Twins(
        {"a": b"1"}, [("main", {"d/s/x": b"0"}, []), ("dev", {"d/t/y": b"9"}, [])]
    ),
    "the same content under another name, removed and made anew": Twins(
        {"a": b"1"}, [("main", {"d/x": b"0"}, []), ("main", {}, ["d"]), ("main", {"d/y": b"0"}, [])]
    ),
    "the same content under another name on each branch": Twins(
        {"a": b"1"}, [("main", {"d/x": b"0"}, []), ("dev", {"d/y": b"0"}, [])]
    ),
    "a file and a directory beside": Twins(
        {"a": b"1"}, [("main", {"d/x": b"0", "d/s/q": b"1"}, []), ("dev", {"d/x": b"0", "d/t/q": b"1"}, [])]
    ),
    "another one of two equal files removed on each branch": Twins(
        {"d/x": b"0", "d/y": b"0"}, [("main", {}, ["d/x"]), ("dev", {}, ["d/y"])]
    ),
    "another one of two equal files removed in turn": Twins(
        {"d/x": b"0", "d/y": b"0"},
        [("main", {}, ["d/x"]), ("main", {"d/x": b"0"}, []), ("main", {}, ["d/y"])],
    ),
    "another one of two equal files of the root removed": Twins(
        {"x": b"0", "y": b"0"}, [("main", {}, ["x"]), ("dev", {}, ["y"])]
    ),
    "a directory removed beside equal files": Twins(
        {"x": b"0", "y": b"0", "d/z": b"1"}, [("main", {}, ["d", "x"]), ("dev", {}, ["d", "y"])]
    ),
    "everything removed and made anew": Twins(
        {"a": b"1"},
        [("main", {}, ["a"]), ("main", {"d/s/x": b"0"}, []), ("main", {}, [""]), ("main", {"d/t/x": b"0"}, [])],
    ),
    "a directory in the place of a file": Twins(
        {"d": b"1"}, [("main", {"d/s/x": b"0"}, ["d"]), ("dev", {"d/t/x": b"0"}, ["d"])]
    ),
}


def _files(repo: Repository, commit: str) -> dict[str, str]:
    return {entry.path: entry.hash for entry in repo.entries("", commit)}


@pytest.mark.parametrize("name", TWINS)
def test_versions_stay_as_they_were_committed(tmp_path: Path, name: str) -> None:
    """Without salts, each of these changes the first commit's files."""
    repo = Repository(tmp_path / "repo")
    repo.init()
    repo.commit("base", files=dict(TWINS[name].base))
    repo.create_branch("dev")
    versions = {}
    for branch, files, remove in TWINS[name].steps:
        made = repo.commit("step", files=dict(files), remove=remove, branch=branch)
        assert made is not None
        assert len(made.parents) == 1
        versions[made.id] = _files(repo, made.id)
        assert {commit: _files(repo, commit) for commit in versions} == versions
    assert set(repo.heads()) == {"main", "dev"}
    growth = repo.growth()
    assert (growth.unreferenced, growth.leftovers) == ((0, 0), (0, 0))
    assert len(list((repo.path / ".oxen" / "history").iterdir())) == growth.commits


def test_a_bucket_without_anything_new_is_named_as_foreseen(repo: Repository, head: str) -> None:
    """Files with and without metadata, and a directory."""
    store = repo.path / ".oxen"
    made = repo.commit("bare", files={"t.csv": b"x,y\n1,2\n", "b.bin": b"\0\1\xff", "z": b"1"}, remove=["extra.txt"])
    assert made is not None
    bare = {"table.csv", "t.csv", "b.bin", "data", "dev.txt"}
    assert Tree(store).clashes(made.id, "", [bare - {"dev.txt"}]) == [False]
    after = repo.commit("bare", remove=["z"])
    assert after is not None
    with Snapshot(store / "tree/nodes_lmdb/data.mdb", b"nodes") as snapshot:
        nodes = Nodes(snapshot, store)
        root = nodes.root(after.id)
        assert isinstance(root, Dir)
        (node,) = nodes.buckets(root)
    renamed = repo.commit("renamed", files={"table2.csv": TABLE}, remove=["table.csv"])
    assert renamed is not None
    assert nodes is not None
    assert Tree(store).clashes(renamed.id, "", [bare - {"dev.txt", "table.csv"} | {"table2.csv"}]) == [True]
    assert Tree(store).clashes(after.id, "", [bare - {"dev.txt"}]) == [False], f"{node:x} is named in another way"


@pytest.mark.parametrize("size", [3, 1000])
def test_buckets_are_where_oxen_puts_them(tmp_path: Path, size: int) -> None:
    repo = Repository(tmp_path / "repo")
    repo.init()
    config = repo.path / ".oxen" / "config.toml"
    config.write_text(config.read_text().replace("vnode_size = 1000", f"vnode_size = {size}"))
    count = 2 * size + 1
    files = {f"d/{n}": b"%d" % n for n in range(count - 1)} | {"d/sub/x": b"x"}
    made = repo.commit("many", files=files)
    assert made is not None
    with Snapshot(repo.path / ".oxen/tree/nodes_lmdb/data.mdb", b"nodes") as snapshot:
        nodes = Nodes(snapshot, repo.path / ".oxen")
        root = nodes.root(made.id)
        assert isinstance(root, Dir)
        directory = nodes.merged(nodes.buckets(root))["d"]
        assert isinstance(directory, Dir)
        found = [{f"d/{name}" for name in nodes.bucket(node)} for node in nodes.buckets(directory)]
    assert len(found) == 3
    assert sum(map(len, found)) == count
    for number, paths in enumerate(found):
        assert {bucket(path, 3) for path in paths} == {number}


def test_every_written_bucket_has_something_new_or_a_name_known_to_be_free() -> None:
    """Against a plain reading of the rules, over random changes."""
    random_ = random.Random(5)
    for round_ in range(3000):
        names = [f"{top}{n}" for top in ("", "d/", "d/s/", "d/s/t/", "e/") for n in range(5)]
        old, new = (set(random_.sample(names, random_.randint(0, 12))) for _ in range(2))
        changed = {path for path in new if path not in old or random_.random() < 0.1}
        size = random_.choice([1, 2, 3, 1000])
        free: set[tuple[str, frozenset[str]]] = set()
        clashes = partial(_answers, random_, 0.3 * (round_ % 2), free)
        found = salts(old, new, changed, size=size, token="token", clashes=clashes)
        assert found.files <= new
        assert not found.extra & (old | new)
        if any(found):
            first = new | found.extra
            _check_step(old, first, changed | found.files | found.extra, size, free)
            _check_step(first, new, found.files, size, free)
        else:
            _check_step(old, new, changed, size, free)


def _answers(
    random_: random.Random,
    often: float,
    free: set[tuple[str, frozenset[str]]],
    directory: str,
    buckets: Sequence[AbstractSet[str]],
) -> list[bool]:
    answers = [random_.random() < often for _ in buckets]
    free.update((directory, frozenset(each)) for each, clash in zip(buckets, answers, strict=True) if not clash)
    return answers


def _check_step(
    before: set[str], after: set[str], changes: set[str], size: int, free: set[tuple[str, frozenset[str]]]
) -> None:
    """Look at every bucket of every directory in or below which something changes."""
    touched = changes | (before - after)
    for directory in {parent for path in touched for parent in _parents(path)}:
        old, new = _listing(before, directory), _listing(after, directory)
        count = max(-(-len(new) // size), 1)
        for number in range(count):
            held = {child for child in new if bucket(child, count) == number}
            if old or not directory:
                renewed = {child for child in held if any(f"{path}/".startswith(f"{child}/") for path in touched)}
                assert renewed or not held & after or (directory, frozenset(held)) in free, (directory, number)
            else:
                assert held & changes or not held, (directory, number)


def _parents(path: str) -> list[str]:
    parts = path.split("/")[:-1]
    return ["/".join(parts[:n]) for n in range(len(parts) + 1)]


def _listing(paths: set[str], directory: str) -> set[str]:
    prefix = f"{directory}/" if directory else ""
    return {prefix + path[len(prefix) :].split("/")[0] for path in paths if path.startswith(prefix)}


def test_what_a_killed_commit_had_made_aside_is_nobodys_to_see(repo: Repository, head: str) -> None:
    before = repo.heads()
    child.call("branch", repo.path / ".oxen", seconds=60, name="mlops-work/0123", commit=head)
    assert Repository(repo.path).heads() == before
    with pytest.raises(RevisionNotFound):
        repo.resolve("mlops-work/0123")
    with pytest.raises(UnsafePath, match="mlops-work/"):
        repo.create_branch("mlops-work/0123")
    with pytest.raises(RevisionNotFound):
        repo.delete_branch("mlops-work/0123")
    raw = child.call("heads", repo.path / ".oxen", seconds=60, view=str(repo.path))
    assert raw == before


def test_a_lost_content_is_no_salt(repo: Repository) -> None:
    """The file that would get it back in the second step must not become something else."""
    base = repo.commit("base", files={"d/x": b"same", "d/y": b"same"})
    assert base is not None
    repo.create_branch("twin")
    repo.commit("one", remove=["d/x"])
    Tree(repo.path / ".oxen").blob(repo.entries("d/x", base.id)[0].hash).unlink()
    with pytest.raises(StoreCorrupt, match="'d/x' is missing"):
        repo.commit("no", remove=["d/y"], branch="twin")
    assert repo.heads()["twin"] == base.id


@pytest.mark.slow
def test_thousands_of_files_in_several_buckets(repo: Repository, tmp_path: Path) -> None:
    local = tmp_path / "many"
    local.mkdir()
    for n in range(2100):
        (local / f"{n:04}").write_bytes(b"%d" % (n % 7))
    versions = {}
    for branch in ("main", "dev"):
        made = repo.commit("many", files={"many": local}, branch=branch)
        assert made is not None
        versions[made.id] = _files(repo, made.id)
    for n in range(0, 300, 50):
        for branch, shift in (("main", 0), ("dev", 7)):  # of equal content
            made = repo.commit("fewer", remove=[f"many/{k + shift:04}" for k in range(n, n + 3)], branch=branch)
            assert made is not None
            versions[made.id] = _files(repo, made.id)
    assert {commit: _files(repo, commit) for commit in versions} == versions
