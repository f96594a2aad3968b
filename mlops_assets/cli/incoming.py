"""`mlops data incoming`: files for the champion to score, into the pipeline's repository.

Belongs here: what a person types and reads. Not here: scoring (`assets/predictions.py`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mlops_assets.cli.console import out
from mlops_assets.cli.data import PipelineName, existing
from mlops_assets.errors import MlopsError
from mlops_assets.home import ensure_home
from mlops_assets.pipeline import own_pipeline


class NothingIncoming(MlopsError):
    """What was named cannot be put among the incoming files."""


def incoming(
    name: PipelineName,
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Tables, images, or directories of them.")],
    message: Annotated[str, typer.Option("--message", "-m", help="Where they are from.")] = "files to score",
) -> None:
    """Commit files that the champion is to score; the sensor has them scored, or Dagster's own command does.

    A file replaces the one of its name. The predictions are committed beside them, in `predictions/` unless defs.yaml
    says otherwise.

    Example: [bold]mlops data incoming iris new.csv -m "flowers of Tuesday"[/bold]
    """
    pipeline, repository = existing(own_pipeline(name), ensure_home())
    spec = pipeline.spec
    if missing := [str(path) for path in paths if not path.exists()]:
        raise NothingIncoming(f"{missing[0]} does not exist; name files or directories")
    files: dict[str, Path] = {}
    for path in paths:
        target = f"{spec.predictions.path}/{path.resolve().name}"
        if target in files:
            raise NothingIncoming(f"{files[target]} and {path} would both become {target}; rename one of them")
        files[target] = path
    commit = repository.commit(message, files={**files}, branch=spec.data.branch)
    if commit is None:
        out.print("all of that is there already; nothing is committed")
        return
    out.print(f"committed {commit.id[:12]} {message!r}", markup=False)
    out.print(
        f"`mlops up` scores them into {spec.predictions.to}/; without it, "
        f"`dagster asset materialize -m mlops_assets.definitions --select 'key:\"{name}/predictions\"'`",
        markup=False,
    )
