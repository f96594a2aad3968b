"""The `rematerialize` sensor: ask for exactly what a change of data or code made stale.

Belongs here: one tick. Does not: the comparison that it rests on (`assessment.py`, `staleness.py`), which
`mlops status` and the push of `mlops data commit` share.
"""

import dagster as dg

from mlops_assets.assessment import Assessment, active_run
from mlops_assets.errors import MlopsError
from mlops_assets.pipeline import Pipeline
from mlops_assets.provenance import job_name, source_key
from mlops_assets.resources.oxen import OxenResource


def build_rematerialize(pipeline: Pipeline) -> dg.SensorDefinition:
    """The sensor of one pipeline."""

    @dg.sensor(
        name=f"{pipeline.name}_rematerialize",
        job_name=job_name(pipeline.name),
        minimum_interval_seconds=1,
        default_status=dg.DefaultSensorStatus.RUNNING if pipeline.spec.sensor else dg.DefaultSensorStatus.STOPPED,
        description=f"Asks for one run over what is stale in {pipeline.name}, by the Oxen head and the source files.",
    )
    def rematerialize(context: dg.SensorEvaluationContext, oxen: OxenResource) -> dg.SensorResult | dg.SkipReason:
        running = active_run(context.instance, pipeline.name)
        if running:
            return dg.SkipReason(f"run {running.run_id[:8]} of {pipeline.name} is {running.status.value.lower()}")
        try:
            current = Pipeline.load(pipeline.folder)
            now = Assessment.of(current, oxen.repository(current.repository), context.instance)
        except MlopsError as error:
            return dg.SkipReason(str(error))
        observed = [] if context.cursor == now.head.digest else [_observation(now)]
        if not now.plan.stale:
            reason = f"blocked: {now.plan.blocked}" if now.plan.blocked else "nothing is stale"
            return dg.SensorResult(skip_reason=reason, asset_events=observed, cursor=now.head.digest)
        request = dg.RunRequest(run_key=now.run_key, asset_selection=now.selection, tags=now.tags)
        return dg.SensorResult(run_requests=[request], asset_events=observed, cursor=now.head.digest)

    return rematerialize


def _observation(now: Assessment) -> dg.AssetObservation:
    """Tell Dagster's lineage which data version Oxen has; no run is needed for that."""
    commit = now.head.commit
    return dg.AssetObservation(
        asset_key=source_key(now.pipeline.name),
        tags={"dagster/data_version": now.head.digest},
        metadata={
            "oxen commit": commit.id,
            "message": commit.message,
            "author": commit.author,
            "committed": dg.MetadataValue.timestamp(commit.timestamp),
        },
    )
