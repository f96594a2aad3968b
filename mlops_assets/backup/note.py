"""When the newest backup was made: left in the home by `mlops backup`, for those who watch over it.

Belongs here: the note alone. It is in no archive: a restored home was not backed up yet.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from mlops_assets.backup.errors import BackupError

NOTE: Final = "backed-up"
OLDEST: Final = timedelta(days=3)
"""Backups are made every night, and one that failed once is no reason to wake anybody."""


def leave(home: Path, made: datetime) -> None:
    """Note that an archive holds the home as of a moment.

    Raises:
        BackupError: The home cannot be written; the archive is whole nevertheless.
    """
    aside = home / f"{NOTE}.tmp"
    try:
        aside.write_text(made.isoformat(), encoding="ascii")
        aside.replace(home / NOTE)
    except OSError as error:
        raise BackupError.of("the archive is whole, but noting it", error) from None


def last(home: Path) -> datetime | None:
    """As of when the newest archive holds the home; None where none was made."""
    with suppress(FileNotFoundError, ValueError):
        return datetime.fromisoformat((home / NOTE).read_text(encoding="ascii")).astimezone(UTC)
    return None
