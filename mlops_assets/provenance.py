"""What Dagster's event log says about a pipeline, in the terms of `staleness.py`.

Belongs here: the metadata keys under which each materialization records its own provenance, and reading them back.
Does not: deciding anything.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import dagster as dg

from mlops_assets.fingerprint import Recipe
from mlops_assets.pipeline import BLOCKING_CHECKS, STAGES, Stage
from mlops_assets.staleness import Materialization

CODE_VERSION: Final = "mlops/code_version"
INPUTS: Final = "mlops/inputs"
RECIPE: Final = "mlops/recipe"
DIGEST: Final = "mlops/digest"


PIPELINE_TAG: Final = "mlops/pipeline"
"""On every run that the platform asks for; the run queue lets one of a pipeline through at a time."""

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
    keys = {asset_key(pipeline, stage): stage for stage in STAGES}
    records = {record.asset_entry.asset_key: record.asset_entry for record in instance.get_asset_records([*keys])}
    checks = _check_results(instance, pipeline)
    state: dict[Stage, Materialization] = {}
    for key, stage in keys.items():
        event = records[key].last_materialization_record if key in records else None
        materialization = event.asset_materialization if event else None
        if event is None or materialization is None or RECIPE not in materialization.metadata:
            continue  # wiped, or reported by somebody else: as good as never made
        metadata = materialization.metadata
        state[stage] = Materialization(
            event_id=event.storage_id,
            recipe=str(metadata[RECIPE].value),
            digest=str(metadata[DIGEST].value),
            code_version=str(metadata[CODE_VERSION].value),
            inputs=_json(metadata[INPUTS].value),
            checks={
                name: passed for (name, key), passed in checks[stage].items() if key == str(metadata[RECIPE].value)
            },
        )
    return state


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


def _check_results(instance: dg.DagsterInstance, pipeline: str) -> dict[Stage, dict[tuple[str, str], bool]]:
    """Per stage: (check, recipe of the output that it read) -> passed.

    Dagster's own record names the materialization that was the newest when the check ended; ours names what was read.
    """
    keys = {
        dg.AssetCheckKey(asset_key(pipeline, stage), name): stage for stage in STAGES for name in BLOCKING_CHECKS[stage]
    }
    # The last completed one: a later run may have planned the check and then skipped it, because nothing had changed.
    found = instance.event_log_storage.get_asset_check_summary_records([*keys])
    results: dict[Stage, dict[tuple[str, str], bool]] = {stage: {} for stage in STAGES}
    for key, summary in found.items():
        record = summary.last_completed_check_execution_record
        evaluation = record.evaluation if record else None
        if evaluation and RECIPE in evaluation.metadata:
            results[keys[key]][key.name, str(evaluation.metadata[RECIPE].value)] = evaluation.passed
    return results


def _json(value: Any) -> Mapping[str, str]:
    return json.loads(value) if isinstance(value, str) else value  # type: ignore[no-any-return]
