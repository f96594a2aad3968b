"""`mlops doctor`: what is wrong, and how it is mended."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.markup import escape
from rich.table import Table

from mlops_assets.cli.console import out

if TYPE_CHECKING:
    from mlops_assets.doctor.examination import Finding

COLORS: Final = {"ok": "green", "warning": "yellow", "problem": "red"}


def doctor(
    deep: Annotated[
        bool, typer.Option("--deep", help="Hash all content again, and import what the pipelines define.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list of what was found, and no table.")] = False,
) -> None:
    """Look for what is wrong with this installation and its home; exit code 1 when there is a problem.

    Where MLOPS_PUBLIC_URL, MLOPS_DAGSTER_URL, MLOPS_SERVE_URL or MLOPS_DAGSTER_DATABASE is set, the servers are looked
    at, too: databases, MLflow, Dagster, the model server, the proxy, clocks and rights. With --deep, a small artifact
    goes to MLflow and back.

    Example: [bold]mlops doctor --deep[/bold]
    """
    from mlops_assets.doctor.checks import examine

    table = Table("check", "result")
    table.add_column("found", overflow="fold")
    table.add_column("fix", overflow="fold")
    found: list[Finding] = []
    with out.status("looking ...") as status:
        for one in examine(deep=deep):
            found.append(one)
            color = COLORS[one.result]
            table.add_row(escape(one.check), f"[{color}]{one.result}[/{color}]", escape(one.found), escape(one.fix))
            status.update(f"looking ... {escape(one.check)}: {one.result}")
    if as_json:
        typer.echo(json.dumps([asdict(one) for one in found], indent=1))
    else:
        out.print(table)
    if any(one.result == "problem" for one in found):
        raise typer.Exit(1)
