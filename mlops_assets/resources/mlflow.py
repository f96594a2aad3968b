"""Dagster's handle on MLflow, and the MLflow run that stands for a Dagster run.

Belongs here: which store, the parent run of the models that one Dagster run trains, and its end. Not here: what is
logged (`tracking/`), and closing the runs of processes that died (`mlflow_status.py`).

The parent is made by dagster-mlflow, whose own resource cannot be used as it is: parallel steps make two parents, its
way of keeping MLflow's exit hook from ending the run misses the function that MLflow registers now, so a failed run
ends as FINISHED, and it sets MLflow's process-wide tracking URI, experiment and active run. Here it is asked for only
by a step that trains, under a lock, and all of that state is handed back as it was found.
"""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from collections.abc import Generator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import dagster as dg
from dagster import DagsterEventType, DagsterInstance, DagsterRunStatus
from filelock import FileLock
from pydantic import Field, PrivateAttr

from mlops_assets.tracking import tags as keys
from mlops_assets.tracking.runs import Status, Tracking
from mlops_assets.tracking.store import TrackingError, default_home, quiet

if TYPE_CHECKING:
    from dagster_mlflow.resources import MlFlow

INTERRUPTED = frozenset({"DagsterExecutionInterruptedError", "KeyboardInterrupt"})


class MLflowResource(dg.ConfigurableResource["MLflowResource"]):
    """MLflow, embedded or a server, for the steps of one Dagster run."""

    tracking_uri: str = Field(default="", description="MLflow's address; empty means the store under the home.")
    home: str = Field(default="", description="The platform's home; empty means $MLOPS_HOME, or its default.")

    _tracking: Tracking | None = PrivateAttr(default=None)
    _parents: dict[str, str] = PrivateAttr(default_factory=dict)

    def tracking(self) -> Tracking:
        """The store, created on the first call when it is the embedded one.

        Raises:
            TrackingError: it cannot be created.
        """
        if self._tracking is None:
            self._tracking = Tracking(self.tracking_uri) if self.tracking_uri else Tracking.embedded(self._home)
        return self._tracking

    def run_tags(self, context: dg.AssetExecutionContext) -> dict[str, str]:
        """Tags for every model's run: by these it is closed if the Dagster run ends before it."""
        return {keys.DAGSTER_RUN: context.run.run_id, keys.DAGSTER_INSTANCE: instance_id(context.instance)}

    def parent_run(self, context: dg.AssetExecutionContext, *, experiment: str) -> str:
        """The id of the MLflow run, in `experiment`, that stands for this Dagster run: one, however many steps ask.

        It ends with the Dagster run when the steps ran in one process; otherwise `mlflow_status` closes it.

        Raises:
            TrackingError: MLflow cannot be reached or refuses.
        """
        known = self._parents.get(experiment)
        if known:
            return known
        tracking = self.tracking()
        experiment_id = tracking.experiment(experiment)
        parent = _find(tracking, experiment_id, context.run.run_id)
        if parent is None:
            _import_dagster_mlflow()  # takes a second, which nobody else should wait for
            lock = self._home / "mlflow" / "parent.lock"
            lock.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(lock):
                parent = _find(tracking, experiment_id, context.run.run_id) or _make(tracking, context, experiment)
        self._parents[experiment] = parent
        return parent

    @contextlib.contextmanager
    def yield_for_execution(self, context: dg.InitResourceContext) -> Generator[MLflowResource, None, None]:
        """Close the parents at the end of a run whose steps all ran in this process."""
        try:
            yield self
        finally:
            if self._parents and context.run and context.instance:
                status = _outcome(context.instance, context.run)
                for parent in self._parents.values():
                    if status:
                        self._close(parent, status)

    def _close(self, parent: str, status: Status) -> None:
        try:
            self.tracking().close(parent, status)
        except TrackingError as exc:
            dg.get_dagster_logger().warning("The MLflow run %s stays open for now. %s", parent, exc)

    @property
    def _home(self) -> Path:
        return Path(self.home) if self.home else default_home()


def instance_id(instance: DagsterInstance) -> str:
    """What tells this Dagster instance from others that write to the same MLflow server."""
    from dagster._core.storage.runs.sql_run_storage import SqlRunStorage

    storage = instance.run_storage
    return storage.get_run_storage_id() if isinstance(storage, SqlRunStorage) else ""


