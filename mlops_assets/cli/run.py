"""`mlops run`: materialize what is stale, here and now, without any server."""

from __future__ import annotations

from typing import Annotated

import typer

from mlops_assets.cli.console import out, progress_of_runs
from mlops_assets.home import ensure_home, open_instance
from mlops_assets.pipeline import find_pipeline


def run(
    name: Annotated[str, typer.Argument(metavar="PIPELINE", help="Name of the pipeline, a folder below defs/.")],
    force: Annotated[
        bool, typer.Option("--all", help="Also take what is not stale through its checks again; nothing is recomputed.")
    ] = False,
) -> None:
    """Materialize what is stale in a pipeline, in this process; ends with the champion.

    Example: [bold]mlops run iris[/bold]
    """
    here = ensure_home()
    pipeline = find_pipeline(name)
    from mlops_assets.assessment import Assessment, active_run
    from mlops_assets.execution import RunFailed, execute
    from mlops_assets.report import champion_line

    with open_instance(here) as instance:
        running = active_run(instance, name)
        if running:
            state = running.status.value.lower()
            raise RunFailed(f"run {running.run_id[:8]} of {name} is {state}; wait for it, or cancel it in the UI")
        now = Assessment.of(pipeline, here.repository(pipeline.repository), instance)
        if now.plan.blocked and not now.plan.stale:
            raise RunFailed(f"{name} is blocked: {now.plan.blocked}; commit data that passes, or mend the schema")
        if not now.plan.stale and not force:
            out.print(f"[green]{name}: nothing is stale[/green] (Oxen {now.head.commit.id[:12]})")
        else:
            for stage, why in now.plan.stale.items():
                out.print(f"[bold]{name}/{stage}[/bold]: {why}")
            with progress_of_runs():
                execute(now, instance)
        out.print(champion_line(instance, name))
