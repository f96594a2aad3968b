"""`mlops promote` and `mlops rollback`: the champion moved by hand, as a run of its asset and on record."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlops_assets.cli.console import out, progress_of_runs
from mlops_assets.cli.data import PipelineName
from mlops_assets.cli.ledger import Reason, champions_of, given, moment
from mlops_assets.home import ensure_home, open_instance
from mlops_assets.pipeline import Pipeline, own_pipeline

if TYPE_CHECKING:
    from mlops_assets.settings import Settings


def promote(
    name: PipelineName,
    version: Annotated[int, typer.Argument(min=1, metavar="VERSION", help="Number of the version in MLflow.")],
    reason: Reason,
) -> None:
    """Make a version the champion without asking the gate; the ledger keeps who did it and why.

    Example: [bold]mlops promote iris 3 --reason "agreed with the auditors"[/bold]
    """
    _move(ensure_home(), own_pipeline(name), {"how": "hand", "version": version, "reason": given(reason)})


def rollback(
    name: PipelineName,
    reason: Reason,
    to: Annotated[
        str, typer.Option(metavar="VERSION|TIME", help="Where to; default: the last champion before the present one.")
    ] = "",
) -> None:
    """Go back to an earlier champion, at once; the version that is left is barred until somebody clears it.

    A time means the version that answered then, by your clock.

    Example: [bold]mlops rollback iris --reason "bad Tuesday"[/bold], with [bold]--to 3[/bold] or
    [bold]--to 2026-11-21T10:00[/bold]
    """
    here, pipeline = ensure_home(), own_pipeline(name)
    said: int | datetime | None = int(to) if to.isdecimal() and len(to) < 10 else moment(to) if to else None
    champions = champions_of(here, pipeline)
    champions.reconcile()  # what somebody did in MLflow counts, too
    # Resolved before the run: one that dies is tried again, and "the one before" would then be another version.
    target, leaves = champions.rollback_target(said), champions.at(datetime.now().astimezone())
    _move(here, pipeline, {"how": "rollback", "version": target, "leaves": leaves, "reason": given(reason)})


def _move(here: Settings, pipeline: Pipeline, move: Mapping[str, Any]) -> None:
    from mlops_assets.execution import execute_move
    from mlops_assets.registry.ledger import user
    from mlops_assets.report import champion_line

    with open_instance(here) as instance:
        with progress_of_runs():
            execute_move(pipeline, instance, {**move, "actor": user()})
        out.print(champion_line(instance, pipeline.name), markup=False)
