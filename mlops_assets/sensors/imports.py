"""The optional schedule of a pipeline's source: fetch what is new.

Belongs here: when. Not here: fetching (`assets/imported.py`), and what follows a commit (`rematerialize.py`).
"""

import dagster as dg

from mlops_assets.assessment import REASON_TAG
from mlops_assets.pipeline import Pipeline
from mlops_assets.provenance import IN_PROGRESS, import_job_name


def build_import_schedule(pipeline: Pipeline) -> dg.ScheduleDefinition:
    """The schedule of one pipeline's source.

    Its runs carry no tag of the pipeline: they need not wait for a training, nor a training for them.
    """
    source = pipeline.spec.data.source
    assert source
    assert source.schedule

    @dg.schedule(
        name=f"{pipeline.name}_import",
        job_name=import_job_name(pipeline.name),
        cron_schedule=source.schedule,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description=f"Fetches the data of {pipeline.name} from their source; what is unchanged runs nothing.",
    )
    def fetch(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        running = dg.RunsFilter(job_name=import_job_name(pipeline.name), statuses=IN_PROGRESS)
        if runs := context.instance.get_runs(running, limit=1):
            return dg.SkipReason(f"run {runs[0].run_id[:8]} is still fetching it")
        tick = context.scheduled_execution_time.isoformat()
        return dg.RunRequest(run_key=tick, tags={REASON_TAG: f"schedule {source.schedule}"})

    return fetch
