"""`mlops run`: materialize what is stale, here and now, without any server."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Annotated, Final

import typer

from mlops_assets.cli import console
from mlops_assets.cli.console import out, progress_of_runs
from mlops_assets.errors import MlopsError
from mlops_assets.home import ensure_home, open_instance
from mlops_assets.pipeline import DECISIONS, Pipeline, own_pipeline

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import dagster as dg

    from mlops_assets.settings import Settings

INTERRUPTED: Final = 130
"""What a shell makes of a command that Ctrl-C ended."""


def run(
    name: Annotated[str, typer.Argument(metavar="PIPELINE", help="Name of the pipeline, a folder below defs/.")],
    epochs: Annotated[
        int | None,
        typer.Option(min=1, help="A trial: train only so long, promote nothing; the next run does as defs.yaml says."),
    ] = None,
) -> None:
    """Materialize what is stale in a pipeline, in this process; ends with the champion.

    Where there are no data yet, they are taken from the pipeline's origin first.

    Example: [bold]mlops run iris[/bold], or [bold]mlops run cifar10 --epochs 2[/bold] for a first look
    """
    from mlops_assets.cli.data import ensure_data
    from mlops_assets.execution import RunInterrupted

    here = ensure_home()
    trial = {} if epochs is None else {"epochs": epochs}
    pipeline = own_pipeline(name).trial(trial)
    try:
        with _alone(here, name), open_instance(here) as instance:
            ensure_data(pipeline, here)
            _run(pipeline, here, instance, trial)
    except (RunInterrupted, KeyboardInterrupt) as error:
        console.fail(error if isinstance(error, RunInterrupted) else RunInterrupted(f"{name} was interrupted"))
        raise typer.Exit(INTERRUPTED) from None


def _run(pipeline: Pipeline, here: Settings, instance: dg.DagsterInstance, trial: Mapping[str, int]) -> None:
    from mlops_assets.assessment import Assessment, active_run
    from mlops_assets.execution import RunFailed, execute, wanted_stages
    from mlops_assets.report import accuracy_line, champion_line
    from mlops_assets.sensors.run_status import close_dead_runs
    from mlops_assets.store import Store

    name = pipeline.name
    dead = close_dead_runs(instance, here, {})
    for run_id in dead:
        out.print(f"closed run {run_id[:8]}: its process is gone")
    running = active_run(instance, name)
    if running:
        state = running.status.value.lower()
        raise RunFailed(f"run {running.run_id[:8]} of {name} is {state}; wait for it, or cancel it in the UI")
    now = Assessment.of(pipeline, here.repository(pipeline.repository), instance)
    if now.plan.blocked and not now.plan.stale:
        raise RunFailed(f"{name} is blocked: {now.plan.blocked}; commit data that passes, or mend the schema")
    stages = wanted_stages(now, Store(here.store_url))
    if trial:
        stages = tuple(stage for stage in stages if stage not in DECISIONS)
    try:
        if not stages:
            out.print(f"[green]{name}: nothing is stale[/green] (Oxen {now.head.commit.id[:12]})")
        else:
            for stage in stages:
                out.print(
                    f"[bold]{name}/{stage}[/bold]: {now.plan.stale.get(stage, 'lost from the store, or behind it')}"
                )
            with progress_of_runs():
                execute(now, stages, instance, trial)
    finally:
        if dead or stages:
            _close_mlflow_runs(here, instance)
    if trial:
        accuracy = accuracy_line(instance, name)
        out.print(f"a trial with {trial['epochs']} epochs, which is never promoted: {accuracy}")
        out.print(f"`mlops run {name}`, or the sensor, trains as defs.yaml says")
    out.print(champion_line(instance, name))


@contextmanager
def _alone(here: Settings, name: str) -> Iterator[None]:
    """Keep a second `mlops run` of the pipeline out, from before the first has made its Dagster run.

    Raises:
        RunFailed: There is one under way.
    """
    from filelock import FileLock, Timeout

    from mlops_assets.execution import RunFailed

    folder = here.home / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / f"run-{name}", timeout=0):
            yield
    except Timeout:
        raise RunFailed(f"another `mlops run {name}` is under way; wait for it, or stop it") from None


def _close_mlflow_runs(here: Settings, instance: dg.DagsterInstance) -> None:
    """Give MLflow's open runs of Dagster runs that have ended their true status, here where MLflow is loaded anyway."""
    from mlops_assets.resources.mlflow_status import reconcile
    from mlops_assets.tracking.runs import Tracking
    from mlops_assets.tracking.store import may_have_open_runs

    uri = here.mlflow_tracking_uri
    if uri or may_have_open_runs(here.home):
        with suppress(MlopsError):  # the next run closes them, or the sensor
            reconcile(Tracking(uri) if uri else Tracking.embedded(here.home), instance)
