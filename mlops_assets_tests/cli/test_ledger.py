"""`mlops ledger`, `mlops anchor` and `mlops at`, by the real command, over a real ledger, registry and event log."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import dagster as dg
import numpy as np
import pytest

from mlops_assets.gate.budget import Budget, Looks
from mlops_assets.home import ensure_home, open_instance
from mlops_assets.provenance import LEDGER_HEAD, asset_key
from mlops_assets.registry import aliases
from mlops_assets.registry.champion import Champions
from mlops_assets.registry.ledger import Ledger
from mlops_assets.settings import Settings
from mlops_assets.tracking import tags as keys
from mlops_assets.tracking.runs import Tracking
from mlops_assets_tests.cli.conftest import Mlops
from mlops_assets_tests.mlflow_fixtures import close_stores
from mlops_assets_tests.registry.test_aliases import logged_model


@pytest.fixture(scope="module")
def promoted(store_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home where version 1 was promoted, then 2, which was rolled back; Dagster keeps the heads of the promotions."""
    place = tmp_path_factory.mktemp("promoted")
    home = Path(shutil.copytree(store_template, place / "home"))
    tracking = Tracking.embedded(home)
    made = Champions(Ledger(home / "ledger", "iris"), tracking, "iris", "champion")
    uri = logged_model(tracking, place)[1]
    for digest in "ab":
        tags = {keys.MODEL_DIGEST: digest, keys.RECIPE: f"recipe {digest}"}
        aliases.register(tracking, name="iris", model_uri=uri, tags=tags)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAGSTER_HOME", str(home / "dagster"))
        with open_instance(ensure_home(Settings(home=home))) as instance:
            for version in (1, 2):
                made.move(version, how="gate", actor="sensor", reason=f"[{version}] is better", dagster_run="7f3a")
                head = {LEDGER_HEAD: made.ledger.head}
                told = dg.AssetMaterialization(asset_key("iris", "champion"), metadata=head)
                instance.report_runless_asset_event(told)
    made.rollback(actor="ada", reason="bad Tuesday")
    close_stores()
    return home


@pytest.fixture
def champions(promoted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Champions]:
    """A copy of that home."""
    home = Path(shutil.copytree(promoted, tmp_path / "home"))
    monkeypatch.setenv("DAGSTER_HOME", str(home / "dagster"))
    yield Champions(Ledger(home / "ledger", "iris"), Tracking.embedded(home), "iris", "champion")
    close_stores()


def test_a_pipeline_without_a_champion(mlops: Mlops, home: Path) -> None:
    assert "the ledger of iris has no entries yet" in mlops("ledger", "show", "iris").out
    assert json.loads(mlops("ledger", "show", "iris", "--json").out) == []
    assert "none: iris never had a champion" in mlops("anchor", "iris").out
    told = mlops("at", "iris", "2026-11-21T10:00")
    assert (told.code, told.out) == (
        0,
        "no version of iris answered at 2026-11-21 10:00:00, and none had before\n",
    )
    assert json.loads(mlops("at", "iris", "2026-11-21T10:00", "--json").out) is None
    assert "iris: 0 entries are as they were written" in mlops("ledger", "verify").out
    assert mlops("ledger", "show", "nobody").code == 1


def test_show_lists_what_happened(champions: Champions, mlops: Mlops) -> None:
    rows = Looks.row_ids(np.arange(50))
    Looks(champions.ledger).charge("why not", rows, Budget(0.95, 3), {"challenger": 7})
    told = mlops("ledger", "show", "iris")
    assert told.code == 0, told.err
    for words in ("rollback", "[1] is better", "barred", "bad Tuesday", "7       │"):
        assert words in told.out
    last = mlops("ledger", "show", "iris", "-n", "1", "--json")
    (entry,) = json.loads(last.out)
    assert (entry["number"], entry["kind"], entry["decision"]) == (8, "look", "why not")
    assert entry["before"] == champions.ledger.records()[-2].hash


