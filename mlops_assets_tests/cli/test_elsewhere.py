"""Commands about a pipeline that another code location has: its repository and its ledger are in another home."""

from pathlib import Path

import pytest

from mlops_assets.pipeline import pipeline_folders
from mlops_assets.settings import settings
from mlops_assets_tests.cli.conftest import Mlops

SAID = "iris is at the code location 'mlops_assets'; run this command on its host"


@pytest.fixture(autouse=True)
def _on_another_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLOPS_LOCATION", "gpu")
    settings.cache_clear()


@pytest.mark.parametrize(
    "command",
    [
        "run iris",
        "judge iris 1",
        "promote iris 1 --reason because",
        "rollback iris --reason because",
        "anchor iris",
        "anchor iris 1 --reason because",
        "at iris 2026-11-21T10:00",
        "ledger show iris",
        "ledger verify iris",
        "ledger clear iris 1 --reason because",
        "data import iris",
        "data commit iris iris.csv -m more",
        "data log iris",
        "data show iris",
        "data diff iris",
        "data branches iris",
        "data branch iris other",
        "data merge iris other",
        "data incoming iris iris.csv",
        "data fsck iris",
        "data growth iris",
        "data cleanup iris",
    ],
)
def test_what_is_about_its_home_is_refused(mlops: Mlops, command: str, tmp_path: Path) -> None:
    (tmp_path / "iris.csv").touch()
    told = mlops(*command.replace("iris.csv", str(tmp_path / "iris.csv")).split())
    assert (told.code, told.out, told.err) == (1, "", f"error: {SAID}\n")
    assert not [name for name in ("oxen", "ledger", "mlflow") if (tmp_path / "home" / name).exists()]


def test_what_is_about_all_leaves_it_out(mlops: Mlops, home: Path) -> None:
    told = mlops("ledger", "verify")
    assert (told.code, told.err) == (0, "")
    assert told.out.splitlines() == [
        f"{folder.name} is left out: {SAID.replace('iris', folder.name)}" for folder in pipeline_folders()
    ]
    assert not (home / "ledger").exists()


def test_status_says_where_it_is(mlops: Mlops) -> None:
    told = mlops("status")
    assert (told.code, told.err) == (0, "")
    assert told.out.count("elsewhere: code location 'mlops_assets' has it") == len(pipeline_folders())
    told = mlops("stale")
    assert (told.code, told.out, told.err) == (0, "", "")
