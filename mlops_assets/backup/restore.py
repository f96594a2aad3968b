"""A home made of an archive: whole, or not at all.

Belongs here: what is refused, unpacking aside, and making visible what was verified. Not here: the archive's format
(`archive.py`), and the proof that the home works (`cli/backup.py`).

Files go into a folder aside, at the top of each section, and are hashed on their way. Only when the last one is
verified, PostgreSQL's databases are loaded, and the files renamed into their places. A restore that fails empties the
databases again. One that is killed leaves a folder that the next one clears away, and a home that is as empty as it
was, unless it was killed among the renames: what had its place by then is refused by the next one. So are databases
that were loaded by then, with the command that empties them.
"""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Final

from packaging.version import Version
from pydantic import SecretStr
from rich.filesize import decimal

from mlops_assets.backup import archive, databases, postgresql
from mlops_assets.backup.archive import FORMAT, About, Manifest, Told
from mlops_assets.backup.contents import ARRIVING, DATABASES, Places, belongs
from mlops_assets.backup.errors import ArchiveDamaged, BackupError, RestoreError
from mlops_assets.backup.snapshot import PACKAGES, dagster_kind, installed, mlflow_kind, postgres_of
from mlops_assets.home import DAGSTER_YAML, POSTGRES_YAML
from mlops_assets.registry.ledger import sync_folder
from mlops_assets.settings import Settings

DATA: Final = ("oxen/", "store/")
"""What `data_only` restores: from these the next run makes all the rest, without training."""

SERVICES: Final = {"up.lock": "`mlops up`", "serve.lock": "the model server"}

_TITLES: Final = {"dagster": "Dagster", "mlflow": "MLflow"}

_DATA_ONLY: Final = "`--data-only` takes the datasets and the store, of which the next run makes the rest untrained"


def verify(stream: IO[bytes], told: Told) -> tuple[About, Manifest]:
    """Read an archive to its end without restoring anything.

    Raises:
        ArchiveDamaged: It is not as it was written.
        RestoreError: A newer release wrote it.
    """
    seen: list[About] = []

    def begin(about: About) -> None:
        _refuse_newer_format(about)
        seen.append(about)

    manifest = archive.read(stream, begin, _require_ours, told)
    return seen[0], manifest


def restore(stream: IO[bytes], here: Settings, told: Told, *, data_only: bool = False) -> tuple[About, Manifest]:
    """Make a home, and its databases, of an archive.

    Args:
        stream: The archive.
        here: The set-up that is to be made; its home is empty.
        told: Is told of bytes unpacked.
        data_only: Whether only Oxen's repositories and the store are wanted.

    Raises:
        ArchiveDamaged: It is not as it was written; nothing is visible.
        RestoreError: It does not fit here, or here is not empty; nothing was changed.
        BackupError: Something cannot be written, or a database not loaded.
    """
    places = Places.of(here)
    if places.store is None:
        raise RestoreError(
            "MLOPS_STORE is no folder of this machine, and an archive has files; unset MLOPS_STORE for the restore, "
            "then copy HOME/store there"
        )
    seen: list[About] = []
    to_load: dict[str, SecretStr] = {}

    def begin(about: About) -> None:
        _refuse_newer_format(about)
        if not data_only:
            _refuse_newer_packages(about)
            _refuse_other_kind(about, here)
            to_load.update(_empty_databases(about, here))
        need, free = about.bytes, shutil.disk_usage(here.home).free
        if need > free:
            raise RestoreError(f"{here.home} has room for {decimal(free)}, and {decimal(need)} are needed; free space")
        seen.append(about)

    def target(name: str) -> Path | None:
        _require_ours(name)
        if data_only and not name.startswith(DATA):
            return None
        root, below = places.root(name)
        return root / ARRIVING / below

    with _alone(places, here), _in_one_sentence("restoring"), ExitStack() as undo:
        manifest = archive.read(stream, begin, target, told)
        for store in (here.home / ARRIVING / "oxen").glob("*/.oxen"):
            (store / "mlops").mkdir(exist_ok=True)  # where writers have their lock
        for root in places.roots.values():
            _sync(root)  # nothing becomes visible before it is on the disk
        for name, url in to_load.items():
            postgresql.load(url, _TITLES[name], here.home / ARRIVING / DATABASES / f"{name}.dump")
            undo.callback(_take_back, url, _TITLES[name])
        shutil.rmtree(here.home / ARRIVING / DATABASES, ignore_errors=True)
        for root in places.roots.values():
            _publish(root / ARRIVING, root)
            sync_folder(root)
        undo.pop_all()
    return seen[0], manifest


def flaws(here: Settings) -> dict[str, str]:
    """What SQLite finds wrong, by the file; nothing where all are sound."""
    found = {name: databases.flaw(here.home / name) for name in Places.of(here).databases()}
    return {name: said for name, said in found.items() if said}


def _require_ours(name: str) -> None:
    if not belongs(name):
        raise ArchiveDamaged(f"{name!r} in it is none of the files that `mlops backup` writes")


