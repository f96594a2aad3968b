"""Looking into SQLite databases that other processes write at the same time."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final

WAIT_SECONDS: Final = 5.0
"""How long to wait for somebody who has the file locked: a writer is done in milliseconds."""


@contextmanager
def reading(database: Path) -> Iterator[sqlite3.Connection]:
    """A connection that cannot write, and that waits for a writer."""
    with closing(
        sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True, timeout=WAIT_SECONDS)
    ) as connection:
        yield connection


def rows(database: Path, query: str, *values: object) -> list[tuple[Any, ...]]:
    """All rows that a query finds.

    Raises:
        sqlite3.Error: The file is no database, is damaged, or has other tables.
    """
    with reading(database) as connection:
        return connection.execute(query, values).fetchall()
