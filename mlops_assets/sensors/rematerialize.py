"""The `rematerialize` sensor: ask for exactly what a change of data or code made stale.

Belongs here: one tick. Does not: the comparison that it rests on (`assessment.py`, `staleness.py`), which
`mlops status` and the push of `mlops data commit` share.
"""

import time
from typing import Final

import dagster as dg

from mlops_assets.assessment import WISH_TAG, Assessment, active_run
from mlops_assets.errors import MlopsError
from mlops_assets.pipeline import Pipeline, pipeline_folders
from mlops_assets.provenance import job_name, source_key
from mlops_assets.resources.oxen import OxenResource

WATCH_SECONDS: Final = 3.5
"""How long a tick with nothing to do goes on looking at the data: the daemon's loop comes round every 5 s."""

WATCH_STEP_SECONDS: Final = 0.1
"""A look is a few `stat` calls."""

MOST_WATCHED: Final = 6
"""Pipelines up to which ticks may wait; `dagster.yaml` gives the sensors eight threads."""

MOST_ATTEMPTS: Final = 3
AGAIN_SECONDS: Final = 600.0
"""How long after a failed run its wish is asked for again; the second time, twice as long."""


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
            now = _assess(pipeline, oxen, context.instance)
            if not now.plan.stale and context.last_tick_completion_time is not None:
                now = _watched(now, oxen, context.instance)
        except MlopsError as error:
            return dg.SkipReason(str(error))
        observed = [] if context.cursor == now.head.digest else [_observation(now)]
        wish = _wish(now, context.instance)
        if isinstance(wish, str):
            return dg.SensorResult(skip_reason=wish, asset_events=observed, cursor=now.head.digest)
        request = dg.RunRequest(run_key=wish.run_key, asset_selection=now.selection, tags=wish.tags)
        return dg.SensorResult(run_requests=[request], asset_events=observed, cursor=now.head.digest)

    return rematerialize


def _assess(pipeline: Pipeline, oxen: OxenResource, instance: dg.DagsterInstance) -> Assessment:
    current = Pipeline.load(pipeline.folder)
    return Assessment.of(current, oxen.repository(current.repository), instance)


def _watched(now: Assessment, oxen: OxenResource, instance: dg.DagsterInstance) -> Assessment:
    """Wait for new data until shortly before Dagster's next round of ticks, which comes every five seconds.

    With many pipelines nobody waits: a waiting tick keeps one of the daemon's threads.
    """
    if len(pipeline_folders(now.pipeline.folder.parent)) > MOST_WATCHED:
        return now
    repository = oxen.repository(now.pipeline.repository)
    stamp, deadline = repository.change_stamp(), time.monotonic() + WATCH_SECONDS
    while time.monotonic() < deadline:
        time.sleep(WATCH_STEP_SECONDS)
        if repository.change_stamp() != stamp:
            return _assess(now.pipeline, oxen, instance)
    return now


def _wish(now: Assessment, instance: dg.DagsterInstance) -> dg.RunRequest | str:
    """What to ask for, or why nothing is.

    Dagster drops a request whose key it has seen, so one wish is one run. A run that failed may have met an outage, and
    is asked for again, a few times and ever later.
    """
    if not now.plan.stale:
        return f"blocked: {now.plan.blocked}" if now.plan.blocked else "nothing is stale"
    filters = dg.RunsFilter(tags={WISH_TAG: now.run_key}, statuses=[dg.DagsterRunStatus.FAILURE])
    failed = [one for one in instance.get_run_records(filters) if one.end_time]
    if not failed:
        return dg.RunRequest(run_key=now.run_key, tags=now.tags)
    attempts = len({one.dagster_run.get_root_run_id() or one.dagster_run.run_id for one in failed})
    last = max(one.end_time or 0.0 for one in failed)
    if attempts >= MOST_ATTEMPTS:
        return f"asked for {attempts} times and failed each time; see the runs, and use `mlops run {now.pipeline.name}`"
    due = last + attempts * AGAIN_SECONDS
    if time.time() < due:
        return f"asked for and failed; asked for again in {due - time.time():.0f} s"
    return dg.RunRequest(run_key=f"{now.run_key}-{attempts + 1}", tags=now.tags)


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
