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

LOST_SECONDS: Final = 45.0
"""How long a run that holds nothing must be unknown to its code server: launching it takes a while."""

ANSWER_SECONDS: Final = 5
"""How long a code server may take to say whether it has a run."""

RETRY_SECONDS: Final = 60.0
"""How long to wait for an MLflow server that does not answer."""

ENDED: Final = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]

LAUNCHED: Final = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]

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


def close_lost_runs(
    instance: dg.DagsterInstance, here: Settings, lost_since: dict[str, float], grace: float = LOST_SECONDS
) -> list[str]:
    """End the runs of this code location that died so early that they held nothing, and their code server with them.

    Of one whose process alone died the code server tells; one that is merely slow the code server has.

    Args:
        instance: The Dagster instance.
        here: The settings, for the home and the code location.
        lost_since: When a run was first seen lost, in seconds since the epoch; brought up to date.
        grace: For how many seconds a run must be lost; 0 while no service runs that could be launching it.

    Returns:
        The ids of the runs that were closed.
    """
    now = time.time()
    closed, waiting = [], {}
    for run in instance.get_runs(dg.RunsFilter(statuses=LAUNCHED)):
        origin = run.remote_job_origin
        if origin is None or origin.location_name != here.location:  # another host's, whose home tells of it
            continue
        if liveness.is_known(here.home, run.run_id) or _has_server(run):
            continue
        since = lost_since.get(run.run_id, now)
        if now - since < grace:
            waiting[run.run_id] = since
            continue
        again = instance.get_run_by_id(run.run_id)  # it may have gone on while its server was asked
        if again and not again.is_finished and not liveness.is_known(here.home, run.run_id):
            _close(instance, again)
            closed.append(run.run_id)
    lost_since.clear()
    lost_since.update(waiting)
    return closed


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
        seen: dict[str, Any] = {"free": {}, "lost": {}, "ended": 0.0, "retry": 0.0} | json.loads(context.cursor or "{}")
        closed = close_dead_runs(instance, here, seen["free"]) + close_lost_runs(instance, here, seen["lost"])
        told = [f"closed Dagster run {run_id[:8]}" for run_id in closed]
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


def _has_server(run: dg.DagsterRun) -> bool:
    """Whether the code server that was told to launch the run is there and has its process."""
    from dagster._core.errors import DagsterUserCodeUnreachableError
    from dagster._core.storage.tags import GRPC_INFO_TAG
    from dagster._grpc.client import DagsterGrpcClient
    from dagster._grpc.types import CanCancelExecutionRequest, CanCancelExecutionResult
    from dagster._serdes import deserialize_value

    if GRPC_INFO_TAG not in run.tags:
        return False
    server = json.loads(run.tags[GRPC_INFO_TAG])
    client = DagsterGrpcClient(
        port=server.get("port"), socket=server.get("socket"), host=server["host"], use_ssl=server.get("use_ssl", False)
    )
    try:
        told = client.can_cancel_execution(CanCancelExecutionRequest(run_id=run.run_id), timeout=ANSWER_SECONDS)
    except DagsterUserCodeUnreachableError:
        return False
    return deserialize_value(told, CanCancelExecutionResult).can_cancel
