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
    from mlops_assets.pipeline import find_pipeline, pipeline_folders

    folders = [find_pipeline(name).folder] if name else pipeline_folders()
    if not folders:
        out.print("no pipelines yet; `mlops new NAME` writes one")
        return
    with open_instance(here) as instance:
        out.print(_table(folders, here, instance))


def _table(folders: list[Path], here: Settings, instance: dg.DagsterInstance) -> Table:
    from mlops_assets.assessment import active_runs, assess
    from mlops_assets.report import all_champion_facts, last_runs

    names = [folder.name for folder in folders]
    champions, runs = all_champion_facts(instance, names), last_runs(instance, names)
    running, served = active_runs(instance, names), _served(here)
    table = Table("pipeline", "data", "state", "champion", "accuracy", "last run")
    for name, now in assess(folders, here.repository, instance).items():
        facts, run = champions.get(name), runs.get(name)
        table.add_row(
            f"[bold]{name}[/bold]",
            *_state(now, running.get(name)),
            (f"version {facts.version}" if facts and facts.version else "none") + served.get(name, ""),
            escape(facts.figures) if facts else "",
            f"{run.run_id[:8]} {run.status.value.lower()}" if run else "none",
        )
    return table


def _served(here: Settings) -> dict[str, str]:
    """By pipeline, what the model server says that it answers with; nothing when none is up."""
    import httpx

    try:
        told = httpx.get(f"{here.serve_url}/health", timeout=2, trust_env=False).json()["pipelines"]
        return {
            name: f"\n[dim]version {one['version']} answers[/dim]" if "version" in one else "\n[red]not served[/red]"
            for name, one in told.items()
        }
    except (httpx.HTTPError, ValueError, KeyError, TypeError, AttributeError):
        return {}  # none is up, or something else listens there


def _state(now: Assessment | MlopsError, running: dg.DagsterRun | None) -> tuple[str, str]:
    """The data's commit, and what is stale."""
    if isinstance(now, MlopsError):
        return "", f"[red]{escape(str(now))}[/red]"
    commit = f"{now.head.commit.id[:8]}\n{escape(now.head.commit.message)}"
    lines = [f"[yellow]{stage}[/yellow]: {escape(why)}" for stage, why in now.plan.stale.items()]
    if now.plan.blocked:
        lines.append(f"[red]blocked[/red]: {escape(now.plan.blocked)}")
    if running:
        lines.insert(0, f"[blue]run {running.run_id[:8]} is {running.status.value.lower()}[/blue]")
    return commit, "\n".join(lines) or "[green]up to date[/green]"
