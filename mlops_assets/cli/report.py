"""`mlops report` and `mlops trial`: the newest model beside the champion, and a model that exists for that alone.

Belongs here: what a person or a pull request reads, and the throw-away home of a trial. Not here: the comparison
(`comparison.py`), and decisions that count.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Final

import typer

from mlops_assets.errors import MlopsError
from mlops_assets.home import ensure_home, open_instance
from mlops_assets.pipeline import Pipeline, find_pipeline
from mlops_assets.settings import Settings, settings

if TYPE_CHECKING:
    import dagster as dg

    from mlops_assets.comparison import Throne

SHARED: Final = ("MLFLOW_TRACKING_URI", "MLOPS_STORE", "MLOPS_DAGSTER_DATABASE", "MLOPS_MLFLOW_DATABASE")
"""What would let a trial write where others read; empty, not absent, or `.env` would fill it again."""

Names = Annotated[list[str], typer.Argument(metavar="PIPELINE...", help="Names of pipelines, folders below defs/.")]
Output = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="Write NAME.md and NAME.html there, beside printing the Markdown."),
]


class TrialFailed(MlopsError):
    """A trial made no model."""


def report(
    names: Names,
    *,
    output: Output = None,
    train: Annotated[
        bool, typer.Option("--train", help="First train what is stale, and stop short of every decision.")
    ] = False,
    against: Annotated[
        Path | None,
        typer.Option(metavar="HOME", help="Another home, whose champion is compared with; it is only read."),
    ] = None,
    store: Annotated[
        str, typer.Option(metavar="URL", help="Where that home keeps its outputs; default: HOME/store.")
    ] = "",
) -> None:
    """Tell how the newest model compares with the champion, and what the gate would say; asks nobody, moves nothing.

    Example: [bold]mlops report iris[/bold], with [bold]--output reports[/bold] as files
    """
    from mlops_assets.comparison import Throne
    from mlops_assets.store import Store

    here = ensure_home()
    home = (against or here.home).absolute()
    kept = store or (str(home / "store") if against else here.store_url)
    throne = Throne(home / "ledger", Store(kept), elsewhere=home != here.home)
    with open_instance(here) as instance:
        for name in names:
            pipeline = find_pipeline(name)
            try:
                if train:
                    _train(pipeline, here, instance)
                _tell(pipeline, here, instance, throne, output)
            except MlopsError as error:
                if output:
                    _write(output / f"{name}.md", f"## {name}: no model\n\n{error}\n".encode())
                raise


def trial(names: Names, *, output: Output = None) -> None:
    """Train pipelines as the checkout says in a throw-away home, and compare with this home's champions.

    The data are this home's, where it has them, else from the pipeline's origin. This home is only read: no version is
    registered, no look at the test rows is charged, no champion moves.

    Example: [bold]mlops trial iris digits --output reports[/bold]
    """
    here, failed = settings(), []
    for name in names:
        pipeline = find_pipeline(name)
        with TemporaryDirectory(prefix="mlops-trial-") as folder:
            away = Path(folder)
            _lend_data(pipeline, here, away)
            command = [sys.executable, "-c", "from mlops_assets.cli import main; main()", "report", name, "--train"]
            command += ["--against", str(here.home), "--store", here.store_url]
            command += ["--output", str(output.absolute())] if output else []
            if subprocess.run(command, env=_environment(away), check=False).returncode:
                failed.append(name)
    if failed:
        raise TrialFailed(
            f"no model to compare of {', '.join(failed)}: the lines above say why; mend it, and try again"
        )


def _environment(home: Path) -> Mapping[str, str]:
    """This process's, with a home of its own and nothing that is shared."""
    own = {"MLOPS_HOME": str(home), "DAGSTER_HOME": str(home / "dagster")}
    return {**os.environ, **own, **dict.fromkeys(SHARED, "")}


def _lend_data(pipeline: Pipeline, here: Settings, away: Path) -> None:
    """Let the throw-away home read this home's data; runs only ever read them."""
    repository = here.repository(pipeline.repository)
    if repository.exists() and repository.heads():
        (away / "oxen").mkdir()
        (away / "oxen" / pipeline.repository).symlink_to(repository.path, target_is_directory=True)


def _train(pipeline: Pipeline, here: Settings, instance: dg.DagsterInstance) -> None:
    from mlops_assets.assessment import Assessment
    from mlops_assets.cli.console import progress_of_runs
    from mlops_assets.cli.data import ensure_data
    from mlops_assets.execution import RunFailed, execute, wanted_stages
    from mlops_assets.pipeline import DECISIONS
    from mlops_assets.store import Store

    ensure_data(pipeline, here)
    now = Assessment.of(pipeline, here.repository(pipeline.repository), instance)
    if now.plan.blocked and not now.plan.stale:
        raise RunFailed(f"{pipeline.name} is blocked: {now.plan.blocked}; commit data that passes, or mend the schema")
    stages = tuple(stage for stage in wanted_stages(now, Store(here.store_url)) if stage not in DECISIONS)
    if stages:
        with progress_of_runs():
            execute(now, stages, instance)


def _tell(
    pipeline: Pipeline, here: Settings, instance: dg.DagsterInstance, throne: Throne, output: Path | None
) -> None:
    from mlops_assets.comparison import Comparison
    from mlops_assets.evaluation import plots
    from mlops_assets.evaluation.html import report_html
    from mlops_assets.evaluation.summary import markdown_comparison
    from mlops_assets.store import Store

    compared = Comparison.of(pipeline, instance, Store(here.store_url), throne).compared()
    text = markdown_comparison(compared)
    typer.echo(text)
    if output:
        evaluation = compared.facts.evaluation
        pictures = {"confusion": plots.confusion_png(evaluation), "calibration": plots.calibration_png(evaluation)}
        _write(output / f"{pipeline.name}.md", text.encode())
        _write(output / f"{pipeline.name}.html", report_html(compared.facts, pictures))


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.part")
    aside.write_bytes(content)
    aside.replace(path)
