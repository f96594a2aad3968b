"""`mlops demo`: the whole loop on iris, with a real daemon, in about a minute."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from rich.table import Table

from mlops_assets.cli.console import out
from mlops_assets.errors import MlopsError
from mlops_assets.home import ensure_home, open_instance

if TYPE_CHECKING:
    import dagster as dg

    from mlops_assets.settings import Settings

PIPELINE: Final = "iris"
WAIT_SECONDS: Final = 180.0
POLL_SECONDS: Final = 0.2


class DemoFailed(MlopsError):
    """The demo did not come to its end."""


def demo() -> None:
    """Run the loop on iris: commit, train, evaluate, gate, promote; change the data; revert it.

    Example: [bold]mlops demo[/bold], then [bold]mlops up[/bold] to look at all of it
    """
    from mlops_assets.cli.up import close_orphans, daemon_service, is_up
    from mlops_assets.data import samples
    from mlops_assets.services import started

    here = ensure_home()
    began = time.monotonic()
    repository = here.repository(PIPELINE)
    repository.init()
    with open_instance(here) as instance:
        with out.status("starting Dagster's daemon, which watches data and code ..."):
            close_orphans(here)
            services = [] if is_up(here) else [daemon_service(here)]
        with started(services):
            steps = (
                ("1. Iris goes into Oxen as scikit-learn has it", samples.iris, "iris, as scikit-learn has it"),
                (
                    "2. A colleague commits another copy: two flowers differ",
                    samples.iris_uci,
                    "iris, as the UCI copy has it",
                ),
                ("3. The change is reverted: Fisher's paper is right", samples.iris, "back to Fisher's figures"),
            )
            for title, sample, message in steps:
                out.rule(f"[bold]{title}", align="left")
                content = sample().write_csv().encode()
                commit = repository.commit(message, files={"iris.csv": content})
                committed = time.monotonic()
                if commit is None:
                    out.print("Oxen has this very table already: nothing to commit")
                else:
                    out.print(f"Oxen commit [bold]{commit.id[:12]}[/bold] {commit.message}")
                run = _settled(here, instance)
                if run:
                    out.print(_told(instance, run, time.monotonic() - committed))
                _print_champion(instance)
    out.rule()
    out.print(f"The loop took {time.monotonic() - began:.0f} s. Nothing was trained for a state that was known before.")
    out.print(
        f"[bold]make up[/bold] starts the servers: Dagster {here.dagster_url} (lineage, runs, checks), "
        f"MLflow {here.mlflow_url} (runs, models)"
    )


def _settled(here: Settings, instance: dg.DagsterInstance) -> dg.DagsterRun | None:
    """Wait until the sensor has had its way; returns the run that it asked for, or None when nothing was stale.

    Raises:
        DemoFailed: A run failed, or none came.
    """
    from mlops_assets.assessment import Assessment, active_run
    from mlops_assets.pipeline import find_pipeline
    from mlops_assets.report import last_run

    before = last_run(instance, PIPELINE)
    deadline = time.monotonic() + WAIT_SECONDS
    with out.status("waiting for the sensor ...") as spinner:
        while time.monotonic() < deadline:
            run = last_run(instance, PIPELINE)
            if run and (before is None or run.run_id != before.run_id):
                spinner.update(f"run {run.run_id[:8]} is {run.status.value.lower()} ...")
                if run.is_failure_or_canceled:
                    raise DemoFailed(f"run {run.run_id[:8]} failed; `mlops up` shows why, at {here.dagster_url}")
            if active_run(instance, PIPELINE) is None:
                pipeline = find_pipeline(PIPELINE)
                now = Assessment.of(pipeline, here.repository(pipeline.repository), instance)
                if not now.plan.stale:
                    new = last_run(instance, PIPELINE)
                    return new if new and (before is None or new.run_id != before.run_id) else None
            time.sleep(POLL_SECONDS)
    raise DemoFailed(f"no run within {WAIT_SECONDS:.0f} s; {here.home / 'logs' / 'daemon.log'} may tell why")


def _told(instance: dg.DagsterInstance, run: dg.DagsterRun, seconds: float) -> Table:
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
        key = asset_key(PIPELINE, stage)
        if key not in selected:
            what, took = "not asked for", ""
        elif key in made:
            what, took = made[key]
        else:
            what, took = "[dim]unchanged, not run[/dim]", ""
        table.add_row(stage, what, took)
    return table


def _print_champion(instance: dg.DagsterInstance) -> None:
    from mlops_assets.report import champion_facts

    facts = champion_facts(instance, PIPELINE)
    if facts is None:
        raise DemoFailed("the run ended without a decision about the champion")
    out.print(f"[green]champion[/green]: version {facts.version}, accuracy {facts.figures}")
    out.print(f"          {facts.outcome}")
    out.print(f"          MLflow run {facts.mlflow_url}")
