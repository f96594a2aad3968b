"""What Dagster's event log says about a pipeline, in the terms of `staleness.py`.

Belongs here: the metadata keys under which each materialization records its own provenance, and reading them back.
Does not: deciding anything.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

import dagster as dg
from dagster._core.storage.asset_check_execution_record import COMPLETED_ASSET_CHECK_EXECUTION_RECORD_STATUSES

from mlops_assets.fingerprint import Recipe
from mlops_assets.pipeline import BLOCKING_CHECKS, STAGES, Stage
from mlops_assets.staleness import Materialization

CODE_VERSION: Final = "mlops/code_version"
INPUTS: Final = "mlops/inputs"
RECIPE: Final = "mlops/recipe"
DIGEST: Final = "mlops/digest"
LEDGER_HEAD: Final = "mlops/ledger_head"
"""Number and hash of the ledger's last record when a champion was materialized: a cut or rewritten ledger lacks it."""


PIPELINE_TAG: Final = "mlops/pipeline"
"""On every run that the platform asks for; the run queue lets one of a pipeline through at a time."""

SENSOR: Final = "rematerialize"
"""The sensor that asks for runs; a push asks in its name."""

# Without NOT_STARTED: a run is that for the moment between being created and being queued, or for ever when whoever
# created it died in between.
IN_PROGRESS: Final = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


def asset_key(pipeline: str, stage: Stage) -> dg.AssetKey:
    """`NAME/STAGE`."""
    return dg.AssetKey([pipeline, stage])


def source_key(pipeline: str) -> dg.AssetKey:
    """`oxen/NAME`: the observable source that a pipeline's data in Oxen is."""
    return dg.AssetKey(["oxen", pipeline])


def import_key(pipeline: str) -> dg.AssetKey:
    """`NAME/import`: what fetches the data of a pipeline that has a source."""
    return dg.AssetKey([pipeline, "import"])


def import_job_name(pipeline: str) -> str:
    """The job that fetches a pipeline's data, and nothing else."""
    return f"{pipeline}_import_job"


def job_name(pipeline: str) -> str:
    """The job over all assets of a pipeline."""
    return f"{pipeline}_job"


def provenance_metadata(recipe: Recipe, digest: str) -> dict[str, Any]:
    """What a materialization records about itself.

    Dagster's own input tags name what was newest when the step ended; these name what the step really read.
    """
    return {
        DIGEST: digest,
        CODE_VERSION: recipe.code_version,
        INPUTS: dg.MetadataValue.json(dict(recipe.inputs)),
        RECIPE: recipe.key,
    }


def read_state(instance: dg.DagsterInstance, pipeline: str) -> dict[Stage, Materialization]:
    """The newest materialization of each stage; stages that were never materialized are left out."""
    return _read_states(instance, [pipeline])[pipeline]


def read_states(instance: dg.DagsterInstance, pipelines: Collection[str]) -> dict[str, Mapping[Stage, Materialization]]:
    """`read_state` of many pipelines, for a process that asks again and again: only what is new is read.

    One query tells which events are the newest. An event is never rewritten, so the same ones mean the same; another
    process's event, a check's late result and a wipe all change what the query returns.
    """
    newest = _newest_events(instance, pipelines)
    # Asked for before they are read: an event that comes in between is read once more, and none is missed.
    known = {name: _known[name][1] for name in newest if name in _known and _known[name][0] == newest[name]}
    read = _read_states(instance, [name for name in pipelines if name not in known])
    _known.update((name, (newest[name], state)) for name, state in read.items() if name in newest)
    return known | read


_known: dict[str, tuple[str, Mapping[Stage, Materialization]]] = {}
"""By pipeline: which events its state was read from, and the state. They name runs and microseconds, so those of
another database are others."""


