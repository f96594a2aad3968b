"""Registered models and MLflow's open runs, read from the embedded database directly: importing MLflow takes seconds.

An MLflow server is asked through MLflow's client instead, and only where a command cannot do without the answer.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mlops_assets.doctor.sqlite import rows
from mlops_assets.settings import Settings
from mlops_assets.tracking import tags as keys
from mlops_assets.tracking.store import TrackingError

_ALIASES: Final = """
    SELECT a.name, a.alias, a.version, COALESCE(t.value, '')
    FROM registered_model_aliases a
    LEFT JOIN model_version_tags t
        ON t.name = a.name AND t.version = a.version AND t.workspace = a.workspace AND t.key = ?
    ORDER BY a.name, a.version, a.alias
"""


_OPEN: Final = """
    SELECT r.run_uuid, e.name, COALESCE(own.value, parent.value, '')
    FROM runs r
    JOIN experiments e ON e.experiment_id = r.experiment_id
    LEFT JOIN tags own ON own.run_uuid = r.run_uuid AND own.key = ?
    LEFT JOIN tags parent ON parent.run_uuid = r.run_uuid AND parent.key = ?
    WHERE r.status = 'RUNNING' AND r.lifecycle_stage = 'active'
    ORDER BY r.start_time
"""

_VERSIONS: Final = """
    SELECT v.name, v.version, COALESCE(v.storage_location, v.source, ''), COALESCE(v.run_id, ''),
        COALESCE(r.lifecycle_stage, ''),
        (SELECT group_concat(a.alias, ', ') FROM registered_model_aliases a
            WHERE a.name = v.name AND a.version = v.version AND a.workspace = v.workspace)
    FROM model_versions v
    LEFT JOIN runs r ON r.run_uuid = v.run_id
    WHERE v.status = 'READY' AND v.current_stage != 'Deleted_Internal'
    ORDER BY v.name, v.version
"""


@dataclass(frozen=True)
class OpenRun:
    """A run that MLflow shows as RUNNING, and the Dagster run that it belongs to; empty when it does not tell."""

    run_id: str
    experiment: str
    dagster_run: str


@dataclass(frozen=True)
class Version:
    """A version of a registered model.

    Attributes:
        source: Where its files are, as a URI.
        run_id: The MLflow run that made it; empty when it does not tell.
        run_stage: `active`, `deleted`, or empty when MLflow has no such run any more.
        aliases: The aliases that point to it, with commas between.
    """

    model: str
    number: int
    source: str
    run_id: str
    run_stage: str
    aliases: str | None


@dataclass(frozen=True)
class Alias:
    """A registered model's alias, and the recipe of the version that it points to; empty when that does not tell."""

    model: str
    alias: str
    version: int
    recipe: str


def database(here: Settings) -> Path:
    """Where MLflow's embedded database is, made or not."""
    return here.home / "mlflow" / "mlflow.db"


def aliases(here: Settings) -> list[Alias]:
    """All aliases of all registered models; none where MLflow has no database yet.

    Raises:
        TrackingError: MLflow cannot be asked.
    """
    if here.mlflow_tracking_uri:
        return _aliases_elsewhere(here.mlflow_tracking_uri)
    if not database(here).is_file():
        return []
    try:
        return [Alias(*row) for row in rows(database(here), _ALIASES, keys.RECIPE)]
    except sqlite3.Error as error:
        raise TrackingError(
            f"{database(here)} cannot be read ({error}), so nobody knows which models are in use; "
            "`mlops doctor` tells what is wrong with it"
        ) from None


def open_runs(here: Settings) -> list[OpenRun]:
    """The runs that the embedded database shows as RUNNING.

    Raises:
        sqlite3.Error: The database cannot be read.
    """
    if not database(here).is_file():
        return []
    return [OpenRun(*row) for row in rows(database(here), _OPEN, keys.DAGSTER_RUN, keys.DAGSTER_PARENT)]


def versions(here: Settings) -> list[Version]:
    """The versions of all registered models in the embedded database.

    Raises:
        sqlite3.Error: The database cannot be read.
    """
    return [Version(*row) for row in rows(database(here), _VERSIONS)] if database(here).is_file() else []


def _aliases_elsewhere(uri: str) -> list[Alias]:
    from mlops_assets.tracking.runs import Tracking

    tracking = Tracking(uri)
    client = tracking.client
    found: list[Alias] = []
    token: str | None = ""
    with tracking.one_sentence():
        while token is not None:
            page = client.search_registered_models(page_token=token or None)
            for model in page:
                for alias, version in model.aliases.items():
                    tags = client.get_model_version(model.name, version).tags
                    found.append(Alias(model.name, alias, int(version), tags.get(keys.RECIPE, "")))
            token = page.token or None
    return found
