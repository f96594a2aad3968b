"""The `run_status` sensor: close runs whose process is gone, in Dagster and in MLflow."""

import json
import subprocess
import sys
import time
from typing import Any, Final

import dagster as dg

from mlops_assets import liveness
from mlops_assets.errors import MlopsError
from mlops_assets.sensors.instance import instance_of
from mlops_assets.settings import Settings, settings
from mlops_assets.tracking.store import may_have_open_runs

GRACE_SECONDS: Final = 30.0
"""How long a run whose steps are processes of their own must go unheld: between two steps nobody holds it."""

RETRY_SECONDS: Final = 60.0
"""How long to wait for an MLflow server that does not answer."""

ENDED: Final = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]

STEP_PROCESSES: Final = {dg.DagsterEventType.STEP_WORKER_STARTING, dg.DagsterEventType.STEP_WORKER_STARTED}


class ReconcileFailed(MlopsError):
    """MLflow's runs could not be compared with Dagster's."""


def close_dead_runs(instance: dg.DagsterInstance, here: Settings, free_since: dict[str, float]) -> list[str]:
    """End the runs whose process is gone; Dagster's run retries then try them once more.

    Args:
        instance: The Dagster instance.
        here: The settings, for the home.
        free_since: When a run was first seen unheld, in seconds since the epoch; brought up to date.

    Returns:
        The ids of the runs that were closed.
    """
    now = time.time()
    closed, waiting = [], {}
    for run_id, taken in liveness.released(here.home).items():
        run = instance.get_run_by_id(run_id)
        if run is None or run.is_finished:
            liveness.forget(here.home, run_id)
            continue
        since = max(free_since.get(run_id, now), taken)
        if now - since < GRACE_SECONDS and instance.all_logs(run_id, of_type=STEP_PROCESSES):
            waiting[run_id] = since
        else:
            _close(instance, run)
            closed.append(run_id)
    free_since.clear()
    free_since.update(waiting)
    return closed


def close_abandoned_runs(instance: dg.DagsterInstance, here: Settings) -> list[str]:
    """End the runs that died so early that they held nothing, and whose code server is gone with them.

    Only for the moments before services start and after they stopped: one that is merely slow must not look gone.

    Returns:
        The ids of the runs that were closed.
    """
    statuses = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]
    runs = instance.get_runs(dg.RunsFilter(statuses=statuses))
    abandoned = [run for run in runs if not liveness.is_known(here.home, run.run_id) and _is_without_server(run)]
    for run in abandoned:
        _close(instance, run)
    return [run.run_id for run in abandoned]


def close_mlflow_runs() -> list[str]:
    """Reconcile MLflow with Dagster in a child process, for this one must not load MLflow; a line per closed run.

    Raises:
        ReconcileFailed: MLflow cannot be reached, or does not answer in time.
    """
    command = [sys.executable, "-m", "mlops_assets.resources.mlflow_status"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    except subprocess.TimeoutExpired:
        raise ReconcileFailed("MLflow did not answer within 50 s, so its open runs stay as they are for now") from None
    if done.returncode != 0:
        raise ReconcileFailed((done.stderr.strip().splitlines() or ["the child process said nothing"])[-1])
    return done.stdout.splitlines()


def build_run_status() -> dg.SensorDefinition:
    """One sensor for all pipelines."""

    @dg.sensor(
        name="run_status",
        minimum_interval_seconds=5,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Closes runs whose process is gone, in Dagster and in MLflow, so that a status tells the truth.",
    )
    def run_status(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        here, instance = settings(), instance_of(context)
        seen: dict[str, Any] = {"free": {}, "ended": 0.0, "retry": 0.0} | json.loads(context.cursor or "{}")
        told = [f"closed Dagster run {run_id[:8]}" for run_id in close_dead_runs(instance, here, seen["free"])]
        ended = _last_end(instance)
        # Once after each run's end: a run that MLflow shows as open beside that is under way, or not Dagster's.
        if ended != seen["ended"] and time.time() >= seen["retry"]:
            try:
                if here.mlflow_tracking_uri or may_have_open_runs(here.home):
                    told += [f"closed MLflow run {line}" for line in close_mlflow_runs()]
                seen["ended"] = ended
            except ReconcileFailed as error:
                seen["retry"] = time.time() + RETRY_SECONDS
                told.append(str(error))
        return dg.SensorResult(skip_reason=", ".join(told) or "no run to close", cursor=json.dumps(seen))

    return run_status


def _close(instance: dg.DagsterInstance, run: dg.DagsterRun) -> None:
    why = "the run's process is gone (killed, or out of memory)"
    if run.status == dg.DagsterRunStatus.CANCELING:
        instance.report_run_canceled(run, why)
    else:
        instance.report_run_failed(run, why)


def _last_end(instance: dg.DagsterInstance) -> float:
    """When the last run ended, in seconds since the epoch; 0 when none has."""
    records = instance.get_run_records(dg.RunsFilter(statuses=ENDED), limit=1, order_by="update_timestamp")
    return records[0].update_timestamp.timestamp() if records else 0.0


def _is_without_server(run: dg.DagsterRun) -> bool:
    """Whether the run was launched by a code server that does not answer any more."""
    from dagster._core.errors import DagsterUserCodeUnreachableError
    from dagster._core.storage.tags import GRPC_INFO_TAG
    from dagster._grpc.client import DagsterGrpcClient

    if GRPC_INFO_TAG not in run.tags:
        return False
    server = json.loads(run.tags[GRPC_INFO_TAG])
    client = DagsterGrpcClient(host=server.get("host"), port=server.get("port"), socket=server.get("socket"))
    try:
        client.ping("")
    except DagsterUserCodeUnreachableError:
        return True
    return False
