"""MLflow's embedded store: one SQLite database under the platform's home, artifacts beside it.

Belongs here: creating, checking and migrating that database, and where things lie. Not here: what is written into it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sqlite3
import subprocess
import sys
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Final

from filelock import FileLock, Timeout

import mlops_assets
from mlops_assets.errors import MlopsError

if TYPE_CHECKING:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

ARTIFACT_ROOT: Final = "mlops-home:/"
"""MLflow stores artifact locations as absolute URIs; this scheme is resolved anew each time, so a home can be moved."""

LOCK_SECONDS: Final = 120
"""Creating the database takes 2 to 5 s on a slow machine; whoever waits longer than this waits for a dead disk."""


class TrackingError(MlopsError):
    """MLflow, or its store, cannot do what was asked."""


def default_home() -> Path:
    """$MLOPS_HOME, or `.mlops` in the directory above the package."""
    given = os.environ.get("MLOPS_HOME")
    return Path(given).absolute() if given else Path(mlops_assets.__file__).absolute().parents[1] / ".mlops"


def artifact_directory(tracking_uri: str | None) -> Path:
    """Where `mlops-home:/` is: beside the SQLite database that `tracking_uri` names, else under the default home.

    Args:
        tracking_uri: the store that knows the artifact, when the caller has one; a server's address tells nothing.
    """
    database = (tracking_uri or "").removeprefix("sqlite:///")
    if database != tracking_uri and Path(database).is_absolute():
        return Path(database).parent / "artifacts"
    return default_home() / "mlflow" / "artifacts"


def ensure_store(home: Path) -> str:
    """The tracking URI of the database under `home`, created or migrated where needed.

    Several processes may call this at once; a database that is there and current costs a few milliseconds and does not
    import MLflow.

    Args:
        home: the platform's home; the database is `mlflow/mlflow.db` in it.

    Returns:
        `sqlite:////absolute/path/mlflow.db`.

    Raises:
        TrackingError: the place cannot be written, or holds something else than a database this MLflow can use.
    """
    database = home.absolute() / "mlflow" / "mlflow.db"
    if set("?#%") & set(str(database)):
        raise TrackingError(f"MLflow cannot keep a database under {home}: choose a home without '?', '#' or '%' in it.")
    try:
        if not _is_current(database):
            database.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(database.with_name("mlflow.db.lock"), timeout=LOCK_SECONDS):
                if not _is_current(database):
                    _make_current(database)
    except Timeout:
        message = f"Another process has held {database}.lock for {LOCK_SECONDS} s: end it, then retry."
        raise TrackingError(message) from None
    except OSError as exc:
        raise TrackingError(
            f"MLflow's database cannot be kept under {home} ({exc.strerror or exc}): "
            "set MLOPS_HOME to a folder that you may write."
        ) from exc
    return _uri(database)


def may_have_open_runs(home: Path) -> bool:
    """Whether the embedded store holds a RUNNING run; in doubt, yes.

    Reads the database directly, in about a millisecond: a sensor asks this before it pays for a process with MLflow.
    """
    database = home.absolute() / "mlflow" / "mlflow.db"
    if not database.is_file():
        return False
    try:
        with contextlib.closing(_connect(database)) as connection:
            query = "SELECT 1 FROM runs WHERE status = 'RUNNING' AND lifecycle_stage = 'active' LIMIT 1"
            return connection.execute(query).fetchone() is not None
    except sqlite3.Error:
        return True


def sqlalchemy_store() -> type[SqlAlchemyStore]:
    """MLflow's database store, imported without the warning that SQLAlchemy 2.1 has about MLflow's own mappings."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The ``noload`` loader strategy is deprecated", DeprecationWarning)
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
    return SqlAlchemyStore


@contextlib.contextmanager
def quiet(*names: str) -> Iterator[None]:
    """Hold back the loggers' INFO lines, which tell a user nothing."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _uri(database: Path) -> str:
    return f"sqlite:///{database}"


def _connect(database: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True, timeout=5)


def _revision(database: Path) -> str:
    try:
        with contextlib.closing(_connect(database)) as connection:
            row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    except sqlite3.Error as exc:
        raise TrackingError(f"{database} is no MLflow database ({exc}): move it away, then retry.") from exc
    return str(row[0]) if row else ""


def _is_current(database: Path) -> bool:
    """Whether the database has the schema that the stamp beside it records for the installed MLflow."""
    if not database.is_file():
        return False
    try:
        stamp = json.loads(_stamp(database).read_text())
    except (OSError, ValueError):
        return False
    return bool(stamp == {"mlflow": version("mlflow"), "revision": _revision(database)})


def _stamp(database: Path) -> Path:
    return database.with_name("schema.json")


def _make_current(database: Path) -> None:
    if database.exists():
        _upgrade(database)
    else:
        _create(database)
    aside = _stamp(database).with_suffix(".part")
    aside.write_text(json.dumps({"mlflow": version("mlflow"), "revision": _revision(database)}))
    aside.replace(_stamp(database))


def _create(database: Path) -> None:
    aside = database.with_name("mlflow.db.part")
    aside.unlink(missing_ok=True)
    with quiet("alembic", "mlflow.store.db.utils"):
        store = sqlalchemy_store()(_uri(aside), ARTIFACT_ROOT)
        store.engine.dispose()
        store._engine_map.pop(_uri(aside))  # noqa: SLF001  MLflow keeps an engine per URI, and this file is renamed
    with contextlib.closing(sqlite3.connect(aside)) as connection:
        # Write-ahead logging, a lasting property of the file: a reader (the UI) never blocks a training that logs.
        connection.execute("PRAGMA journal_mode=WAL")
    aside.replace(database)


def _upgrade(database: Path) -> None:
    """Raise an older schema to the installed MLflow's; a copy of the old database stays beside it."""
    found = _revision(database)
    backup = database.with_name(f"mlflow.db.before-{version('mlflow')}")
    with contextlib.closing(_connect(database)) as old, contextlib.closing(sqlite3.connect(backup)) as copy:
        old.backup(copy)
    command = [sys.executable, "-m", "mlflow", "db", "upgrade", _uri(database)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    unchanged = _revision(database) == found
    if unchanged:
        backup.unlink()
    if done.returncode != 0:
        cause = (done.stderr.strip().splitlines() or ["no message"])[-1]
        remedy = "upgrade mlflow if a newer one wrote it" if unchanged else f"put {backup.name} back in its place"
        raise TrackingError(f"{database} cannot be brought to MLflow {version('mlflow')} ({cause}): {remedy}.")
