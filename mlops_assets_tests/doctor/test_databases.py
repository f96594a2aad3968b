"""Databases that are damaged, of another release, or without what they name."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import dagster as dg
import pytest

from mlops_assets.doctor import databases, sqlite
from mlops_assets.doctor.examination import Examination, Finding, examination, findings
from mlops_assets.home import ensure_home, open_instance
from mlops_assets.settings import settings
from mlops_assets.tracking.runs import Tracking

pytestmark = pytest.mark.slow


@pytest.fixture
def dagster_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with a Dagster instance that knows of a materialization."""
    monkeypatch.setenv("DAGSTER_HOME", str(home / "dagster"))
    with open_instance(ensure_home(settings())) as instance:
        instance.report_runless_asset_event(dg.AssetMaterialization(["iris", "model"]))
    return home / "dagster"


@pytest.fixture
def look(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Examination]:
    monkeypatch.setenv("DAGSTER_HOME", str(home / "dagster"))
    with examination(settings()) as made:
        yield made


def execute(database: Path, statement: str) -> None:
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute(statement)


def overwrite(database: Path) -> None:
    """Damage a page, as a bad disk does; one that is in use."""
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (size,) = connection.execute("PRAGMA page_size").fetchone()
        query = "SELECT rootpage FROM sqlite_master WHERE rootpage > 0 AND tbl_name != 'alembic_version' LIMIT 1"
        (page,) = connection.execute(query).fetchone()
    with database.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xff" * size)


def replace(database: Path) -> None:
    """Put something else in its place."""
    for path in database.parent.glob(f"{database.name}-*"):
        path.unlink()
    database.write_bytes(b"no database at all" * 1000)


def test_what_is_not_made_yet_is_not_made_by_looking(tmp_path: Path) -> None:
    with examination(settings()) as look:
        for check in (databases.dagster, databases.mlflow, databases.registered_models):
            (found,) = check(look)
            assert found.result == "ok"
    assert not (tmp_path / "home").exists()


def test_sound_databases(dagster_home: Path, look: Examination, tracking: Tracking) -> None:
    tracking.experiment("iris")
    for check in (databases.dagster, databases.mlflow, databases.registered_models):
        (found,) = check(look)
        assert found.result == "ok", found


@pytest.mark.parametrize("name", ["history/runs.db", "history/runs/index.db", "schedules/schedules.db"])
@pytest.mark.parametrize("damage", [overwrite, replace])
def test_damaged_databases_of_dagster(dagster_home: Path, look: Examination, name: str, damage) -> None:
    damage(dagster_home / name)
    found = findings("Dagster", lambda: databases.dagster(look))
    assert [(one.check, one.result) for one in found] == [("Dagster", "problem")]
    assert f"{dagster_home / name} is damaged: " in found[0].found
    assert "restore it from a backup" in found[0].fix


def test_a_runs_own_database_is_read_when_looking_closely(dagster_home: Path, look: Examination) -> None:
    one = dagster_home / "history" / "runs" / "6141e7fe.db"
    one.write_bytes(b"no database at all" * 1000)
    assert [finding.result for finding in databases.dagster(look)] == ["ok"]
    look.deep = True
    (found,) = databases.dagster(look)
    assert (found.result, str(one) in found.found) == ("problem", True)


def test_large_databases_are_read_when_looking_closely(
    dagster_home: Path, look: Examination, monkeypatch: pytest.MonkeyPatch
) -> None:
    overwrite(look.here.home / "mlflow" / "mlflow.db")
    monkeypatch.setattr(databases, "LARGEST_BYTES", 1000)
    assert [finding.result for finding in databases.mlflow(look)] == ["ok"]
    look.deep = True
    assert [finding.result for finding in databases.mlflow(look)] == ["problem"]


