"""The `run_status` sensor: close runs whose process is gone, in Dagster and in MLflow."""

import json
import subprocess
import sys
import time
from typing import Final

import dagster as dg

from mlops_assets import liveness
from mlops_assets.provenance import IN_PROGRESS
from mlops_assets.settings import Settings, settings
from mlops_assets.tracking.store import may_have_open_runs

GRACE_SECONDS: Final = 10.0
"""How long a run's lock must be free: with the multiprocess executor nobody holds it between two steps."""


def close_dead_runs(
    instance: dg.DagsterInstance, here: Settings, free_since: dict[str, float], grace: float = GRACE_SECONDS
) -> list[str]:
    """Fail the runs whose process is gone; Dagster's run retries then try them once more.

    Args:
        instance: The Dagster instance.
        here: The settings, for the home.
        free_since: When each run's lock was first seen free, in seconds since the epoch; brought up to date.
        grace: Seconds for which a lock must have been free.

    Returns:
        The ids of the runs that were closed.
    """
    started = [dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]
    running = {run.run_id: run for run in instance.get_runs(dg.RunsFilter(statuses=started))}
    free = liveness.dead(here.home, running)
    now = time.time()
    closed = [run_id for run_id in free if now - free_since.get(run_id, now) >= grace]
    for run_id in closed:
        instance.report_run_failed(running[run_id], "the run's process is gone (killed, or out of memory)")
    waiting = {run_id: free_since.get(run_id, now) for run_id in free if run_id not in closed}
    free_since.clear()
    free_since.update(waiting)
    return closed


def build_run_status() -> dg.SensorDefinition:
    """One sensor for all pipelines."""

    @dg.sensor(
        name="run_status",
        minimum_interval_seconds=5,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Closes runs whose process is gone, in Dagster and in MLflow, so that a status tells the truth.",
    )
    def run_status(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        here, instance = settings(), context.instance
        free_since: dict[str, float] = json.loads(context.cursor or "{}")
        closed = [f"Dagster run {run_id[:8]}" for run_id in close_dead_runs(instance, here, free_since)]
        busy = instance.get_runs(dg.RunsFilter(statuses=IN_PROGRESS), limit=1)
        if not busy and not here.mlflow_tracking_uri and may_have_open_runs(here.home):
            closed += [f"MLflow run {line}" for line in close_mlflow_runs()]
        told = f"closed {', '.join(closed)}" if closed else "no run to close"
        return dg.SensorResult(skip_reason=told, cursor=json.dumps(free_since))

    return run_status


def close_mlflow_runs() -> list[str]:
    """Reconcile MLflow with Dagster in a child process, for this one must not load MLflow; a line per closed run."""
    command = [sys.executable, "-m", "mlops_assets.resources.mlflow_status"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    return (done.stdout + done.stderr).strip().splitlines()
