"""Running a pipeline's stale assets in this process, as a run like any other."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg
from dagster._core.events import JobFailureData, RunFailureReason

from mlops_assets.assessment import Assessment
from mlops_assets.assets.champion import MOVE_TAG
from mlops_assets.assets.stage import TRIAL_TAG, is_lost
from mlops_assets.errors import MlopsError
from mlops_assets.liveness import hold
from mlops_assets.pipeline import STAGES, Pipeline, Stage
from mlops_assets.provenance import PIPELINE_TAG, asset_key, job_name
from mlops_assets.settings import settings
from mlops_assets.store import Store


class RunFailed(MlopsError):
    """A run that did not succeed."""


class RunInterrupted(MlopsError):
    """A run that Ctrl-C or SIGTERM ended."""


def wanted_stages(now: Assessment, store: Store) -> tuple[Stage, ...]:
    """What is stale or lost from the store, with all that hangs on it: there, what is unchanged does nothing."""
    name = now.pipeline.name
    wanted = [stage for stage in STAGES if stage in now.plan.stale or is_lost(store, name, stage, now.state)]
    return STAGES[STAGES.index(wanted[0]) :] if wanted else ()


def execute(
    now: Assessment, stages: Sequence[Stage], instance: dg.DagsterInstance, trial: Mapping[str, Any] | None = None
) -> str:
    """Run stages and return the run's id.

    Args:
        now: What is wanted.
        stages: What to run.
        instance: The Dagster instance.
        trial: Options of `training` that `now` has otherwise than the pipeline's file.

    Raises:
        RunFailed: A step or a blocking check failed; says which, and what it said.
        RunInterrupted: Ctrl-C or SIGTERM ended it; Dagster and MLflow know.
    """
    tags = {**now.tags, TRIAL_TAG: json.dumps(trial)} if trial else now.tags
    return _executed(now.pipeline, stages, instance, tags)


def execute_move(pipeline: Pipeline, instance: dg.DagsterInstance, move: Mapping[str, Any]) -> str:
    """Move the champion by hand, as a run of its asset like any other; returns the run's id.

    Args:
        pipeline: Whose champion.
        instance: The Dagster instance.
        move: `how` ("rollback" or "hand"), `version`, `actor`, `reason`; for a rollback `leaves`, the version now.

    Raises:
        RunFailed: It cannot be done; says why.
        RunInterrupted: Ctrl-C or SIGTERM ended it.
    """
    return _executed(pipeline, ["champion"], instance, {PIPELINE_TAG: pipeline.name, MOVE_TAG: json.dumps(move)})


def _executed(
    pipeline: Pipeline, stages: Sequence[Stage], instance: dg.DagsterInstance, tags: Mapping[str, str]
) -> str:
    from mlops_assets.component import pipeline_definitions
    from mlops_assets.definitions import platform

    # This pipeline's definitions alone: another one that does not load is no obstacle.
    definitions = dg.Definitions.merge(pipeline_definitions(pipeline), platform())
    job = definitions.resolve_job_def(job_name(pipeline.name))
    quiet = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
    run_id = str(uuid.uuid4())
    hold(settings().home, run_id)  # before the run exists, so that it is found dead whenever this process dies
    result = job.execute_in_process(
        instance=instance,
        run_id=run_id,
        run_config=quiet,
        asset_selection=[asset_key(pipeline.name, stage) for stage in stages],
        tags=dict(tags),
        raise_on_error=False,
    )
    if result.success:
        return run_id
    name = f"run {run_id[:8]} of {pipeline.name}"
    if _was_interrupted(result):
        raise RunInterrupted(f"{name} was interrupted; `mlops run {pipeline.name}` goes on where it stopped")
    raise RunFailed(f"{name} failed: {'; '.join(_failures(result))}")


def _was_interrupted(result: dg.ExecuteInProcessResult) -> bool:
    ends = [event.event_specific_data for event in result.all_events if event.is_job_failure]
    return any(
        isinstance(end, JobFailureData) and end.failure_reason == RunFailureReason.UNEXPECTED_TERMINATION
        for end in ends
    )


def _failures(result: dg.ExecuteInProcessResult) -> list[str]:
    """What failed, in the words of the checks and of the steps."""
    failed_checks = [one for one in result.get_asset_check_evaluations() if one.blocking and not one.passed]
    if failed_checks:
        return [
            f"{one.asset_key.to_user_string()}'s check '{one.check_name}': {one.description}" for one in failed_checks
        ]
    failures = [event.step_failure_data for event in result.all_events if event.is_step_failure]
    return [
        (one.user_failure_data.description if one.user_failure_data else None) or _innermost(one.error)
        for one in failures
    ]


def _innermost(error: Any) -> str:
    """What was raised first, below Dagster's wrapping."""
    while error and error.cause:
        error = error.cause
    return error.message.strip() if error else "unknown"
