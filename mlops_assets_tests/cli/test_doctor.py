"""`mlops doctor`, by the real command."""

import json
import re
from pathlib import Path

import pytest

from mlops_assets.cli import console
from mlops_assets.doctor import checks
from mlops_assets.doctor.server import QUICK
from mlops_assets.settings import settings
from mlops_assets.store import Store
from mlops_assets.upkeep import entries
from mlops_assets_tests.cli.conftest import Mlops
from mlops_assets_tests.loop import Loop

MARKS = "│┃"


@pytest.fixture(autouse=True)
def _wide(mlops: Mlops, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long a path is, its line is not folded."""
    monkeypatch.setattr(console.out, "_width", 1000)


def table(text: str) -> dict[str, str]:
    """The results by check, the worst of each."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in re.split(f"[{MARKS}]", line)]
        if len(cells) > 3 and cells[2] in {"ok", "warning", "problem"}:
            found[cells[1]] = max(found.get(cells[1], ""), cells[2], key=["", "ok", "warning", "problem"].index)
    return found


def test_a_fresh_home_is_sound(mlops: Mlops) -> None:
    told = mlops("doctor")
    assert (told.code, told.err) == (0, "")
    expected = {"Python", "packages", "settings", "temporary files", "pipelines", "home", "file locks", "clock"}
    expected |= {"Dagster", "MLflow", "models", "Oxen", "store", "runs", "MLflow's runs", "locks", "MLflow's port"}
    expected |= {"Dagster's port", "the model server's port", "the model server's gRPC port"}
    assert set(table(told.out)) == expected
    assert "problem" not in told.out


def test_what_was_found_for_machines(mlops: Mlops) -> None:
    told = mlops("doctor", "--json")
    found = json.loads(told.out)
    assert {"check", "result", "found", "fix"} == set(found[0])
    assert {one["result"] for one in found} <= {"ok", "warning"}


def test_servers_are_looked_at_where_they_are_set_up(
    mlops: Mlops, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in {**QUICK, "MLOPS_SERVE_URL": "http://127.0.0.1:9", "MLOPS_SECRETS": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    told = mlops("doctor")
    found = table(told.out)
    assert (told.code, found["model server"], found["rights"], found["settings"]) == (1, "problem", "ok", "ok")
    assert "the model server's port" not in found
    assert "no server answers at http://127.0.0.1:9" in told.out


def test_a_warning_is_no_failure(mlops: Mlops, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLOPS_STOR", "/elsewhere")
    told = mlops("doctor")
    assert (told.code, table(told.out)["settings"]) == (0, "warning")
    assert "did you mean MLOPS_STORE?" in told.out


def test_settings_that_cannot_be_used_end_it_early(mlops: Mlops, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLOPS_DAGSTER_PORT", "many")
    settings.cache_clear()
    told = mlops("doctor")
    assert (told.code, table(told.out)["settings"]) == (1, "problem")
    assert "MLOPS_DAGSTER_PORT is 'many'" in told.out
    assert "correct it in the environment or in .env" in told.out


def test_a_home_that_cannot_be_used_ends_it_early(
    mlops: Mlops, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MLOPS_HOME", str(tmp_path / "file" / "home"))
    settings.cache_clear()
    told = mlops("doctor")
    found = table(told.out)
    assert (told.code, found["home"], found["pipelines"]) == (1, "problem", "ok")
    assert "cannot be written (Not a directory)" in told.out
    assert "store" not in found


def test_a_check_that_fails_is_a_line_and_no_traceback(mlops: Mlops, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> list[object]:
        raise OSError(5, "Input/output error", "[/red]disk")

    monkeypatch.setattr(checks, "CHECKS", {**checks.CHECKS, "Oxen": broken})
    told = mlops("doctor")
    found = table(told.out)
    assert (told.code, found["Oxen"], found["store"]) == (1, "problem", "ok")
    assert "could not be checked: OSError: [Errno 5] Input/output error: '[/red]disk'" in told.out


# Observable source assets are beta in Dagster 1.13; `dg.load_from_defs_folder` silences the same warnings.
@pytest.mark.filterwarnings("ignore:(Parameter|Function) `(execution_type|observable_source_asset):dagster.BetaWarning")
@pytest.mark.filterwarnings("ignore:Property `OpDefinition.version`:DeprecationWarning")
@pytest.mark.slow
def test_a_home_in_use_is_sound_until_something_breaks(settled: Loop, mlops: Mlops) -> None:
    told = mlops("doctor", "--deep")
    results = {result for check, result in table(told.out).items() if not check.endswith("port")}
    assert results == {"ok"}, told.out
    assert (told.code, told.err) == (0, "")
    (slot,) = entries(Store(settled.here.store_url), "iris/model")
    for file in Path(slot.url).glob("*/weights.safetensors"):
        file.write_bytes(file.read_bytes()[::-1])
    assert mlops("doctor").code == 0, "nothing is hashed in passing"
    told = mlops("doctor", "--deep")
    assert (told.code, table(told.out)["store"]) == (1, "problem")
    assert "`mlops store verify --repair`, then `mlops run iris`" in told.out
