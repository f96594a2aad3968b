"""The optional schedule of a pipeline: train again although nothing changed."""

import dagster as dg

from mlops_assets.assessment import REASON_TAG
from mlops_assets.assets.stage import TICK_TAG
from mlops_assets.pipeline import STAGES, Pipeline
from mlops_assets.provenance import asset_key, job_name


def build_retrain(pipeline: Pipeline) -> dg.ScheduleDefinition:
    """The schedule of one pipeline; its tick enters the seed, so that the training is not a cache hit."""
    assert pipeline.spec.schedule

    @dg.schedule(
        name=f"{pipeline.name}_retrain",
        job_name=job_name(pipeline.name),
        cron_schedule=pipeline.spec.schedule,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description=f"Trains {pipeline.name} with another seed at each tick.",
    )
    def retrain(context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
        tick = context.scheduled_execution_time.isoformat()
        return dg.RunRequest(
            run_key=tick,
            asset_selection=[asset_key(pipeline.name, stage) for stage in STAGES[STAGES.index("model") :]],
            tags={TICK_TAG: tick, REASON_TAG: f"schedule {pipeline.spec.schedule}"},
        )

    return retrain
