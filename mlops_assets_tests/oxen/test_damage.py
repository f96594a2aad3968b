"""A damaged repository gives a named error with a remedy, and never harms the caller."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from mlops_assets.oxen.errors import NotWritable, OxenError, RepositoryNotFound, StoreCorrupt, TreeFormatError
from mlops_assets.oxen.repository import Repository
from mlops_assets.oxen.tree import Tree

pytestmark = pytest.mark.slow


def _blob(repo: Repository, path: str, commit: str) -> Path:
    return Tree(repo.path / ".oxen").blob(repo.entries(path, commit)[0].hash)


def _flip(blob: Path) -> None:
    blob.write_bytes(bytes([blob.read_bytes()[0] ^ 1]) + blob.read_bytes()[1:])


def _truncate(blob: Path) -> None:
    blob.write_bytes(blob.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [_flip, _truncate, Path.unlink])
def test_a_damaged_blob_is_never_handed_out(repo: Repository, head: str, tmp_path: Path, damage) -> None:
    damage(_blob(repo, "data/x.bin", head))
    for path in ("data/x.bin", "data", ""):
        with pytest.raises(StoreCorrupt, match=r"'data/x\.bin'.*commit the original"):
            repo.materialize(path, head, tmp_path / "cache")
    assert [item for item in (tmp_path / "cache").rglob("*") if item.is_file()] == []
    assert repo.materialize("table.csv", head, tmp_path / "cache").exists()


@pytest.mark.parametrize("damage", [_truncate, Path.unlink])
def test_committing_the_original_again_heals(repo: Repository, head: str, tmp_path: Path, damage) -> None:
    damage(_blob(repo, "data/x.bin", head))
    assert repo.commit("heal", files={"data/x.bin": b"x2"}) is None
    assert repo.materialize("data/x.bin", head, tmp_path / "cache").read_bytes() == b"x2"


def test_the_remedy_for_a_flipped_byte_works(repo: Repository, head: str, tmp_path: Path) -> None:
    blob = _blob(repo, "data/x.bin", head)
    _flip(blob)
    blob.unlink()
    local = tmp_path / "x.bin"
    local.write_bytes(b"x2")
    assert repo.commit("heal", files={"data/x.bin": local}) is None
    assert repo.materialize("data/x.bin", head, tmp_path / "cache").read_bytes() == b"x2"


def test_damaged_content_of_a_new_file_is_stored_anew(repo: Repository, head: str, tmp_path: Path) -> None:
    blob = _blob(repo, "data/x.bin", head)
    repo.commit("gone", remove=["data/x.bin"])
    _truncate(blob)
    commit = repo.commit("elsewhere", files={"again.bin": b"x2"})
    assert commit is not None
    assert repo.materialize("again.bin", commit.id, tmp_path / "cache").read_bytes() == b"x2"
    assert repo.materialize("data/x.bin", head, tmp_path / "cache").read_bytes() == b"x2"


def _truncated(raw: bytes) -> bytes:
    return raw[:5000]


def _emptied(_raw: bytes) -> bytes:
    return b""


def _zeroed(raw: bytes) -> bytes:
    return raw[:8192] + bytes(len(raw) - 8192)


def _zeroed_from_the_start(raw: bytes) -> bytes:
    return bytes(len(raw))


def _scribbled(raw: bytes) -> bytes:
    return raw[:8192] + b"\xff" * (len(raw) - 8192)


def _noise(raw: bytes) -> bytes:
    return random.Random(1).randbytes(len(raw))


@pytest.mark.parametrize("damage", [_truncated, _emptied, _zeroed, _zeroed_from_the_start, _scribbled, _noise])
def test_a_damaged_tree_is_a_named_error_and_nothing_else(repo: Repository, head: str, damage, tmp_path: Path) -> None:
    """Oxen dies or panics of some of these, in the child; a backup of the tree ends it."""
    file = repo.path / ".oxen" / "tree" / "nodes_lmdb" / "data.mdb"
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    heads = repo.heads()
    for attempt in (
        lambda: repo.digest("", head),
        lambda: repo.entries("", head),
        lambda: repo.materialize("", head, tmp_path / "cache"),
        repo.log,
        repo.branches,
        repo.growth,
        lambda: repo.commit("no", files={"a": b"1"}),
        lambda: repo.commit("no", remove=["data"]),
        lambda: repo.create_branch("x"),
        lambda: repo.delete_branch("dev"),
        lambda: repo.merge("dev"),
        lambda: repo.cleanup(0),
    ):
        with pytest.raises(StoreCorrupt, match="backup"):
            attempt()
    assert not repo.fsck().sound
    assert Repository(repo.path).heads() == heads
    file.write_bytes(whole)
    assert repo.fsck(history=True).sound
    assert repo.merge("dev") is not None


def test_a_missing_tree(repo: Repository, head: str) -> None:
    shutil.rmtree(repo.path / ".oxen" / "tree")
    with pytest.raises(StoreCorrupt, match=r"missing although.*backup"):
        repo.digest("", head)
    with pytest.raises(StoreCorrupt):
        repo.commit("no", files={"a": b"1"})


def test_a_missing_history_stops_writers_and_not_readers(repo: Repository, head: str) -> None:
    before = repo.digest("", head)
    shutil.rmtree(repo.path / ".oxen" / "history")
    assert Repository(repo.path).digest("", head) == before
    assert len(repo.log()) == 2
    for attempt in (lambda: repo.commit("no", files={"a": b"1"}), lambda: repo.merge("dev")):
        with pytest.raises(StoreCorrupt, match="history"):
            attempt()


@pytest.mark.parametrize("damage", ["gone", "empty", "garbage"])
def test_damaged_branches(repo: Repository, damage: str) -> None:
    refs = repo.path / ".oxen" / "refs"
    if damage == "gone":
        shutil.rmtree(refs)
    else:
        (refs / "CURRENT").write_bytes(b"" if damage == "empty" else b"\xff" * 16)
    for attempt in (repo.heads, lambda: repo.commit("no", files={"a": b"1"})):
        with pytest.raises(StoreCorrupt, match=r"restore \.oxen/refs"):
            attempt()


def test_a_damaged_configuration(repo: Repository) -> None:
    config = repo.path / ".oxen" / "config.toml"
    text = config.read_text()
    config.write_text("= nonsense")
    with pytest.raises(TreeFormatError, match=r"config\.toml"):
        repo.heads()
    config.write_text(text.replace('"local"', '"s3"'))
    with pytest.raises(TreeFormatError, match="'s3'"):
        repo.heads()
    config.unlink()
    for attempt in (repo.heads, lambda: repo.commit("no", files={"a": b"1"}), lambda: repo.digest("", "0" * 32)):
        with pytest.raises(RepositoryNotFound, match="mlops data import"):
            attempt()


def test_a_place_that_cannot_hold_a_repository(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OxenError, match="file"):
        Repository(tmp_path / "file").init()
    with pytest.raises(RepositoryNotFound):
        Repository(tmp_path / "file" / "below").heads()


def test_a_cache_that_cannot_be_written(repo: Repository, head: str, tmp_path: Path) -> None:
    (tmp_path / "cache").write_bytes(b"a file")
    with pytest.raises(NotWritable, match="cache"):
        repo.materialize("", head, tmp_path / "cache")
