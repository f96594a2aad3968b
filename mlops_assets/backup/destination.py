"""Where an archive goes: written aside, and in its place only when it is whole.

Belongs here: refusing a place, writing aside, rotation. Not here: what is written.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Final

from rich.filesize import decimal

from mlops_assets.backup.archive import About, compressed
from mlops_assets.backup.contents import Places
from mlops_assets.backup.errors import BackupError
from mlops_assets.registry.ledger import sync_folder

_DATED: Final = "mlops-*.tar.zst"
_FILE_BYTES: Final = 1024  # what a file of an archive takes beside its content: a header, padding, its line at the end


def chosen(given: Path, places: Places) -> Path:
    """The file that a backup is to be: the one given, or one named by the time in the folder given.

    Raises:
        BackupError: It would lie in what it is a backup of, or there is no such folder.
    """
    path = given.absolute()
    if path.is_dir():
        path /= f"mlops-{datetime.now(UTC):%Y-%m-%dT%H%M%SZ}.tar.zst"
    if not path.parent.is_dir():
        raise BackupError(f"there is no folder {path.parent}; make it, or choose another place")
    for root in places.roots.values():
        if path.resolve().is_relative_to(root.resolve()):
            raise BackupError(f"{path} lies in {root}, of which it is to be a backup; choose a place outside of it")
    return path


def require_room(path: Path, about: About) -> None:
    """Check that an archive has room, unless compression makes unknown what it takes.

    Raises:
        BackupError: It has not.
    """
    size = about.bytes + about.files * _FILE_BYTES
    free = shutil.disk_usage(path.parent).free
    if path.suffix == ".tar" and size > free:
        raise BackupError(
            f"{path.parent} has room for {decimal(free)}, and the archive takes {decimal(size)}; free space, choose "
            "another place, or a name that ends with .tar.zst"
        )


@contextmanager
def writing(path: Path) -> Iterator[IO[bytes]]:
    """A stream that becomes the file when all of it is on disk, compressed as its name says; else nothing is left.

    Raises:
        BackupError: It cannot be written.
    """
    aside = path.with_name(f".{path.name}.part")
    try:
        try:
            with compressed(aside.open("wb"), path.name) as stream:
                yield stream
            with aside.open("rb") as written:
                os.fsync(written.fileno())
            aside.replace(path)
            sync_folder(path.parent)
        finally:
            aside.unlink(missing_ok=True)
    except OSError as error:
        raise BackupError.of(f"writing {path}", error) from None


def rotate(folder: Path, keep: int) -> list[Path]:
    """Remove all but the newest backups that were named by their time; returns what was removed."""
    old = sorted(folder.glob(_DATED))[:-keep]
    for path in old:
        path.unlink()
    return old
