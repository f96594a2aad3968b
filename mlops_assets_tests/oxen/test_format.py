"""The canary: what the tree reader assumes about Oxen's files on disk, held against the installed oxenai."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import msgpack
import pytest
import xxhash

from mlops_assets.oxen.errors import TreeFormatError
from mlops_assets.oxen.nodes import FORMAT, TESTED_OXENAI
from mlops_assets.oxen.pages import Snapshot
from mlops_assets.oxen.repository import Repository
from mlops_assets.oxen.tree import Tree
from mlops_assets_tests.oxen.conftest import TABLE

WHAT_TO_DO = (
    f"oxenai {importlib.metadata.version('oxenai')} writes another on-disk format than {TESTED_OXENAI}: "
    "teach mlops_assets/oxen/nodes.py to read it beside the old one, or pin oxenai below this version"
)


@pytest.fixture
def store(template: Path) -> Path:
    return template / ".oxen"


def test_the_tree_is_tagged_as_known(store: Path) -> None:
    head = Repository(store.parent).resolve("main")
    file = store / "tree" / "nodes_lmdb" / "data.mdb"
    assert file.is_file(), f"no {file.name} under tree/nodes_lmdb; {WHAT_TO_DO}"
    with Snapshot(file, b"nodes") as snapshot:
        raw = snapshot.get(int(head, 16).to_bytes(16, "little") + b"\1")
    assert raw is not None, f"no record under a commit's id; {WHAT_TO_DO}"
    (payload,) = msgpack.unpackb(raw, raw=False)
    assert list(payload) == [FORMAT], f"the tag is {list(payload)}; {WHAT_TO_DO}"


def test_blobs_are_raw_and_named_by_xxh3_128(store: Path) -> None:
    name = format(xxhash.xxh3_128_intdigest(TABLE), "x")
    blob = store / "versions" / "files" / name[:2] / name[2:] / "data"
    assert blob.is_file(), f"content is not at versions/files/<2 digits>/<rest>/data; {WHAT_TO_DO}"
    assert blob.read_bytes() == TABLE, f"content is not stored as it is; {WHAT_TO_DO}"


def test_zero_padding_of_hashes_is_understood_both_ways(repo: Repository, tmp_path: Path) -> None:
    content = next(b"%d" % n for n in range(10_000) if xxhash.xxh3_128_hexdigest(b"%d" % n).startswith("0"))
    commit = repo.commit("a hash that begins with zero", files={"zero": content})
    assert commit is not None
    blob = Tree(repo.path / ".oxen").blob(xxhash.xxh3_128_hexdigest(content))
    assert blob.is_file(), f"the blob of a hash that begins with zero is elsewhere; {WHAT_TO_DO}"
    assert repo.materialize("zero", commit.id, tmp_path / "one").read_bytes() == content
    padded = xxhash.xxh3_128_hexdigest(content)
    place = repo.path / ".oxen" / "versions" / "files" / padded[:2] / padded[2:]
    place.parent.mkdir(parents=True, exist_ok=True)
    blob.parent.rename(place)
    assert repo.materialize("zero", commit.id, tmp_path / "two").read_bytes() == content


def test_branches_and_history_are_where_they_were(store: Path) -> None:
    assert (store / "refs" / "CURRENT").is_file(), f"refs is no RocksDB any more; {WHAT_TO_DO}"
    head = Repository(store.parent).resolve("main")
    assert (store / "history" / head / "dir_hashes").is_dir(), f"history/<commit>/dir_hashes is gone; {WHAT_TO_DO}"
    config = (store / "config.toml").read_text()
    for line in ("vnode_size = 1000\n", 'merkle_node_backend = "lmdb"\n', 'kind = "local"\n'):
        assert line in config, f"config.toml lacks {line!r}; {WHAT_TO_DO}"


def test_an_unknown_tag_is_named_with_the_tested_version(repo: Repository, head: str) -> None:
    file = repo.path / ".oxen" / "tree" / "nodes_lmdb" / "data.mdb"
    file.write_bytes(file.read_bytes().replace(FORMAT.encode(), b"V9_99_9"))
    with pytest.raises(TreeFormatError, match=rf"V9_99_9.*{TESTED_OXENAI}"):
        repo.digest("", head)
