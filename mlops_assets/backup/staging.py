"""A still copy of files that others go on writing, made in no time: hard links.

Belongs here: the links, and sweeping them away. Not here: which files, and in which order.

A linked file outlives its removal, so whatever is collected while an archive is written is in it all the same. Each
section has a staging folder at its top, since links do not cross file systems; the files in it are numbered, so that
nobody who looks into the section takes them for something else. Where there are no links, files are copied.
"""

from __future__ import annotations

import itertools
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Self

from mlops_assets.backup.contents import STAGING, Found, Places
from mlops_assets.backup.errors import BackupError


class Staging:
    """Files by their names in the archive, as they were at one time.

    Attributes:
        files: Where each lies now.
    """

    def __init__(self, places: Places) -> None:
        self.files: dict[str, str] = {}
        self._numbers = itertools.count()
        self._folders = {prefix: root / STAGING for prefix, root in places.roots.items()}

    def __enter__(self) -> Self:
        self._sweep()  # what a killed predecessor has left
        for folder in self._folders.values():
            try:
                folder.mkdir(parents=True)
            except OSError as error:
                raise BackupError.of("keeping a still copy", error) from None
        return self

    def __exit__(self, *_: object) -> None:
        self._sweep()

    def link(self, found: Found) -> None:
        """Keep a file that is never changed in place; one that is kept already stays as it is."""
        if found.name in self.files:
            return
        place = self._place(found.name)
        try:
            os.link(found.path, place)
        except FileNotFoundError:
            return
        except OSError:
            self.copy(found)
            return
        self.files[found.name] = place

    def copy(self, found: Found) -> None:
        """Keep a file as it is now.

        Raises:
            BackupError: It cannot be read, or its copy cannot be written.
        """
        place = self._place(found.name)
        try:
            with suppress(FileNotFoundError):
                shutil.copy2(found.path, place)
                self.files[found.name] = place
        except OSError as error:
            raise BackupError.of("copying", error) from None

    def place(self, name: str) -> Path:
        """Where a file is to be written that exists nowhere else."""
        self.files[name] = self._place(name)
        return Path(self.files[name])

    def forget(self, name: str) -> None:
        """Take a file back that could not be written, for it went away."""
        Path(self.files.pop(name)).unlink(missing_ok=True)

    def _place(self, name: str) -> str:
        folder = next(folder for prefix, folder in self._folders.items() if name.startswith(prefix))
        return f"{folder}/{next(self._numbers)}"

    def _sweep(self) -> None:
        for folder in self._folders.values():
            shutil.rmtree(folder, ignore_errors=True)