def _newest_events(instance: dg.DagsterInstance, pipelines: Collection[str]) -> dict[str, str]:
    """Per pipeline: a text that names the newest events of its assets and checks; empty where that cannot be asked.

    Dagster's interface has no such question, so this asks the tables of its SQL storages.
    """
    import sqlalchemy as sa
    from dagster._core.storage.event_log.schema import AssetCheckExecutionsTable, AssetKeyTable
    from dagster._core.storage.event_log.sql_event_log import SqlEventLogStorage

    storage = instance.event_log_storage
    if not isinstance(storage, SqlEventLogStorage):
        return {}
    owners = {asset_key(name, stage).to_string(): name for name in pipelines for stage in STAGES}
    asset, check = AssetKeyTable.c, AssetCheckExecutionsTable.c
    assets = sa.select(
        asset.asset_key, asset.last_run_id, asset.last_materialization_timestamp, asset.wipe_timestamp
    ).where(asset.asset_key.in_(owners))
    completed = [status.value for status in COMPLETED_ASSET_CHECK_EXECUTION_RECORD_STATUSES]
    newest = (
        sa.select(sa.func.max(check.id))
        .where(check.asset_key.in_(owners), check.execution_status.in_(completed))
        .group_by(check.asset_key, check.check_name)
    )
    checks = sa.select(
        check.asset_key, check.id, check.evaluation_event_storage_id, check.evaluation_event_timestamp
    ).where(check.id.in_(newest))
    with storage.index_connection() as connection:
        rows = [*connection.execute(assets), *connection.execute(checks)]
    found: dict[str, list[str]] = {name: [] for name in pipelines}
    for key, *event in rows:
        found[owners[key]].append(f"{key} {event}")
    return {name: "\n".join(sorted(events)) for name, events in found.items()}


def _read_states(instance: dg.DagsterInstance, pipelines: Collection[str]) -> dict[str, dict[Stage, Materialization]]:
    keys = {asset_key(name, stage): (name, stage) for name in pipelines for stage in STAGES}
    states: dict[str, dict[Stage, Materialization]] = {name: {} for name in pipelines}
    if not keys:
        return states
    records = {record.asset_entry.asset_key: record.asset_entry for record in instance.get_asset_records([*keys])}
    checks = _check_results(instance, pipelines)
    for key, (name, stage) in keys.items():
        event = records[key].last_materialization_record if key in records else None
        materialization = event.asset_materialization if event else None
        if event is None or materialization is None or RECIPE not in materialization.metadata:
            continue  # wiped, or reported by somebody else: as good as never made
        metadata = materialization.metadata
        recipe = str(metadata[RECIPE].value)
        states[name][stage] = Materialization(
            event_id=event.storage_id,
            recipe=recipe,
            digest=str(metadata[DIGEST].value),
            code_version=str(metadata[CODE_VERSION].value),
            inputs=_json(metadata[INPUTS].value),
            checks={check: passed for check, read, passed in checks.get(key, []) if read == recipe},
        )
    return states


def latest_metadata(
    instance: dg.DagsterInstance, keys: Sequence[dg.AssetKey]
) -> list[Mapping[str, dg.MetadataValue[Any]]]:
    """All metadata of the newest materialization of each asset; empty where there is none."""
    found = {record.asset_entry.asset_key: record.asset_entry for record in instance.get_asset_records(keys)}
    newest = [found[key].last_materialization if key in found else None for key in keys]
    return [one.asset_materialization.metadata if one and one.asset_materialization else {} for one in newest]


def metadata_history(
    instance: dg.DagsterInstance, key: dg.AssetKey, limit: int
) -> list[Mapping[str, dg.MetadataValue[Any]]]:
    """All metadata of an asset's last materializations, the newest first."""
    records = instance.fetch_materializations(dg.AssetRecordsFilter(asset_key=key), limit=limit).records
    return [record.asset_materialization.metadata for record in records if record.asset_materialization]


def _check_results(
    instance: dg.DagsterInstance, pipelines: Collection[str]
) -> dict[dg.AssetKey, list[tuple[str, str, bool]]]:
    """Per asset: check, recipe of the output that it read, and whether that passed.

    Dagster's own record names the materialization that was the newest when the check ended; ours names what was read.
    """
    keys = [
        dg.AssetCheckKey(asset_key(pipeline, stage), check)
        for pipeline in pipelines
        for stage in STAGES
        for check in BLOCKING_CHECKS[stage]
    ]
    # The last completed one: a later run may have planned the check and then skipped it, because nothing had changed.
    found = instance.event_log_storage.get_asset_check_summary_records(keys)
    results: dict[dg.AssetKey, list[tuple[str, str, bool]]] = {}
    for key, summary in found.items():
        record = summary.last_completed_check_execution_record
        evaluation = record.evaluation if record else None
        if evaluation and RECIPE in evaluation.metadata:
            read = str(evaluation.metadata[RECIPE].value)
            results.setdefault(key.asset_key, []).append((key.name, read, evaluation.passed))
    return results


def _json(value: Any) -> Mapping[str, str]:
    return json.loads(value) if isinstance(value, str) else value  # type: ignore[no-any-return]
