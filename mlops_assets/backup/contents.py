"""Which files belong in a backup, and under which names.

Belongs here: the sections of an archive, where each lies here, and what of it passes away. Not here: reading any file.

Everything in the home belongs, so that what a later release keeps there is not forgotten, but for what is named below:
locks, files that are being written, copies that are made again, and the logs of services.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mlops_assets.backup.note import NOTE
from mlops_assets.settings import Settings

STAGING: Final = ".backup"
"""The folder, at the top of each section, in which a backup keeps its still copy."""

ARRIVING: Final = ".restore"
"""The folder, at the top of each section, in which a restore keeps files until all are verified."""

DATABASES: Final = "databases"
"""Section of the dumps of PostgreSQL's databases."""

PASSING: Final = frozenset(
    {
        *(STAGING, ARRIVING, NOTE),
        "cache",  # verified copies of what Oxen has
        "downloads",  # of origins, and of what is bundled into pages
        "locks",
        "logs",  # of services; those of runs belong to Dagster and stay
        "metrics",  # counters of processes that live
        "registry.changed",
        "runs",  # held by the processes of runs
        "scoring",  # workplaces, cleared by each round
    }
)
"""What of the home itself is left out."""

_PASSING_ENDS: Final = (".lock", ".part", ".tmp", ".pid", ".sock", "-wal", "-shm", ".oxentmp")
_PASSING_NAMES: Final = frozenset({".aside", "LOCK", "lock.mdb"})
_FREE: Final = re.compile(r"(^|/)(mlflow/artifacts|dagster/storage)/")  # below them a file may have any name
_SECTIONS: Final = frozenset({"store", "oxen", "ledger", "mlflow", "mlflow/artifacts", DATABASES})


@dataclass(frozen=True)
class Found:
    """A file that belongs in a backup: its name there, its path here, and its size."""

    name: str
    path: str
    bytes: int


@dataclass(frozen=True)
class Places:
    """Where the sections lie.

    Attributes:
        home: The platform's home, and with it every section that is not named.
        store: The store of outputs; None where that is no disk of this machine.
    """

    home: Path
    store: Path | None

    @classmethod
    def of(cls, here: Settings) -> Places:
        """The places of a set-up."""
        url = here.store_url.removeprefix("file://")
        return cls(here.home, None if "://" in url else Path(url))

    @property
    def artifacts(self) -> Path:
        """MLflow's artifacts, which may be a volume of their own."""
        return self.home / "mlflow" / "artifacts"

    @property
    def roots(self) -> dict[str, Path]:
        """The sections that may lie on disks of their own, by the beginning of their names; the home is the last."""
        store = {"store/": self.store} if self.store else {}
        return {**store, "mlflow/artifacts/": self.artifacts, "": self.home}

    def root(self, name: str) -> tuple[Path, str]:
        """The top of a file's section, and its name below that."""
        for prefix, root in self.roots.items():
            if name.startswith(prefix):
                return root, name.removeprefix(prefix)
        raise AssertionError(name)

    def repositories(self) -> list[Path]:
        """The `.oxen` folders of all repositories."""
        return sorted(path.parent for path in (self.home / "oxen").glob("*/.oxen/config.toml"))

    def databases(self) -> list[str]:
        """The names of SQLite's files: whatever names another one comes before it."""
        dagster = self.home / "dagster"
        index = dagster / "history" / "runs" / "index.db"
        paths = [dagster / "schedules" / "schedules.db", dagster / "history" / "runs.db", index]
        paths += sorted(path for path in index.parent.glob("*.db") if path != index)
        paths.append(self.home / "mlflow" / "mlflow.db")
        return [path.relative_to(self.home).as_posix() for path in paths if path.is_file()]

    def grown(self) -> Iterator[Found]:
        """What is written once and then stays: the store and MLflow's artifacts."""
        if self.store:
            yield from files(self.store, "store/")
        yield from files(self.artifacts, "mlflow/artifacts/", all_names=True)

    def rest(self) -> Iterator[Found]:
        """Everything but what is written once, SQLite's files, repositories and ledgers."""
        known, elsewhere = set(self.databases()), {str(self.artifacts), str(self.store)}
        for entry in _listed(self.home):
            if _passes(entry.name) or entry.name in PASSING or entry.path in elsewhere:
                continue
            if not entry.is_dir():
                yield from _file(entry, entry.name)
            elif entry.name not in {"store", "oxen", "ledger"}:
                found = files(entry.path, f"{entry.name}/", elsewhere)
                yield from (one for one in found if one.name not in known)


def files(top: str | Path, prefix: str, leave: Collection[str] = (), *, all_names: bool = False) -> Iterator[Found]:
    """The files below a folder; what goes away meanwhile is passed over, and links are followed.

    The files of a folder come before its folders, and those are listed after them: a manifest is never found without
    what it names.

    Args:
        top: The folder.
        prefix: What their names begin with.
        leave: Folders to leave out.
        all_names: Whether a name may be anything; else those of locks and of files in the making are left out.
    """
    folders = []
    entries = [one for one in _listed(top) if one.name not in {STAGING, ARRIVING}]
    for entry in entries:
        if entry.is_dir():
            folders.append(entry)
        elif all_names or not _passes(entry.name):
            yield from _file(entry, f"{prefix}{entry.name}")
    if len(folders) < len(entries):  # one that came since may be named by a file that was just found
        folders = [one for one in _listed(top) if one.is_dir() and one.name not in {STAGING, ARRIVING}]
    for entry in folders:
        if (all_names or not _passes(entry.name)) and entry.path not in leave:
            free = all_names or entry.path.endswith("/dagster/storage")  # what steps print may have any name
            yield from files(entry.path, f"{prefix}{entry.name}/", leave, all_names=free)


def belongs(name: str) -> bool:
    """Whether a backup holds files of such a name: none ever takes the place of a lock, or of a section."""
    parts = name.split("/")
    if parts[0] in PASSING or {STAGING, ARRIVING} & set(parts) or name in _SECTIONS:
        return False
    if parts[0] == "oxen" and (len(parts) < 4 or parts[2] != ".oxen" or parts[3] == "mlops"):
        return False
    return not any(_passes(part) for part in _FREE.split(name, maxsplit=1)[0].split("/"))


def _listed(top: str | Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(top) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _file(entry: os.DirEntry[str], name: str) -> Iterator[Found]:
    with suppress(FileNotFoundError):
        path = os.path.realpath(entry.path) if entry.is_symlink() else entry.path
        if entry.is_file():
            yield Found(name, path, entry.stat().st_size)


def _passes(name: str) -> bool:
    return name in _PASSING_NAMES or name.endswith(_PASSING_ENDS) or ".oxentmp." in name
