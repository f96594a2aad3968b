"""`mlops judge` and `mlops stale`: what other programs ask of the gate, and of the pipelines' state."""

from __future__ import annotations

from typing import Annotated

import typer

from mlops_assets.cli.console import err, out, progress_of_runs
from mlops_assets.cli.data import PipelineName
from mlops_assets.errors import MlopsError
from mlops_assets.home import ensure_home, open_instance
from mlops_assets.pipeline import PipelineElsewhere, own_pipeline, pipeline_folders


def judge(
    name: PipelineName,
    version: Annotated[int, typer.Argument(min=1, metavar="VERSION", help="Number of the version in MLflow.")],
) -> None:
    """Let the gate judge a registered version now, and promote it if its condition holds; a refusal is no failure.

    The sensor does the same by itself for versions that others register. The same question is answered once and costs
    one look at the test rows, whoever asks.

    Example: [bold]mlops judge iris 4[/bold]
    """
    from mlops_assets.execution import execute_move
    from mlops_assets.report import champion_line

    here, pipeline = ensure_home(), own_pipeline(name)
    with open_instance(here) as instance:
        with progress_of_runs():
            execute_move(pipeline, instance, {"how": "candidate", "version": version})
        out.print(champion_line(instance, name), markup=False)


def stale() -> None:
    """Print the names of the pipelines with something to materialize, a line each; why, tells `mlops status`.

    Pipelines without data, or with an error in them, are named on standard error.

    Example: [bold]for name in $(mlops stale); do mlops run $name; done[/bold]
    """
    from mlops_assets.assessment import assess

    here = ensure_home()
    with open_instance(here) as instance:
        for name, now in assess(pipeline_folders(), here.repository, instance).items():
            if isinstance(now, PipelineElsewhere):
                continue  # its own host says so
            if isinstance(now, MlopsError):
                err.print(f"{name} is left out: {now}", markup=False)
            elif now.plan.stale:
                typer.echo(name)
