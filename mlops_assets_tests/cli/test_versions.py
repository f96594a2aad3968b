"""Branches, damage and size of a pipeline's repository, from the command line."""

import pytest

from mlops_assets.oxen.repository import Repository
from mlops_assets.settings import settings
from mlops_assets_tests.cli.conftest import Mlops


@pytest.fixture
def repository(mlops: Mlops) -> Repository:
    assert mlops("data", "import", "iris").code == 0
    return settings().repository("iris")


def test_a_branch_is_made_merged_and_deleted(mlops: Mlops, repository: Repository) -> None:
    assert "created branch field at " in mlops("data", "branch", "iris", "field").out
    repository.commit("notes", files={"notes.txt": b"hello"}, branch="field")
    listed = mlops("data", "branches", "iris").out
    assert "main (followed)" in listed
    assert "notes" in listed
    refused = mlops("data", "branch", "iris", "field", "--delete")
    assert (refused.code, "field" in refused.err) == (1, True)
    merged = mlops("data", "merge", "iris", "field")
    assert (merged.code, "merged field into main: " in merged.out) == (0, True)
    assert repository.diff(repository.resolve("field"), repository.resolve("main")) == ((), (), ())
    assert "nothing to merge" in mlops("data", "merge", "iris", "field").out
    assert "deleted branch field" in mlops("data", "branch", "iris", "field", "--delete").out
    assert [one.name for one in repository.branches()] == ["main"]


def test_a_conflict_is_one_sentence_and_changes_nothing(mlops: Mlops, repository: Repository) -> None:
    repository.create_branch("field")
    repository.commit("theirs", files={"iris.csv": b"id,species\n1,a\n"}, branch="field")
    ours = repository.commit("ours", files={"iris.csv": b"id,species\n1,b\n"})
    done = mlops("data", "merge", "iris", "field")
    assert done.code == 1
    assert "have each changed iris.csv in their own way" in done.err
    assert done.err.count("\n") == 1
    assert ours is not None
    assert repository.resolve("main") == ours.id


def test_damage_is_found_and_healed_from_the_cache(mlops: Mlops, repository: Repository) -> None:
    done = mlops("data", "fsck", "iris")
    assert (done.code, "1 files" in done.out, "are whole" in done.out) == (0, True, True)
    repository.materialize("iris.csv", repository.resolve("main"), settings().home / "cache")
    (blob,) = (repository.path / ".oxen" / "versions").rglob("data")
    blob.chmod(0o644)
    blob.write_bytes(b"rubbish")
    done = mlops("data", "fsck", "iris")
    assert done.code == 1
    assert "iris.csv" in done.out
    assert "`mlops data fsck --heal`" in done.out
    done = mlops("data", "fsck", "iris", "--heal")
    assert (done.code, "1 of 1 lost files are back" in done.out) == (0, True)
    assert mlops("data", "fsck", "iris", "--history").code == 0


def test_growth_and_cleanup(mlops: Mlops, repository: Repository) -> None:
    repository.create_branch("field")
    repository.commit("large", files={"large.bin": bytes(300_000)}, branch="field")
    assert "nothing to remove" in mlops("data", "cleanup", "iris", "--hours", "0").out
    repository.delete_branch("field", force=True)
    grown = mlops("data", "growth", "iris")
    assert (grown.code, "300.0 kB" in grown.out) == (0, True)
    cleaned = mlops("data", "cleanup", "iris", "--hours", "0")
    assert "contents that no commit refers to: 1 files, 300.0 kB" in cleaned.out
    assert mlops("data", "fsck", "iris", "--history").code == 0
    assert "no Oxen repository" in mlops("data", "growth", "digits").err
