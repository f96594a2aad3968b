from pathlib import Path

from mlops_assets.oxen.repository import Repository
from mlops_assets.settings import settings
from mlops_assets_tests.cli.conftest import Mlops


def repository() -> Repository:
    return settings().repository("iris")


def test_files_of_one_name_are_refused_before_any_is_lost(mlops: Mlops, tmp_path: Path) -> None:
    repository().init()
    repository().commit("first", files={"iris.csv": b"id\n"})
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "x.csv").write_text(f"id\n{place}\n")
    first, second = tmp_path / "a" / "x.csv", tmp_path / "b" / "x.csv"

    refused = mlops("data", "incoming", "iris", first, second)

    assert refused.code == 1
    assert refused.err == f"error: {first} and {second} would both become incoming/x.csv; rename one of them\n"
    assert len(repository().log()) == 1
    second = second.rename(second.with_name("y.csv"))
    assert mlops("data", "incoming", "iris", first, second).code == 0
    found = repository().entries("incoming", repository().resolve("main"))
    assert [repository().read(entry) for entry in found] == [b"id\na\n", b"id\nb\n"]
