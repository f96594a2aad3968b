"""`mlops demo`: the whole loop on a table and on images, with a real daemon, in about a minute."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rich.table import Table

from mlops_assets.cli.console import out
from mlops_assets.errors import MlopsError
from mlops_assets.home import ensure_home, open_instance

if TYPE_CHECKING:
    import dagster as dg
    import polars as pl

    from mlops_assets.settings import Settings

WAIT_SECONDS: Final = 180.0
POLL_SECONDS: Final = 0.2


class DemoFailed(MlopsError):
    """The demo did not come to its end."""


@dataclass(frozen=True)
class Step:
    """One commit of the demo.

    Attributes:
        pipeline: Whose data change.
        title: What happens, as a headline.
        message: The commit's message.
        files: Makes the content by path in the repository.
    """

    pipeline: str
    title: str
    message: str
    files: Callable[[], Mapping[str, bytes]]


def demo() -> None:
    """Run the loop: iris (commit, train, gate, promote; change the data; revert it), then digits (images).

    Example: [bold]mlops demo[/bold], then [bold]mlops up[/bold] to look at all of it
    """
    from mlops_assets.cli.up import close_orphans, daemon_service, is_up
    from mlops_assets.services import started

    here = ensure_home()
    began = time.monotonic()
    for name in ("iris", "digits"):
        here.repository(name).init()
    with open_instance(here) as instance:
        with out.status("starting Dagster's daemon, which watches data and code ..."):
            close_orphans(here)
            services = [] if is_up(here) else [daemon_service(here)]
        with started(services):
            for number, step in enumerate(_steps(), start=1):
                out.rule(f"[bold]{number}. {step.title}", align="left")
                _take(step, here, instance)
    out.rule()
    out.print(f"The loop took {time.monotonic() - began:.0f} s. Nothing was trained for a state that was known before.")
    out.print(
        f"[bold]make up[/bold] starts the servers: Dagster {here.dagster_url} (lineage, runs, checks), "
        f"MLflow {here.mlflow_url} (runs, models), and the champions answer at {here.serve_url}/docs"
    )


def _steps() -> Sequence[Step]:
    from mlops_assets.data import samples

    def table(sample: Callable[[], pl.DataFrame]) -> Callable[[], Mapping[str, bytes]]:
        return lambda: {"iris.csv": sample().write_csv().encode()}

    def scans(sample: Callable[[], Mapping[str, bytes]]) -> Callable[[], Mapping[str, bytes]]:
        return lambda: {f"scans/{path}": image for path, image in sample().items()}

    return (
        Step("iris", "Iris goes into Oxen as scikit-learn has it", "iris, as scikit-learn has it", table(samples.iris)),
        Step(
            "iris",
            "A colleague commits another copy: two flowers differ",
            "iris, as the UCI copy has it",
            table(samples.iris_uci),
        ),
        Step(
            "iris",
            "The change is reverted: Fisher's paper is right",
            "back to Fisher's figures",
            table(samples.iris),
        ),
        Step("digits", "Images: 1,797 scans of digits, and a small CNN", "digits", scans(samples.digits)),
        Step(
            "digits",
            "18 scans are replaced, and only those are decoded",
            "18 scans made again",
            scans(samples.digits_changed),
        ),
    )


def _take(step: Step, here: Settings, instance: dg.DagsterInstance) -> None:
    """Commit, wait for what the sensor makes of it, and tell."""
    with out.status("committing to Oxen ..."):
        commit = here.repository(step.pipeline).commit(step.message, files=step.files())
    committed = time.monotonic()
    if commit is None:
        out.print("Oxen has this very content already: nothing to commit")
    else:
        out.print(f"Oxen commit [bold]{commit.id[:12]}[/bold] {commit.message}")
    run = _settled(step.pipeline, here, instance)
    if run:
        out.print(_told(step.pipeline, instance, run, time.monotonic() - committed))
    _print_champion(step.pipeline, instance)


def _settled(name: str, here: Settings, instance: dg.DagsterInstance) -> dg.DagsterRun | None:
    """Wait until the sensor has had its way; returns the run that it asked for, or None when nothing was stale.

    Raises:
        DemoFailed: A run failed, or none came.
    """
    from mlops_assets.assessment import Assessment, active_run
    from mlops_assets.pipeline import find_pipeline
    from mlops_assets.report import last_run

    before = last_run(instance, name)
    deadline = time.monotonic() + WAIT_SECONDS
    with out.status("waiting for the sensor ...") as spinner:
        while time.monotonic() < deadline:
            run = last_run(instance, name)
            if run and (before is None or run.run_id != before.run_id):
                spinner.update(f"run {run.run_id[:8]} is {run.status.value.lower()} ...")
                if run.is_failure_or_canceled:
                    raise DemoFailed(f"run {run.run_id[:8]} failed; `mlops up` shows why, at {here.dagster_url}")
            if active_run(instance, name) is None:
                pipeline = find_pipeline(name)
                now = Assessment.of(pipeline, here.repository(pipeline.repository), instance)
                if not now.plan.stale:
                    new = last_run(instance, name)
                    return new if new and (before is None or new.run_id != before.run_id) else None
            time.sleep(POLL_SECONDS)
    raise DemoFailed(f"no run within {WAIT_SECONDS:.0f} s; {here.home / 'logs' / 'daemon.log'} may tell why")


def _told(name: str, instance: dg.DagsterInstance, run: dg.DagsterRun, seconds: float) -> Table:
    """What a run did, stage by stage, and why it was asked for."""
    from mlops_assets.assessment import REASON_TAG
    from mlops_assets.pipeline import STAGES
    from mlops_assets.provenance import asset_key
    from mlops_assets.report import made_by

    table = Table("stage", "what happened", "seconds", title=f"run {run.run_id[:8]}, {seconds:.1f} s after the commit")
    table.caption = f"why: {run.tags.get(REASON_TAG, '')}"
    selected = run.asset_selection or set()
    made = made_by(instance, run.run_id)
    for stage in STAGES:
        key = asset_key(name, stage)
        if key not in selected:
            what, took = "not asked for", ""
        elif key in made:
            what, took = made[key]
        else:
            what, took = "[dim]unchanged, not run[/dim]", ""
        table.add_row(stage, what, took)
    return table


def _print_champion(name: str, instance: dg.DagsterInstance) -> None:
    from mlops_assets.report import champion_facts

    facts = champion_facts(instance, name)
    if facts is None:
        raise DemoFailed("the run ended without a decision about the champion")
    out.print(f"[green]champion[/green]: version {facts.version}, accuracy {facts.figures}")
    out.print(f"          {facts.outcome}")
    out.print(f"          MLflow run {facts.mlflow_url}")
