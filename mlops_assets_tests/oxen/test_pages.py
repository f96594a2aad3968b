"""The page reader against liblmdb, and against damage of every kind."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import lmdb
import pytest

from mlops_assets.oxen.errors import OxenError, PathNotFound, RevisionNotFound, StoreCorrupt, TreeFormatError
from mlops_assets.oxen.pages import Snapshot
from mlops_assets.oxen.tree import Tree


def _filled(path: Path, records: dict[bytes, bytes]) -> Path:
    with lmdb.open(str(path), max_dbs=2, map_size=1 << 26) as environment:
        database = environment.open_db(b"nodes")
        with environment.begin(write=True, db=database) as transaction:
            for key, value in records.items():
                transaction.put(key, value)
    return path / "data.mdb"


@pytest.mark.parametrize("count", [0, 1, 50, 5000])
def test_it_reads_what_liblmdb_wrote(tmp_path: Path, count: int) -> None:
    random_ = random.Random(count)
    records = {random_.randbytes(17): random_.randbytes(random_.choice([0, 1, 100, 1500, 5000])) for _ in range(count)}
    file = _filled(tmp_path / "db", records)
    with Snapshot(file, b"nodes") as snapshot:
        assert {key: snapshot.get(key) for key in records} == records
        for key in records:
            assert snapshot.get(key[:-1]) is None
            assert snapshot.get(key + b"\0") is None
        assert snapshot.get(b"") is None
    with Snapshot(file, b"other") as snapshot:
        assert snapshot.get(b"anything") is None


def test_it_reads_what_oxen_wrote(template: Path) -> None:
    place = template / ".oxen" / "tree" / "nodes_lmdb"
    with (
        lmdb.open(str(place), readonly=True, lock=False, max_dbs=2) as environment,
        environment.begin(db=environment.open_db(b"nodes", create=False)) as transaction,
    ):
        records = dict(transaction.cursor())
    assert len(records) > 10
    with Snapshot(place / "data.mdb", b"nodes") as snapshot:
        assert {key: snapshot.get(key) for key in records} == records


def test_a_snapshot_is_overtaken_by_the_second_commit_after_it(tmp_path: Path) -> None:
    file = _filled(tmp_path / "db", {b"a": b"1"})
    with Snapshot(file, b"nodes") as snapshot:
        _filled(tmp_path / "db", {b"b": b"2"})
        assert not snapshot.overtaken()
        assert snapshot.get(b"a") == b"1"
        _filled(tmp_path / "db", {b"c": b"3"})
        assert snapshot.overtaken()


def test_another_data_version_is_named(tmp_path: Path) -> None:
    file = _filled(tmp_path / "db", {b"a": b"1"})
    raw = bytearray(file.read_bytes())
    raw[20:24] = (2).to_bytes(4, "little")
    file.write_bytes(raw)
    with pytest.raises(TreeFormatError, match="data version 2"):
        Snapshot(file, b"nodes")


@pytest.mark.parametrize("size", [0, 10, 4096, 5000, 8192, 12288])
def test_a_truncated_file_is_an_error(template: Path, tmp_path: Path, size: int) -> None:
    tree, commit = _copy(template, tmp_path)
    with (tmp_path / "tree" / "nodes_lmdb" / "data.mdb").open("r+b") as stream:
        stream.truncate(size)
    with pytest.raises(StoreCorrupt, match=r"data\.mdb is damaged.*backup"):
        tree.entries(commit)


def test_random_damage_never_ends_in_anything_but_an_answer_or_a_named_error(template: Path, tmp_path: Path) -> None:
    tree, commit = _copy(template, tmp_path)
    file = tmp_path / "tree" / "nodes_lmdb" / "data.mdb"
    whole = file.read_bytes()
    outcomes = set()
    for seed in range(400):
        random_ = random.Random(seed)
        raw = bytearray(whole)
        start = random_.randrange(len(raw))
        length = random_.choice([1, 2, 8, 4096])
        raw[start : start + length] = random_.randbytes(length)
        file.write_bytes(raw[: len(raw) if seed % 2 else random_.randrange(len(raw))])
        try:
            tree.entries(commit)
            tree.log(commit)
            tree.table(commit, "table.csv")
            outcomes.add(None)
        except OxenError as error:
            outcomes.add(type(error))
    named = {StoreCorrupt, TreeFormatError, RevisionNotFound, PathNotFound, OxenError}
    assert {None, StoreCorrupt} <= outcomes <= {None, *named}


def _copy(template: Path, to: Path) -> tuple[Tree, str]:
    shutil.copytree(template / ".oxen" / "tree", to / "tree")
    (commit,) = (item.name for item in (template / ".oxen" / "history").iterdir() if len(Tree(to).log(item.name)) == 3)
    return Tree(to), commit
