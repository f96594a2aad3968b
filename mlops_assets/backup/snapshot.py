"""A still copy of everything, consistent while everything runs.

Belongs here: the order and the locks. Not here: the archive that is made of it (`archive.py`).

What names something is copied before what it names, so that nothing in the archive names what is not in it:

1. The store and MLflow's artifacts, which only grow, are linked for a first time. Only `mlops store gc` takes from
   them, and never what is younger than a day: what it takes after this moment is in the archive all the same.
2. Dagster's databases: schedules name runs, runs name events, events name everything else.
3. MLflow's database and the ledgers, under the locks of all ledgers, so that no move of a champion lies across them.
   Of PostgreSQL only the moment is taken under the locks; the dump is written after they are released.
4. The store and the artifacts once more: what came in the meantime.
5. Each Oxen repository, under its lock and Oxen's own. Contents and histories are never changed once they are written,
   so they are linked; the tree and the branches are copied. A commit waits for that one repository alone.
6. The rest: pointers and files of the model server, predictions, feedback, what runs have printed.

Reading, hashing and compressing all this takes long, and needs no lock: the links hold it still.
"""

from __future__ import annotations

import fcntl
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from pydantic import SecretStr

from mlops_assets.backup import databases, postgresql
from mlops_assets.backup.archive import FORMAT, About, Kind
from mlops_assets.backup.contents import DATABASES, Places, files
from mlops_assets.backup.errors import BackupError
from mlops_assets.backup.staging import Staging
from mlops_assets.registry.ledger import Ledger
from mlops_assets.settings import Settings

REPOSITORY_SECONDS: Final = 600.0
"""How long to wait for whoever writes a repository: a commit of much data takes minutes."""

PACKAGES: Final = ("mlops-assets", "dagster", "mlflow", "oxenai")

_POLL_SECONDS: Final = 0.02

Dump = Callable[[Path], None]


@contextmanager
def snapshot(here: Settings, pipelines: Iterable[str]) -> Iterator[tuple[Staging, About]]:
    """Hold everything still for as long as an archive is written of it; nobody who works waits meanwhile.

    Args:
        here: The set-up.
        pipelines: Whose ledgers may be begun at any moment, beside those that are there.

    Raises:
        BackupError: Something cannot be read, or another backup is under way.
        LedgerError: Another process has held a ledger too long.
    """
    places = Places.of(here)
    with _alone(here.home), Staging(places) as staging:
        _link_grown(places, staging)
        heads = _databases_and_ledgers(here, places, staging, pipelines)
        _link_grown(places, staging)
        for store in places.repositories():
            _repository(store, f"oxen/{store.parent.name}/.oxen/", staging)
        for found in places.rest():
            staging.link(found)
        yield staging, _about(here, staging, heads)


def dagster_kind(here: Settings) -> Kind:
    """Where Dagster's database is."""
    return "postgresql" if here.dagster_database.get_secret_value() else "sqlite"


def mlflow_kind(here: Settings) -> Kind:
    """Where MLflow's database is; `elsewhere` is a server whose database is not known here."""
    if here.mlflow_database.get_secret_value():
        return "postgresql"
    return "elsewhere" if here.mlflow_tracking_uri else "sqlite"


def postgres_of(here: Settings) -> dict[str, SecretStr]:
    """The URLs of the databases on PostgreSQL, by whose they are: Dagster's first, for it names MLflow's runs."""
    found = {"dagster": here.dagster_database, "mlflow": here.mlflow_database}
    return {name: url for name, url in found.items() if url.get_secret_value()}


def _databases_and_ledgers(
    here: Settings, places: Places, staging: Staging, pipelines: Iterable[str]
) -> dict[str, str]:
    """Copy what names the rest; returns the heads of the ledgers."""
    urls, dumps = postgres_of(here), dict[str, Dump]()
    if urls:
        postgresql.require("pg_dump")
    sqlite = places.databases()
    with ExitStack() as stack:
        for name in [one for one in sqlite if one.startswith("dagster/")]:
            _database(here.home, name, staging)
        if "dagster" in urls:
            dumps["dagster"] = stack.enter_context(postgresql.frozen(urls["dagster"], "Dagster"))
        folder = here.home / "ledger"
        names = {path.stem for path in folder.glob("*.jsonl")} | set(pipelines)
        with ExitStack() as locks:
            ledgers = [Ledger(folder, name) for name in sorted(names)]
            for ledger in ledgers:
                locks.enter_context(ledger.lock())
            for name in [one for one in sqlite if one.startswith("mlflow/")]:
                _database(here.home, name, staging)
            if "mlflow" in urls:
                dumps["mlflow"] = stack.enter_context(postgresql.frozen(urls["mlflow"], "MLflow"))
            for found in files(folder, "ledger/"):
                staging.copy(found)
            heads = {ledger.pipeline: ledger.head for ledger in ledgers if ledger.path.exists()}
        for name, dump in dumps.items():
            dump(staging.place(f"{DATABASES}/{name}.dump"))
    return heads


