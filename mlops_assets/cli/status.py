"""`mlops status`: per pipeline the data's commit, what is stale and why, the champion, and the last run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from mlops_assets.cli.console import out
from mlops_assets.errors import MlopsError
from mlops_assets.home import ensure_home, open_instance

if TYPE_CHECKING:
    import dagster as dg

    from mlops_assets.settings import Settings


def status(
    name: Annotated[str, typer.Argument(metavar="[PIPELINE]", help="One pipeline; default: all.")] = "",
) -> None:
    """Tell what is stale and why, and who is champion; reads only, needs no server.

    Example: [bold]mlops status[/bold]
    """
    here = ensure_home()
    from mlops_assets.pipeline import find_pipeline, pipeline_folders

    names = [find_pipeline(name).name] if name else [folder.name for folder in pipeline_folders()]
    if not names:
        out.print("no pipelines yet; `mlops new NAME` writes one")
        return
    table = Table("pipeline", "data", "state", "champion", "accuracy", "last run")
    with open_instance(here) as instance:
        for each in names:
            table.add_row(*_row(each, here, instance))
    out.print(table)


def _row(name: str, here: Settings, instance: dg.DagsterInstance) -> list[str]:
    from mlops_assets.report import champion_facts, last_run

    commit, state = _state(name, here, instance)
    facts, run = champion_facts(instance, name), last_run(instance, name)
    return [
        f"[bold]{name}[/bold]",
        commit,
        state,
        f"version {facts.version}" if facts and facts.version else "none",
        escape(facts.figures) if facts else "",
        f"{run.run_id[:8]} {run.status.value.lower()}" if run else "none",
    ]


def _state(name: str, here: Settings, instance: dg.DagsterInstance) -> tuple[str, str]:
    """The data's commit, and what is stale."""
    from mlops_assets.assessment import Assessment, active_run
    from mlops_assets.pipeline import find_pipeline

    try:
        pipeline = find_pipeline(name)
        now = Assessment.of(pipeline, here.repository(pipeline.repository), instance)
    except MlopsError as error:
        return "", f"[red]{escape(str(error))}[/red]"
    commit = f"{now.head.commit.id[:8]}\n{escape(now.head.commit.message)}"
    lines = [f"[yellow]{stage}[/yellow]: {escape(why)}" for stage, why in now.plan.stale.items()]
    if now.plan.blocked:
        lines.append(f"[red]blocked[/red]: {escape(now.plan.blocked)}")
    running = active_run(instance, name)
    if running:
        lines.insert(0, f"[blue]run {running.run_id[:8]} is {running.status.value.lower()}[/blue]")
    return commit, "\n".join(lines) or "[green]up to date[/green]"
