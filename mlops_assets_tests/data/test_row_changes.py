"""Rows of a table in two versions of a repository."""

from pathlib import Path

import pytest

from mlops_assets.data.readers import ReadError
from mlops_assets.data.row_changes import NotComparable, diff_rows
from mlops_assets.oxen.errors import PathNotFound, RevisionNotFound
from mlops_assets.oxen.repository import Repository


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    made = Repository(tmp_path / "oxen")
    made.init()
    made.commit("first", files={"data/t.csv": b"id,x\n1,a\n2,b\n3,c\n"})
    made.create_branch("dev")
    made.commit("on dev", files={"data/t.csv": b"id,x\n3,c\n2,B\n4,d\n"}, branch="dev")
    return made


def test_rows_of_two_versions(repository: Repository, tmp_path: Path) -> None:
    first = repository.resolve("main")
    for left in ("main", first):
        found = diff_rows(repository, left, "dev", "data/t.csv", "id", cache=tmp_path / "cache")
        assert (found.added.to_list(), found.removed.to_list()) == (["4"], ["1"])
        assert found.changed.rows() == [("2", "b", "B")]
        assert found.per_column == {"x": 1}
    turned = diff_rows(repository, "dev", "main", "data/t.csv", "id", cache=tmp_path / "cache")
    assert (turned.added.to_list(), turned.removed.to_list()) == (["1"], ["4"])


def test_what_cannot_be_compared_is_told_before_it_is_read(repository: Repository, tmp_path: Path) -> None:
    def compare(left: str = "main", path: str = "data/t.csv", key: str = "id", largest: int = 100) -> None:
        diff_rows(repository, left, "dev", path, key, cache=tmp_path / "cache", largest=largest)

    with pytest.raises(NotComparable, match=r"data/t\.csv has 0 MB in .*14 times"):
        compare(largest=16)
    assert not (tmp_path / "cache").exists()
    with pytest.raises(NotComparable, match="no key column 'nothing'"):
        compare(key="nothing")
    with pytest.raises(PathNotFound):
        compare(path="data/other.csv")
    with pytest.raises(RevisionNotFound):
        compare(left="nowhere")
    with pytest.raises(ReadError):
        compare(path="data")