def test_a_database_that_is_locked_for_long(look: Examination, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "WAIT_SECONDS", 0.05)
    with closing(sqlite3.connect(look.here.home / "mlflow" / "mlflow.db")) as other:
        other.execute("PRAGMA locking_mode=EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        (found,) = databases.mlflow(look)
    assert (found.result, "cannot be read now: database is locked" in found.found) == ("problem", True)
    assert "move" not in found.fix


@pytest.mark.parametrize("text", ["telemetry: {enabld: false}", "a: [b"])
def test_a_broken_dagster_yaml(dagster_home: Path, look: Examination, text: str) -> None:
    (dagster_home / "dagster.yaml").write_text(text)
    (found,) = findings("Dagster", lambda: databases.dagster(look))
    assert found.result == "problem"
    assert f"Dagster cannot start from {dagster_home} (" in found.found
    assert found.fix == "mend its dagster.yaml, or DAGSTER_HOME"


@pytest.mark.parametrize("name", ["history/runs.db", "history/runs/index.db", "schedules/schedules.db"])
def test_dagsters_schema_of_another_release(dagster_home: Path, look: Examination, name: str) -> None:
    execute(dagster_home / name, "UPDATE alembic_version SET version_num = '46b412388816'")
    (found,) = databases.dagster(look)
    assert found.result == "problem"
    assert "has schema 46b412388816, not " in found.found
    assert "`dagster instance migrate`" in found.fix


@pytest.mark.parametrize("damage", [overwrite, replace])
def test_a_damaged_database_of_mlflow(look: Examination, damage) -> None:
    damage(look.here.home / "mlflow" / "mlflow.db")
    (found,) = databases.mlflow(look)
    assert (found.result, "mlflow.db is damaged: " in found.found) == ("problem", True)


@pytest.mark.parametrize(
    ("revision", "result", "said"),
    [("ffffffffffff", "problem", "of a newer MLflow"), ("451aebb31d03", "warning", "of an older MLflow")],
)
def test_mlflows_schema_of_another_release(look: Examination, revision: str, result: str, said: str) -> None:
    execute(look.here.home / "mlflow" / "mlflow.db", f"UPDATE alembic_version SET version_num = '{revision}'")
    (found,) = databases.mlflow(look)
    assert (found.result, said in found.found) == (result, True)


def test_an_mlflow_server_that_does_not_answer(look: Examination) -> None:
    look.here.mlflow_tracking_uri = "http://127.0.0.1:9"
    (found,) = databases.mlflow(look)
    assert (found.result, found.fix) == ("problem", "start it, or mend MLFLOW_TRACKING_URI")
    assert found.found.startswith("no server answers at http://127.0.0.1:9 (")
    assert [one.result for one in databases.registered_models(look)] == ["ok"]


def test_models_without_their_files_or_their_run(look: Examination, tracking: Tracking) -> None:
    client = tracking.client
    experiment = tracking.experiment("iris")
    client.create_registered_model("iris")
    folder = look.here.home / "mlflow" / "artifacts"

    def version(name: str) -> str:
        run_id = client.create_run(experiment).info.run_id
        (folder / name).mkdir(parents=True)
        (folder / name / "MLmodel").touch()
        client.create_model_version("iris", f"mlops-home:/{name}", run_id=run_id)
        return run_id

    runs = [version(name) for name in ("one", "two", "three", "four")]
    client.set_registered_model_alias("iris", "champion", "2")
    (found,) = databases.registered_models(look)
    assert found == Finding("models", "ok", "4 versions, each with its files and its run")

    for name in ("one", "two"):
        (folder / name / "MLmodel").unlink()
    client.delete_run(runs[2])
    execute(look.here.home / "mlflow" / "mlflow.db", f"DELETE FROM runs WHERE run_uuid = '{runs[3]}'")
    found = {one.found: (one.result, one.fix) for one in databases.registered_models(look)}
    again = "`dagster asset wipe --noprompt iris/model iris/evaluation iris/champion`, `mlops run iris`"
    database = look.here.home / "mlflow" / "mlflow.db"
    assert found == {
        "the files of version 1 of iris are gone": ("warning", "delete that version in MLflow"),
        "the files of version 2 of iris (champion) are gone": (
            "problem",
            f'`eval "$(mlops env)"`, {again}: logs the stored model again',
        ),
        "the MLflow run of version 3 of iris is deleted": (
            "warning",
            f"`mlflow runs restore --run-id {runs[2]}` with MLFLOW_TRACKING_URI=sqlite:///{database}",
        ),
        "the MLflow run of version 4 of iris is gone": ("warning", "restore MLflow's database from a backup"),
    }
    client.delete_model_version("iris", "1")
    assert len(list(databases.registered_models(look))) == 3