def _link_grown(places: Places, staging: Staging) -> None:
    for found in places.grown():
        staging.link(found)


def _database(home: Path, name: str, staging: Staging) -> None:
    if not databases.copy(home / name, staging.place(name)):
        staging.forget(name)


def _repository(store: Path, prefix: str, staging: Staging) -> None:
    """Copy what changes in a repository, and link what does not, while nobody can write it."""
    with _unwritten(store):
        for found in files(store, prefix):
            part = found.name.removeprefix(prefix).partition("/")[0]
            if part in {"history", "versions"}:
                staging.link(found)
            elif part != "mlops":  # our own lock and workplaces
                staging.copy(found)


@contextmanager
def _unwritten(store: Path) -> Iterator[None]:
    """Keep writers out of a repository: ours by their lock, other programs by that of RocksDB, which all of them take.

    Raises:
        BackupError: One of them does not come to an end.
    """
    (store / "mlops").mkdir(exist_ok=True)
    with ExitStack() as stack:
        for path, lock in (
            (store / "mlops" / "lock", fcntl.flock),
            (store / "refs" / "LOCK", fcntl.lockf),
        ):
            if not path.parent.is_dir():
                continue  # nothing was ever committed
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            stack.callback(os.close, file)
            deadline = time.monotonic() + REPOSITORY_SECONDS
            while True:
                try:
                    lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except OSError:
                    if time.monotonic() > deadline:
                        what = f"{store.parent} was being written for {REPOSITORY_SECONDS:g} s"
                        raise BackupError(f"{what}; end the program that has it open, then try again") from None
                    time.sleep(_POLL_SECONDS)
        yield


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    """Keep a second backup of the home out.

    Raises:
        BackupError: There is one.
    """
    from filelock import FileLock, Timeout

    try:
        (home / "locks").mkdir(parents=True, exist_ok=True)
        with FileLock(home / "locks" / "backup", timeout=0):
            yield
    except Timeout:
        raise BackupError(f"another backup of {home} is under way; wait for it, or stop it") from None


def _about(here: Settings, staging: Staging, heads: dict[str, str]) -> About:
    outside = []
    if "://" in here.store_url:
        outside.append(f"the store of outputs, at {here.store_url.rpartition('@')[2]}")
    if mlflow_kind(here) == "elsewhere":
        outside.append(f"MLflow's database, at {here.mlflow_tracking_uri} (MLOPS_MLFLOW_DATABASE is not set)")
    artifacts = here.artifacts.removeprefix("file://")
    if artifacts and ("://" in artifacts or Path(artifacts).absolute() != Places.of(here).artifacts):
        outside.append(f"MLflow's artifacts, at {artifacts.rpartition('@')[2]} (MLOPS_ARTIFACTS)")
    given = os.environ.get("DAGSTER_HOME")
    if given and Path(given).absolute() != here.dagster_home:
        outside.append(f"Dagster's home, {given} (DAGSTER_HOME)")
    revisions = {name: postgresql.revision(url, name) for name, url in postgres_of(here).items()}
    heads_of_schemas = ("mlflow/mlflow.db", "dagster/history/runs.db", "dagster/history/runs/index.db")
    for name in (*heads_of_schemas, "dagster/schedules/schedules.db"):
        if name in staging.files:
            revisions[name] = databases.revision(Path(staging.files[name]))
    return About(
        format=FORMAT,
        made=datetime.now(UTC),
        python=platform.python_version(),
        versions=installed(),
        dagster=dagster_kind(here),
        mlflow=mlflow_kind(here),
        revisions=revisions,
        settings=_settings(here),
        outside=outside,
        heads=heads,
        files=len(staging.files),
        bytes=sum(Path(path).stat().st_size for path in staging.files.values()),
    )


def installed() -> dict[str, str]:
    """The versions of the packages that understand what is in an archive."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # a part of the platform may do without
            continue
    return found


def _settings(here: Settings) -> dict[str, str]:
    """The variables that say something else than their defaults, but for secrets and the home."""
    found = {}
    for name, field in type(here).model_fields.items():
        value = getattr(here, name)
        if not isinstance(value, SecretStr) and name != "home" and value != field.default and "@" not in str(value):
            found[str(field.validation_alias or f"MLOPS_{name.upper()}")] = str(value)
    return found