def test_verify_proves_the_ledger_untouched(champions: Champions, mlops: Mlops) -> None:
    told = mlops("ledger", "verify", "iris")
    assert (told.code, told.out) == (0, "iris: 7 entries are as they were written\n")
    path = champions.ledger.path
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"bad Tuesday", b"bad Sunday!", 1))
    told = mlops("ledger", "verify", "iris")
    assert told.code == 1
    assert "entry 5 (line 5) was changed after it was written" in told.out
    assert "1 problem(s); a copy of the ledger's folder" in told.err
    path.write_bytes(b"".join(whole.splitlines(keepends=True)[:3]))
    told = mlops("ledger", "verify")
    assert told.code == 1
    assert "ends with entry 3, though MLflow has seen entry 7" in told.out
    assert "ends with entry 3, though Dagster has seen entry 4" in told.out


def test_verify_finds_what_was_written_anew_and_what_lies_beside(champions: Champions, mlops: Mlops) -> None:
    Tracking.embedded(champions.ledger.folder.parent).client.delete_registered_model_tag("iris", "mlops.ledger_head")
    facts = [(record.kind, record.facts) for record in champions.ledger.records()]
    champions.ledger.path.unlink()
    for kind, told in facts:
        champions.ledger.append(kind, told)
    told = mlops("ledger", "verify", "iris")
    assert "entry 4 is not the one that Dagster has seen" in told.out
    assert "entry 2 is not the one that Dagster, 1 before the newest, has seen" in told.out


def test_verify_looks_at_the_rows_of_looks_too(champions: Champions, mlops: Mlops) -> None:
    Looks(champions.ledger).charge("q", Looks.row_ids(np.arange(50)), Budget(0.95, 3), {})
    (rows,) = (champions.ledger.folder / "rows").glob("*.npy")
    rows.write_bytes(b"")
    told = mlops("ledger", "verify", "iris")
    assert (told.code, "the rows of a look, is damaged" in told.out) == (1, True)


def test_a_bar_is_cleared(champions: Champions, mlops: Mlops) -> None:
    told = mlops("ledger", "clear", "iris", 2, "--reason", " ")
    assert (told.code, "say why with --reason" in told.err) == (1, True)
    assert set(champions.barred()) == {2}
    told = mlops("ledger", "clear", "iris", 2, "--reason", "mended")
    assert told.out == "version 2 of iris may be promoted again (entry 8)\n"
    assert champions.barred() == {}
    told = mlops("ledger", "clear", "iris", 2, "--reason", "mended")
    assert (told.code, "version 2 of iris is not barred" in told.err) == (1, True)


def test_the_anchor_is_shown_and_pinned(champions: Champions, mlops: Mlops) -> None:
    assert mlops("anchor", "iris").out == "version 1\n"
    assert "say why with --reason" in mlops("anchor", "iris", 2).err
    assert mlops("anchor", "iris", 2, "--reason", "audit").out == "version 2 is the anchor of iris (entry 8)\n"
    assert mlops("anchor", "iris").out == "version 2\n"
    assert "iris has no version 9" in mlops("anchor", "iris", 9, "--reason", "audit").err


def test_who_answered_when_and_why(champions: Champions, mlops: Mlops) -> None:
    moves = [record for record in champions.ledger.records() if record.kind == "moved"]
    told = mlops("at", "iris", moves[1].at.isoformat())
    assert told.code == 0, told.err
    for words in ("2", "[2] is better", "gate, by sensor", "7f3a", str(moves[1].facts["run_id"]), "recipe b"):
        assert f"│ {words}" in told.out
    local = datetime.now().isoformat()  # noqa: DTZ005  what people type
    found = json.loads(mlops("at", "iris", local, "--json").out)
    assert (found["version"], found["how"], found["reason"]) == (1, "rollback", "bad Tuesday")
    before = moves[0].at - timedelta(seconds=1)
    assert "no version of iris answered at" in mlops("at", "iris", before.isoformat()).out
    told = mlops("at", "iris", "2999-01-01")
    assert (told.code, "2999-01-01 00:00:00 is still to come" in told.err) == (1, True)
    told = mlops("at", "iris", "Tuesday")
    assert (told.code, "'Tuesday' is no time; write one such as 2026-11-21T10:00" in told.err) == (1, True)
