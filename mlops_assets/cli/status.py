"""`mlops status`: per pipeline the data's commit, what is stale and why, the champion, and the last run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from mlops_assets.cli.console import out
from mlops_assets.errors import MlopsError
from mlops_assets.home import ensure_home, open_instance
from mlops_assets.pipeline import NoDataYet, PipelineElsewhere, find_pipeline, pipeline_folders

if TYPE_CHECKING:
    from pathlib import Path

    import dagster as dg

    from mlops_assets.assessment import Assessment
    from mlops_assets.settings import Settings


def status(
    name: Annotated[str, typer.Argument(metavar="[PIPELINE]", help="One pipeline; default: all.")] = "",
) -> None:
    """Tell what is stale and why, and who is champion; reads only, needs no server.

    Example: [bold]mlops status[/bold]
    """
    here = ensure_home()
    folders = [find_pipeline(name).folder] if name else pipeline_folders()
    if not folders:
        out.print("no pipelines yet; `mlops new NAME` writes one")
        return
    with open_instance(here) as instance:
        out.print(_table(folders, here, instance))


def _table(folders: list[Path], here: Settings, instance: dg.DagsterInstance) -> Table:
    from mlops_assets.overview import overviews, served_versions

    served = {name: _answering(version) for name, version in (served_versions(here) or {}).items()}
    table = Table("pipeline", "data", "state", "champion", "accuracy", "last run")
    for one in overviews(folders, here, instance):
        facts, run = one.champion, one.last_run
        table.add_row(
            f"[bold]{one.name}[/bold]",
            *_state(one.now, one.running),
            (f"version {facts.version}" if facts and facts.version else "none") + served.get(one.name, ""),
            escape(facts.figures) if facts else "",
            f"{run.run_id[:8]} {run.status.value.lower()}" if run else "none",
        )
    return table


def _answering(version: int | None) -> str:
    return "\n[red]not served[/red]" if version is None else f"\n[dim]version {version} answers[/dim]"


def _state(now: Assessment | MlopsError, running: dg.DagsterRun | None) -> tuple[str, str]:
    """The data's commit, and what is stale."""
    if isinstance(now, PipelineElsewhere):
        return "", f"elsewhere: code location '{now.location}' has it"
    if isinstance(now, NoDataYet):
        return "", f"[dim]{escape(str(now))}[/dim]"
    if isinstance(now, MlopsError):
        return "", f"[red]{escape(str(now))}[/red]"
    commit = f"{now.head.commit.id[:8]}\n{escape(now.head.commit.message)}"
    lines = [f"[yellow]{stage}[/yellow]: {escape(why)}" for stage, why in now.plan.stale.items()]
    if now.plan.blocked:
        lines.append(f"[red]blocked[/red]: {escape(now.plan.blocked)}")
    if running:
        lines.insert(0, f"[blue]run {running.run_id[:8]} is {running.status.value.lower()}[/blue]")
    return commit, "\n".join(lines) or "[green]up to date[/green]"
