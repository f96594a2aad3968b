"""Where the branches point, noticed cheaply and read beside any writer.

Oxen keeps the branches in RocksDB, whose lock it takes even to read. So a reader looks at a private copy of the
database's files, and only when one of them has changed since.

Belongs here: that copy and the stamp. Not here: changing branches (``branching``).
"""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
import time
from pathlib import Path

from mlops_assets.oxen import child
from mlops_assets.oxen.errors import NotWritable, OperationTimeout, StoreCorrupt

_FILE = re.compile(r"CURRENT|IDENTITY|(MANIFEST|OPTIONS)-\d+|\d+\.(log|sst)")  # not LOCK and not RocksDB's own log


class Refs:
    """The branches of one repository.

    Args:
        store: The repository's ``.oxen`` directory.
    """

    def __init__(self, store: Path) -> None:
        self._store = store
        self._known: tuple[str, dict[str, str]] | None = None

    def heads(self, timeout: float) -> dict[str, str]:
        """Return the commit id that each branch points to, within ``timeout`` seconds."""
        if not (self._store / "refs" / "CURRENT").exists():
            if (self._store / "history").is_dir():
                raise StoreCorrupt(
                    f"{self._store.parent} has commits but no branches; restore .oxen/refs from a backup."
                )
            return {}
        end = time.monotonic() + timeout
        while True:
            stamp = self.stamp()
            if self._known is not None and self._known[0] == stamp:
                return dict(self._known[1])
            try:
                with tempfile.TemporaryDirectory(prefix="mlops-oxen-") as view:
                    if self._copy(Path(view) / ".oxen", stamp):
                        heads: dict[str, str] = child.call("heads", self._store, seconds=timeout, view=view)
                        self._known = stamp, heads
                        return dict(heads)
            except OSError as error:
                raise NotWritable(
                    f"the branches of {self._store.parent} cannot be copied to be read ({error}); free space, mend the "
                    "rights, or set TMPDIR elsewhere."
                ) from error
            if time.monotonic() > end:
                raise OperationTimeout(
                    f"the branches of {self._store.parent} never stood still; try again when it is idle."
                )
            time.sleep(0.005)

    def stamp(self) -> str:
        """Return a text that changes whenever any branch does, for the price of a few ``stat`` calls."""
        total = hashlib.sha256()
        for item in sorted(self._files(), key=lambda item: item.name):
            try:
                status = item.stat()
            except FileNotFoundError:
                total.update(f"{item.name} went\n".encode())
            else:
                total.update(f"{item.name} {status.st_ino} {status.st_size} {status.st_mtime_ns}\n".encode())
        return total.hexdigest()[:32]

    def _files(self) -> list[Path]:
        try:
            return [item for item in (self._store / "refs").iterdir() if _FILE.fullmatch(item.name)]
        except FileNotFoundError:
            return []

    def _copy(self, view: Path, stamp: str) -> bool:
        """Copy the database, which another process may be writing; False unless it stood still meanwhile."""
        (view / "refs").mkdir(parents=True)
        shutil.copyfile(self._store / "config.toml", view / "config.toml")
        try:
            for item in self._files():
                shutil.copyfile(item, view / "refs" / item.name)
        except FileNotFoundError:
            return False
        return self.stamp() == stamp