def _find(tracking: Tracking, experiment_id: str, dagster_run_id: str) -> str | None:
    with tracking.one_sentence():
        query = f"tags.{keys.DAGSTER_PARENT} = '{dagster_run_id}'"
        found = tracking.client.search_runs([experiment_id], query, max_results=1)
    return str(found[0].info.run_id) if found else None


def _import_dagster_mlflow() -> type[MlFlow]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Function `_create_mlflow_run_hook` is currently in beta", dg.BetaWarning)
        from dagster_mlflow.resources import MlFlow
    return MlFlow


def _make(tracking: Tracking, context: dg.AssetExecutionContext, experiment: str) -> str:
    mlflow_class = _import_dagster_mlflow()
    run = context.run
    job = f"dagster-{run.run_id[:8]}" if run.job_name.startswith("__") else run.job_name
    asked = SimpleNamespace(
        log=context.log,
        dagster_run=SimpleNamespace(job_name=job),
        run_id=run.run_id,
        resource_config={
            "experiment_name": experiment,
            "extra_tags": {keys.DAGSTER_INSTANCE: instance_id(context.instance)},
        },
    )
    with tracking.one_sentence(), _fluent_state(tracking.uri), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Class `MlFlow` is currently in beta", dg.BetaWarning)
        # dagster-mlflow tags the run after it started it; a process that died in between would leave one that nobody
        # recognises, so the tags come with the start.
        born_with = {keys.DAGSTER_PARENT: run.run_id, keys.DAGSTER_INSTANCE: instance_id(context.instance)}
        os.environ["MLFLOW_RUN_CONTEXT"] = json.dumps(born_with)
        mlflow_class(asked)
        import mlflow

        active = mlflow.active_run()
    if active is None:
        raise TrackingError(f"dagster-mlflow started no MLflow run for the Dagster run {run.run_id}: run it again.")
    return str(active.info.run_id)


@contextlib.contextmanager
def _fluent_state(uri: str) -> Iterator[None]:
    """Lend out MLflow's process-wide state, pointed at `uri`, and put back what was there.

    A run left on the stack of active runs would be marked FINISHED by MLflow's exit hook, whatever became of it.
    """
    from mlflow.tracking import fluent
    from mlflow.tracking._tracking_service.utils import _use_tracking_uri

    variables = {
        name: os.environ.pop(name, None)
        for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_ID", "MLFLOW_RUN_ID", "MLFLOW_RUN_CONTEXT")
    }
    stack = fluent._active_run_stack.get()  # type: ignore[no-untyped-call]  # noqa: SLF001
    runs, experiment_id = list(stack), fluent._active_experiment_id  # noqa: SLF001
    stack.clear()
    try:
        with _use_tracking_uri(uri), quiet("mlflow.tracking.fluent"):
            yield
    finally:
        stack[:] = runs
        fluent._active_experiment_id = experiment_id  # noqa: SLF001
        for name, value in variables.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _outcome(instance: DagsterInstance, run: dg.DagsterRun) -> Status | None:
    """How a run ends whose steps were executed by this process; None when that is not for this process to say."""
    ended = {DagsterEventType.STEP_SUCCESS, DagsterEventType.STEP_SKIPPED, DagsterEventType.STEP_FAILURE}
    workers = {DagsterEventType.STEP_WORKER_STARTING, DagsterEventType.STEP_WORKER_STARTED}
    events = [entry.dagster_event for entry in instance.all_logs(run.run_id, of_type=ended | workers)]
    if any(event and event.event_type in workers for event in events):
        return None
    failures = [event.step_failure_data.error for event in events if event and event.is_step_failure]
    now = instance.get_run_by_id(run.run_id)
    if now and now.status in (DagsterRunStatus.CANCELING, DagsterRunStatus.CANCELED):
        return "KILLED"
    if failures:
        return "KILLED" if any(error and error.cls_name in INTERRUPTED for error in failures) else "FAILED"
    plan = instance.get_execution_plan_snapshot(run.execution_plan_snapshot_id or "")
    done = {event.step_key for event in events if event}
    return "FINISHED" if done.issuperset(plan.step_keys_to_execute) else None
