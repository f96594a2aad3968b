"""Everything that can be wrong is found and told, and what is left somewhere is put back."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from mlops_assets.oxen.errors import RevisionNotFound, StoreCorrupt
from mlops_assets.oxen.nodes import FORMAT, Dir, Nodes
from mlops_assets.oxen.pages import Snapshot
from mlops_assets.oxen.repository import Repository
from mlops_assets.oxen.tree import Tree
from mlops_assets_tests.oxen.conftest import TABLE


def blob(repo: Repository, path: str, commit: str) -> Path:
    return Tree(repo.path / ".oxen").blob(repo.entries(path, commit)[0].hash)


def flip(file: Path) -> None:
    raw = file.read_bytes()
    file.write_bytes(bytes([raw[0] ^ 1]) + raw[1:])


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


DAMAGE = {"does not have its hash": flip, "has 1 bytes instead of 2": truncate, "is missing": Path.unlink}


def test_a_sound_repository(repo: Repository, head: str) -> None:
    told: list[tuple[int, int]] = []
    found = repo.fsck(progress=lambda done, total: told.append((done, total)))
    assert found.sound
    assert found.remedies == ()
    contents = {TABLE, b"x2", b"y", b"more", b"d"}
    assert (found.commits, found.contents, found.bytes) == (2, 5, sum(map(len, contents)))
    assert [each for each, _ in told] == sorted(each for each, _ in told)
    assert told[-1] == (found.bytes, found.bytes)
    assert repo.fsck("dev")[:2] == (1, 5)
    assert repo.fsck(head)[:2] == (1, 4)
    assert repo.fsck(repo.log()[-1].id)[:2] == (1, 3)
    everything = repo.fsck(history=True)
    assert (everything.sound, everything.commits, everything.contents) == (True, 3, 6)
    with pytest.raises(RevisionNotFound):
        repo.fsck("nowhere")


def test_nothing_committed_is_sound(tmp_path: Path) -> None:
    repo = Repository(tmp_path / "repo")
    repo.init()
    assert repo.fsck(history=True) == (0, 0, 0, (), (), ())


@pytest.mark.parametrize("what", DAMAGE)
def test_lost_contents_are_told_with_their_paths_and_commits(repo: Repository, head: str, what: str) -> None:
    repo.commit("twin", files={"data/twin.bin": b"x2"}, branch="dev")
    DAMAGE[what](blob(repo, "data/x.bin", head))
    found = repo.fsck(history=True)
    (loss,) = found.losses
    assert (loss.what, loss.entry.hash) == (what, repo.entries("data/x.bin", head)[0].hash)
    assert set(loss.places) == {
        (commit.id, entry.path)
        for commit in [*repo.log(), *repo.log("dev")]
        for entry in repo.entries("", commit.id)
        if entry.hash == loss.entry.hash
    }
    assert len(loss.places) == 4
    assert not found.sound
    assert "mlops data fsck --heal" in found.remedies[0]
    assert repo.fsck(repo.log()[-1].id).sound  # holds another version of the file


@pytest.mark.parametrize("what", DAMAGE)
@pytest.mark.parametrize("copied", ["data/x.bin", "data", ""])
def test_a_copy_in_the_cache_heals(repo: Repository, head: str, tmp_path: Path, what: str, copied: str) -> None:
    cache = tmp_path / "cache"
    repo.materialize(copied, head, cache)
    DAMAGE[what](blob(repo, "data/x.bin", head))
    assert repo.heal(repo.fsck(), cache).sound
    assert repo.fsck(history=True).sound
    assert repo.read(repo.entries("data/x.bin", head)[0]) == b"x2"
    assert [item.name for item in blob(repo, "data/x.bin", head).parent.iterdir()] == ["data"]


def test_a_damaged_copy_does_not_heal(repo: Repository, head: str, tmp_path: Path) -> None:
    copy = repo.materialize("data/x.bin", head, tmp_path)
    copy.chmod(0o644)
    copy.write_bytes(b"x9")
    truncate(blob(repo, "data/x.bin", head))
    found = repo.fsck()
    assert repo.heal(found, tmp_path) == found
    assert blob(repo, "data/x.bin", head).read_bytes() == b"x"
    assert [item.name for item in blob(repo, "data/x.bin", head).parent.iterdir()] == ["data"]


def test_files_that_are_given_heal_under_any_name(repo: Repository, head: str, tmp_path: Path) -> None:
    for path in ("data/x.bin", "table.csv", "extra.txt"):
        flip(blob(repo, path, head))
    given = tmp_path / "given"
    (given / "deep").mkdir(parents=True)
    (given / "deep" / "whatever").write_bytes(b"x2")
    (given / "other").write_bytes(b"xx")
    (tmp_path / "table").write_bytes(TABLE)
    left = repo.heal(repo.fsck(), tmp_path / "no cache", [given, tmp_path / "table", tmp_path / "not there"])
    assert [loss.entry.path for loss in left.losses] == ["extra.txt"]
    assert repo.fsck().losses == left.losses


def test_a_lost_content_is_healed_by_committing_it_again(repo: Repository, head: str) -> None:
    blob(repo, "data/x.bin", head).unlink()
    assert repo.commit("again", files={"data/x.bin": b"x2"}) is None
    assert repo.fsck().sound


def test_a_new_file_never_shares_damaged_content(repo: Repository, head: str) -> None:
    """Oxen keeps a content that is there, whatever it is."""
    flip(blob(repo, "data/x.bin", head))
    made = repo.commit("the same", files={"other.bin": b"x2"})
    assert made is not None
    assert repo.fsck().sound


def test_a_lost_directory_is_a_hole_and_the_rest_is_looked_at(repo: Repository, head: str) -> None:
    """Its bucket's record is overwritten wherever the tree's database has it."""
    store = repo.path / ".oxen"
    file = store / "tree" / "nodes_lmdb" / "data.mdb"
    made = repo.commit("a bucket of its own", files={"data/deep/only": b"only", "data/deep/y.txt": b"y2"})
    assert made is not None
    truncate(blob(repo, "table.csv", head))
    (node,) = _buckets_of(repo, made.id, "data/deep")
    raw = bytearray(file.read_bytes())
    # the key alone may also stand in an inner page of the tree, far before somebody else's record
    record = re.escape(node.to_bytes(16, "little") + b"\1") + b".{1,8}?" + re.escape(FORMAT.encode())
    for each in re.finditer(record, bytes(raw), re.DOTALL):
        raw[each.end() - len(FORMAT) : each.end()] = b"\xff" * len(FORMAT)
    file.write_bytes(raw)
    found = repo.fsck(history=True)
    assert {(hole.commit, hole.path) for hole in found.holes} == {(made.id, "data/deep")}
    assert "is damaged" in found.holes[0].what
    assert [loss.entry.path for loss in found.losses] == ["table.csv"]
    assert any("restore .oxen/tree" in each for each in found.remedies)
    with pytest.raises(StoreCorrupt, match="backup"):
        repo.growth()
    with pytest.raises(StoreCorrupt, match="backup"):
        repo.cleanup(0)


def _buckets_of(repo: Repository, commit: str, path: str) -> set[int]:
    with Snapshot(repo.path / ".oxen/tree/nodes_lmdb/data.mdb", b"nodes") as snapshot:
        nodes = Nodes(snapshot, repo.path / ".oxen")
        item = nodes.root(commit)
        for part in path.split("/"):
            assert isinstance(item, Dir)
            item = nodes.merged(nodes.buckets(item))[part]
        assert isinstance(item, Dir)
        return set(nodes.buckets(item))


def test_a_truncated_tree_is_holes(repo: Repository) -> None:
    with (repo.path / ".oxen/tree/nodes_lmdb/data.mdb").open("r+b") as stream:
        stream.truncate(5000)
    found = repo.fsck(history=True)
    assert (found.commits, found.lost_branches) == (0, ())
    assert {hole.commit for hole in found.holes} == set(repo.heads().values())
    assert all("is damaged" in hole.what for hole in found.holes)


def test_a_branch_that_points_nowhere(repo: Repository) -> None:
    """As after the tree's database was replaced by an older one."""
    tree = repo.path / ".oxen" / "tree"
    shutil.copytree(tree, tree.with_name("older"))
    repo.create_branch("side")
    newest = repo.commit("later", files={"a": b"1"}, branch="side")
    assert newest is not None
    shutil.rmtree(tree)
    tree.with_name("older").rename(tree)
    found = repo.fsck()
    assert found.lost_branches == (("side", newest.id),)
    assert [hole.commit for hole in found.holes] == [newest.id]
    assert any("points to no commit" in each for each in found.remedies)
    for attempt in (
        lambda: repo.delete_branch("side", force=True),
        lambda: repo.resolve("side"),
        lambda: repo.cleanup(0),
    ):
        with pytest.raises((StoreCorrupt, RevisionNotFound)):
            attempt()
    assert repo.fsck("dev").sound


def test_a_lost_history_is_a_hole(repo: Repository, head: str) -> None:
    shutil.rmtree(repo.path / ".oxen" / "history" / head)
    found = repo.fsck()
    (hole,) = found.holes
    assert (hole.commit, "nothing can be committed on it" in hole.what) == (head, True)
