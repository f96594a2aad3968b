"""`mlops doctor`: what is wrong, and how it is mended."""

from __future__ import annotations

from typing import Annotated, Final

import typer
from rich.markup import escape
from rich.table import Table

from mlops_assets.cli.console import out

COLORS: Final = {"ok": "green", "warning": "yellow", "problem": "red"}


def doctor(
    deep: Annotated[
        bool, typer.Option("--deep", help="Hash all content again, and import what the pipelines define.")
    ] = False,
) -> None:
    """Look for what is wrong with this installation and its home; exit code 1 when there is a problem.

    Example: [bold]mlops doctor --deep[/bold]
    """
    from mlops_assets.doctor.checks import examine

    table = Table("check", "result")
    table.add_column("found", overflow="fold")
    table.add_column("fix", overflow="fold")
    counts = dict.fromkeys(COLORS, 0)
    with out.status("looking ...") as status:
        for one in examine(deep=deep):
            counts[one.result] += 1
            color = COLORS[one.result]
            table.add_row(escape(one.check), f"[{color}]{one.result}[/{color}]", escape(one.found), escape(one.fix))
            status.update(f"looking ... {escape(one.check)}: {one.result}")
    out.print(table)
    if counts["problem"]:
        raise typer.Exit(1)
