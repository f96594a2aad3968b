import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from mlops_assets.tracking.runs import Tracking
from mlops_assets.tracking.store import TrackingError, ensure_store, may_have_open_runs

CREATE = """
import sys, pathlib
from mlops_assets.tracking.store import ensure_store
print(ensure_store(pathlib.Path(sys.argv[1])))
"""


def test_ready_store_is_named_without_importing_mlflow(home: Path):
    code = f"{CREATE}assert 'mlflow' not in sys.modules and 'sqlalchemy' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code, str(home)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"sqlite:///{home}/mlflow/mlflow.db"


@pytest.mark.slow
def test_four_processes_create_one_store(tmp_path: Path):
    home = tmp_path / "neu und leer"
    (home / "mlflow").mkdir(parents=True)
    (home / "mlflow" / "mlflow.db.part").write_bytes(b"left by a process that was killed")
    command = [sys.executable, "-W", "error", "-c", CREATE, str(home)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    results = [(*process.communicate(timeout=300), process.returncode) for process in processes]
    assert results == [(f"sqlite:///{home}/mlflow/mlflow.db\n", "", 0)] * 4
    with sqlite3.connect(home / "mlflow" / "mlflow.db") as connection:
        assert connection.execute("SELECT artifact_location FROM experiments").fetchall() == [("mlops-home:/0",)]
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


@pytest.mark.slow
def test_older_schema_is_migrated_and_kept(tmp_path: Path):
    database = tmp_path / "mlflow" / "mlflow.db"
    database.parent.mkdir()
    before, head = _older_database(database)
    ensure_store(tmp_path)
    assert _revision(database) == head
    (backup,) = database.parent.glob("mlflow.db.before-*")
    assert _revision(backup) == before
    assert json.loads((database.parent / "schema.json").read_text())["revision"] == head


@pytest.mark.slow
def test_newer_schema_is_refused_in_a_sentence(home: Path):
    database = home / "mlflow" / "mlflow.db"
    with sqlite3.connect(database) as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'feedbeef'")
    connection.close()
    with pytest.raises(TrackingError, match=r"cannot be brought to MLflow .*upgrade mlflow if a newer one wrote it\.$"):
        ensure_store(home)
    assert not list(database.parent.glob("mlflow.db.before-*"))


def test_unwritable_home(tmp_path: Path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(TrackingError, match=r"cannot be kept under .*/file/home .*set MLOPS_HOME to a folder"):
        ensure_store(tmp_path / "file" / "home")


@pytest.mark.parametrize("content", [b"", b"no database at all, but long enough to be taken for one" * 20])
def test_something_else_in_the_database_s_place(home: Path, content: bytes):
    for leftover in home.joinpath("mlflow").glob("mlflow.db-*"):
        leftover.unlink()
    (home / "mlflow" / "mlflow.db").write_bytes(content)
    with pytest.raises(TrackingError, match="is no MLflow database"):
        ensure_store(home)


def test_home_that_no_uri_can_carry(tmp_path: Path):
    with pytest.raises(TrackingError, match="choose a home without"):
        ensure_store(tmp_path / "50%")


def test_open_runs_are_seen_without_mlflow(home: Path, tracking: Tracking, tmp_path: Path):
    assert not may_have_open_runs(tmp_path / "nowhere")
    assert not may_have_open_runs(home)
    with tracking.training_run(experiment="iris", name="fit", params={}, tags={}):
        assert may_have_open_runs(home)
    assert not may_have_open_runs(home)
    (home / "mlflow" / "mlflow.db").write_bytes(b"x" * 5000)
    assert may_have_open_runs(home)


def _older_database(database: Path) -> tuple[str, str]:
    """MLflow's database as the version before the newest migration left it, and both revisions."""
    from alembic import command
    from alembic.script import ScriptDirectory
    from mlflow.store.db.utils import _get_alembic_config, create_sqlalchemy_engine
    from mlflow.store.tracking.dbmodels.initial_models import Base

    uri = f"sqlite:///{database}"
    config = _get_alembic_config(uri)
    script = ScriptDirectory.from_config(config)
    head = script.get_current_head()
    before = script.get_revision(head).down_revision
    engine = create_sqlalchemy_engine(uri)
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, before)
    engine.dispose()
    return before, head


def _revision(database: Path) -> str:
    connection = sqlite3.connect(database)
    ((revision,),) = connection.execute("SELECT version_num FROM alembic_version").fetchall()
    connection.close()
    return revision