def _take_back(url: SecretStr, title: str) -> None:
    with suppress(BackupError):  # what failed before tells more, and the next restore names what is left
        postgresql.clear(url, title)


@contextmanager
def _in_one_sentence(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BackupError.of(what, error) from None


def _refuse_newer_format(about: About) -> None:
    if about.format > FORMAT:
        raise RestoreError(
            f"the archive was written by mlops-assets {about.versions.get('mlops-assets', '?')}, in a format that this "
            "release does not know; install that one"
        )


def _refuse_newer_packages(about: About) -> None:
    here = installed()
    for name in PACKAGES:
        wrote, reads = about.versions.get(name), here.get(name)
        if wrote and reads and Version(wrote) > Version(reads):
            raise RestoreError(
                f"the archive was written with {name} {wrote}, and {reads} is installed, which may not read what the "
                f"newer one wrote; install {name} {wrote}"
            )


def _refuse_other_kind(about: About, here: Settings) -> None:
    """Refuse databases that cannot be loaded into those of this set-up."""
    for title, wrote, reads in (
        ("Dagster", about.dagster, dagster_kind(here)),
        ("MLflow", about.mlflow, mlflow_kind(here)),
    ):
        variable = f"MLOPS_{title.upper()}_DATABASE"
        if wrote == "sqlite" and reads != "sqlite":
            raise RestoreError(
                f"the archive has {title}'s database for SQLite, and this set-up keeps it elsewhere, where that cannot "
                f"be loaded; {_DATA_ONLY}"
            )
        if wrote == "postgresql" and reads != "postgresql":
            raise RestoreError(
                f"the archive has a dump of {title}'s database on PostgreSQL; set {variable} to an empty one, or "
                f"restore less: {_DATA_ONLY}"
            )


def _empty_databases(about: About, here: Settings) -> dict[str, SecretStr]:
    """The databases on PostgreSQL that dumps are to be loaded into; refuses ones in which something is."""
    kinds = {"dagster": about.dagster, "mlflow": about.mlflow}
    found = {name: url for name, url in postgres_of(here).items() if kinds[name] == "postgresql"}
    for name, url in found.items():
        postgresql.require("pg_restore")
        if not postgresql.is_empty(url, _TITLES[name]):
            raise RestoreError(
                f"{_TITLES[name]}'s database on PostgreSQL is not empty, and nothing is overwritten; give "
                f"MLOPS_{name.upper()}_DATABASE an empty one and start no service before the restore is done; where a "
                f"killed restore has left it so, empty it: `{postgresql.clearing(url)}`"
            )
    return found


@contextmanager
def _alone(places: Places, here: Settings) -> Iterator[None]:
    """Make sure that the home is empty, that nothing runs on it, and that nothing starts meanwhile."""
    from filelock import FileLock, Timeout

    with ExitStack() as stack:
        with _in_one_sentence("making the home"):
            for root in places.roots.values():
                root.mkdir(parents=True, exist_ok=True)
            for name, title in SERVICES.items():
                try:
                    stack.enter_context(FileLock(here.home / name, timeout=0))
                except Timeout:
                    raise RestoreError(
                        f"{title} runs with {here.home}; stop it, and restore into an empty home"
                    ) from None
            _refuse_content(places, here)
            for root in places.roots.values():
                shutil.rmtree(root / ARRIVING, ignore_errors=True)  # what a killed restore has left
                (root / ARRIVING).mkdir()
                stack.callback(shutil.rmtree, root / ARRIVING, ignore_errors=True)
        yield


def _refuse_content(places: Places, here: Settings) -> None:
    """Refuse a home that has anything that a backup would take.

    A `dagster.yaml` as every command writes it is nobody's work.
    """
    yaml = here.dagster_home / "dagster.yaml"
    if yaml.is_file() and yaml.read_text(encoding="utf-8") in {DAGSTER_YAML, DAGSTER_YAML + POSTGRES_YAML}:
        yaml.unlink()
    found = next(iter(_content(places)), None)
    if found is not None:
        raise RestoreError(
            f"{here.home} is not empty ({found}), and nothing is overwritten; restore into an empty folder"
        )


def _content(places: Places) -> Iterator[str]:
    yield from places.databases()
    for store in places.repositories():
        yield f"oxen/{store.parent.name}"
    yield from (found.name for found in places.grown())
    yield from (path.name for path in (places.home / "ledger").glob("*.jsonl"))
    yield from (found.name for found in places.rest())


def _sync(folder: Path) -> None:
    """Write a whole file system to its disk: once, for to wait for each of many files takes minutes."""
    syncfs = getattr(ctypes.CDLL(None), "syncfs", None)
    if syncfs is None:  # elsewhere than on Linux
        os.sync()
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        if syncfs(handle) != 0:
            raise BackupError(f"{folder} was not written to its disk, which may be failing; choose another place")
    finally:
        os.close(handle)


def _publish(source: Path, target: Path) -> None:
    """Move what is in a folder into another one, folder by folder where that has them already."""
    for each in source.iterdir():
        place = target / each.name
        if place.is_dir():
            _publish(each, place)
        else:
            each.rename(place)
