"""Checks of the databases: Dagster's own, MLflow's, and what MLflow's registry says is there."""

from __future__ import annotations

import importlib.util
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from rich.filesize import decimal

from mlops_assets.doctor import models
from mlops_assets.doctor.examination import Examination, Finding
from mlops_assets.doctor.sqlite import rows
from mlops_assets.tracking.store import ARTIFACT_ROOT

LARGEST_BYTES: Final = 200 * 10**6
"""A database of more than this takes a second or so to read, so it is read with `--deep` only."""

_REVISION: Final = re.compile(r"^(down_)?revision\b[^=]*=\s*(.*)$", re.MULTILINE)
_ID: Final = re.compile(r"[0-9a-f]{12}")


def dagster(look: Examination) -> Iterator[Finding]:
    """Whether Dagster's databases are whole, its `dagster.yaml` is usable, and both fit the installed Dagster."""
    home = look.dagster_home
    if not (home / "dagster.yaml").is_file():
        yield Finding("Dagster", "ok", f"{home} is not made yet; the first run makes it")
        return
    elsewhere = bool(look.here.dagster_database.get_secret_value())
    where = "MLOPS_DAGSTER_DATABASE" if elsewhere else str(home)
    files = [home / "history" / "runs.db", home / "history" / "runs" / "index.db", home / "schedules" / "schedules.db"]
    if look.deep:
        files = sorted({*files, *(home / "history" / "runs").glob("*.db")})
    broken = [finding for file in files for finding in _whole("Dagster", file, look)]
    yield from broken
    if broken:
        return  # to open it would fail on the same file
    instance = look.instance
    assert instance is not None
    for storage in (instance.run_storage, instance.event_log_storage, instance.schedule_storage):
        found, head = (storage.alembic_version() if storage else None) or (None, None)
        if found != head:
            fix = (
                'run `eval "$(mlops env)"`, then `dagster instance migrate`; if that fails, install the Dagster it was'
            )
            yield Finding("Dagster", "problem", f"a database in {where} has schema {found}, not {head}", fix)
            return
    read = decimal(sum(file.stat().st_size for file in files if file.is_file()))
    kept = f"the schema in {where}" if elsewhere else f"{read} of databases in {home}"
    yield Finding("Dagster", "ok", f"dagster.yaml and {kept} are sound")


def mlflow(look: Examination) -> Iterator[Finding]:
    """Whether MLflow's database is whole and fits the installed MLflow, or its server answers."""
    uri = look.here.mlflow_tracking_uri
    if uri.startswith(("http://", "https://")):
        from mlops_assets.doctor.server_mlflow import server

        yield from server(look)
        return
    if uri:
        yield Finding("MLflow", "ok", "kept elsewhere (MLFLOW_TRACKING_URI), so not looked at")
        return
    database = models.database(look.here)
    if not database.is_file():
        yield Finding("MLflow", "ok", f"{database} is not made yet; the first training makes it")
        return
    broken = list(_whole("MLflow", database, look))
    if broken:
        yield from broken
        return
    found = str(rows(database, "SELECT version_num FROM alembic_version")[0][0])
    known, head = revisions("mlflow", "store/db_migrations/versions")
    if found not in known:
        fix = "upgrade mlflow to the release that wrote it"
        yield Finding("MLflow", "problem", f"{database} has schema {found}, of a newer MLflow", fix)
    elif found != head:
        fix = "nothing: the next training brings it up to date, and keeps a copy"
        yield Finding("MLflow", "warning", f"{database} has schema {found} of an older MLflow", fix)
    else:
        yield Finding("MLflow", "ok", f"{database} ({decimal(database.stat().st_size)}) is sound")


def registered_models(look: Examination) -> Iterator[Finding]:
    """Registered models whose files are gone, or whose run is."""
    if look.here.mlflow_tracking_uri:
        yield Finding("models", "ok", "kept elsewhere (MLFLOW_TRACKING_URI), so not looked at")
        return
    database = models.database(look.here)
    found, sound = models.versions(look.here), True
    for one in found:
        what = f"version {one.number} of {one.model}" + (f" ({one.aliases})" if one.aliases else "")
        files = database.parent / "artifacts" / one.source.removeprefix(ARTIFACT_ROOT).lstrip("/")
        if one.source.startswith(ARTIFACT_ROOT) and not (files / "MLmodel").is_file():
            sound = False
            # Dagster forgets what it made of the stages; they are taken from the store, and the model is logged anew.
            stages = " ".join(f"{one.model}/{stage}" for stage in ("model", "evaluation", "champion"))
            again = f'`eval "$(mlops env)"`, `dagster asset wipe --noprompt {stages}`, `mlops run {one.model}`'
            fix = f"{again}: logs the stored model again" if one.aliases else "delete that version in MLflow"
            yield Finding("models", "problem" if one.aliases else "warning", f"the files of {what} are gone", fix)
        if one.run_id and one.run_stage != "active":
            sound = False
            restore = f"`mlflow runs restore --run-id {one.run_id}` with MLFLOW_TRACKING_URI=sqlite:///{database}"
            gone, fix = ("deleted", restore) if one.run_stage else ("gone", "restore MLflow's database from a backup")
            yield Finding("models", "warning", f"the MLflow run of {what} is {gone}", fix)
    if sound:
        yield Finding("models", "ok", f"{len(found)} versions, each with its files and its run")


def _whole(check: str, database: Path, look: Examination) -> Iterator[Finding]:
    """A problem when a SQLite file is damaged; nothing when it is whole, absent, or too large to read in passing."""
    if not database.is_file() or (database.stat().st_size > LARGEST_BYTES and not look.deep):
        return
    try:
        said = str(rows(database, "PRAGMA quick_check(1)")[0][0])
    except sqlite3.OperationalError as error:
        fix = "end the process that has it locked, or mend its rights"
        yield Finding(check, "problem", f"{database} cannot be read now: {error}", fix)
        return
    except sqlite3.DatabaseError as error:
        said = str(error)
    if said != "ok":
        what = f"{database} is damaged: {' '.join(said.split())}"
        fix = (
            f"stop `mlops up`, move {database.name} away and restore it from a backup; `sqlite3 FILE .recover` may help"
        )
        yield Finding(check, "problem", what, fix)


def revisions(package: str, folder: str) -> tuple[set[str], str]:
    """The schema revisions that an installed package knows, and the newest, from its migrations' text."""
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    known: set[str] = set()
    followed: set[str] = set()
    for file in (Path(spec.origin).parent / folder).glob("*.py"):
        for down, value in _REVISION.findall(file.read_text(encoding="utf-8")):
            (followed if down else known).update(_ID.findall(value))
    (head,) = known - followed
    return known, head
