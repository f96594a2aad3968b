"""SQLite's databases: copied while others write them, and looked at.

Belongs here: single files. Not here: which there are (`contents.py`), and their order (`snapshot.py`).
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final

from mlops_assets.backup.errors import BackupError

WAIT_SECONDS: Final = 60.0
"""How long to wait for a writer: one that holds a database longer than this is dead or mad."""


def copy(source: Path, target: Path) -> bool:
    """Copy a database as of one moment; False when it is not there any more.

    Raises:
        BackupError: It cannot be read, or the copy cannot be written.
    """
    try:
        # A connection that may write removes its files when it closes; one that may not would leave two beside each.
        uri = f"{source.absolute().as_uri()}?mode=rw"
        with (
            closing(sqlite3.connect(uri, uri=True, timeout=WAIT_SECONDS)) as one,
            closing(sqlite3.connect(target)) as two,
        ):
            two.execute("PRAGMA synchronous=OFF")  # it is read again before anything rests on it
            one.backup(two)
    except sqlite3.Error as error:
        if not source.exists():
            return False
        raise BackupError(f"{source} cannot be copied ({error}); `mlops doctor` tells more") from None
    return True


def flaw(database: Path) -> str:
    """What SQLite finds wrong with a database; empty when it is sound."""
    try:
        with closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=rw", uri=True)) as connection:
            said = str(connection.execute("PRAGMA quick_check(1)").fetchone()[0])
    except sqlite3.Error as error:
        return str(error)
    return "" if said == "ok" else " ".join(said.split())


def revision(database: Path) -> str:
    """The revision of its schema; empty where it has none."""
    try:
        with closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=rw", uri=True)) as connection:
            row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    except sqlite3.Error:
        return ""
    return str(row[0]) if row else ""
