"""`mlops backup` and `mlops restore`: everything in one archive, and a home made of it again.

Belongs here: what a person types and reads, and what only Dagster can tell of a restored home. Not here: the rest
(`backup/`).
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Final

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

from mlops_assets.cli.console import err, out
from mlops_assets.errors import MlopsError

if TYPE_CHECKING:
    from mlops_assets.backup.archive import About, Manifest
    from mlops_assets.backup.proof import Proof
    from mlops_assets.settings import Settings

BAR_SECONDS: Final = 2.0
"""What takes longer than this shows how far it is."""

STREAM: Final = "-"


class NotProved(MlopsError):
    """A restored home is not what it was."""


class NotUnderstood(MlopsError):
    """What was typed leaves open what is meant."""


def backup(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="out.tar, out.tar.zst, out.tar.gz; a folder, for a name with the time; - for standard output.",
        ),
    ],
    keep: Annotated[
        int | None, typer.Option(min=1, help="In a folder: remove all but the newest so many backups.")
    ] = None,
) -> None:
    """Put everything into one archive, while everything goes on: data, store, ledgers, MLflow, Dagster, predictions.

    Example: [bold]mlops backup out.tar[/bold], or nightly [bold]mlops backup /backups --keep 14[/bold]
    """
    from mlops_assets.backup import archive, destination, note
    from mlops_assets.backup.contents import Places
    from mlops_assets.backup.snapshot import snapshot
    from mlops_assets.home import ensure_home
    from mlops_assets.pipeline import pipeline_folders

    here = ensure_home()
    if keep and not Path(file).is_dir():
        raise NotUnderstood(f"--keep removes the older backups of a folder, and {file} is none; name a folder")
    if file == STREAM and sys.stdout.isatty():
        raise NotUnderstood("an archive is no reading for a terminal; write `mlops backup - > out.tar`")
    console = err if file == STREAM else out
    path = None if file == STREAM else destination.chosen(Path(file), Places.of(here))
    with ExitStack() as stack:
        with err.status("holding everything still ..."):
            staging, about = stack.enter_context(snapshot(here, [folder.name for folder in pipeline_folders()]))
        if path:
            destination.require_room(path, about)
        stream = stack.enter_context(destination.writing(path)) if path else sys.stdout.buffer
        archive.write(stream, about, staging.files, stack.enter_context(_bar("writing")))
    note.leave(here.home, about.made)
    size = f" ({decimal(path.stat().st_size)})" if path else ""
    name = path.name if path else "standard output"
    console.print(f"{name}{size}: {about.files:,} files, {decimal(about.bytes)}", markup=False)
    _tell_outside(console, about)
    if path:
        for old in destination.rotate(path.parent, keep) if keep else ():
            out.print(f"removed {old.name}", markup=False)


def restore(
    file: Annotated[str, typer.Argument(metavar="FILE", help="What `mlops backup` wrote; - for standard input.")],
    into: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="An empty folder; without, the home of the settings.")
    ] = None,
    data_only: Annotated[
        bool, typer.Option("--data-only", help="Only datasets and the store: the next run makes the rest, untrained.")
    ] = False,
    check: Annotated[bool, typer.Option("--verify", help="Only read the archive, and tell what is in it.")] = False,
) -> None:
    """Make an empty home what it was when the archive was written, and prove it; nothing is ever overwritten.

    Example: [bold]mlops restore out.tar --into ~/restored[/bold]
    """
    from mlops_assets.backup import restore as core
    from mlops_assets.settings import settings

    if check:
        with _opened(file) as stream, _bar("reading") as told:
            about, manifest = core.verify(stream, told)
        _tell_contents(about, manifest)
        return
    if into:
        # In the environment, for processes that are started from here; a store elsewhere is that of another home.
        os.environ |= {"MLOPS_HOME": str(into.expanduser().absolute()), "MLOPS_STORE": ""}
        os.environ.pop("DAGSTER_HOME", None)
        settings.cache_clear()
    here = settings()
    with _opened(file) as stream, _bar("restoring") as told:
        about, _ = core.restore(stream, here, told, data_only=data_only)
    _prove(about, here, data_only=data_only)
    _tell_outside(out, about)
    what = "has the datasets and the store" if data_only else "is what it was,"
    out.print(f"{here.home} {what} as of {about.made.astimezone():%Y-%m-%d %H:%M:%S}", markup=False)
    if into:
        then = "mlops run PIPELINE" if data_only else "mlops ledger verify"
        out.print(f"use it with `export MLOPS_HOME={here.home}`, then `{then}`", markup=False)


def _prove(about: About, here: Settings, *, data_only: bool) -> None:
    """Read the home again, and print what each part shows.

    Raises:
        NotProved: Something is wrong with one.
    """
    from mlops_assets.backup import proof

    proofs: list[Proof] = []
    with err.status("proving it ..."):
        if not data_only:
            proofs += proof.sqlite(here)
            proofs += _with_dagster(about, here)
        proofs += proof.repositories(here)
        proofs += proof.store(here)
    table = Table("part", "state", "what it shows")
    for one in proofs:
        state = "[red]problem[/red]" if one.problems else "[green]proved[/green]"
        table.add_row(escape(one.part), state, escape("; ".join(one.problems) or one.shown))
    out.print(table)
    wrong = [one.part for one in proofs if one.problems]
    if wrong:
        raise NotProved(
            f"{here.home} was restored as the archive has it, and these are not right: {', '.join(wrong)}; "
            "`mlops doctor` tells what mends them, or take an older backup"
        )


def _with_dagster(about: About, here: Settings) -> Iterator[Proof]:
    """What needs Dagster's databases: its runs, and the heads of ledgers that it keeps."""
    import dagster as dg

    from mlops_assets.backup import proof
    from mlops_assets.cli.ledger import anchors
    from mlops_assets.home import ensure_home, open_instance
    from mlops_assets.pipeline import Pipeline, pipeline_folders

    ensure_home(here)
    cut_off = [
        *(dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.STARTING),
        *(dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING),
    ]
    with open_instance(here) as instance:
        open_runs = [run.run_id for run in instance.get_runs(dg.RunsFilter(statuses=cut_off))]
        runs = instance.get_runs_count()
    proof.unheld(here.home, open_runs)
    shown = (
        f"{runs:,}, of which {len(open_runs)} were under way: the next start closes them" if open_runs else f"{runs:,}"
    )
    yield proof.Proof("Dagster's runs", shown)
    pipelines = [Pipeline.load(folder) for folder in pipeline_folders()]
    mine = [one for one in pipelines if one.spec.location == here.location]  # the ledgers of others are on their hosts
    yield from proof.ledgers(here, about, mine, anchors)


def _tell_contents(about: About, manifest: Manifest) -> None:
    sections: dict[str, list[int]] = {}
    for name, member in manifest.files.items():
        sections.setdefault(name.partition("/")[0], []).append(member.bytes)
    table = Table("part", "files", "size")
    for section, sizes in sorted(sections.items()):
        table.add_row(escape(section), f"{len(sizes):,}", decimal(sum(sizes)))
    out.print(table)
    versions = ", ".join(f"{name} {version}" for name, version in about.versions.items())
    out.print(f"made at {about.made.astimezone():%Y-%m-%d %H:%M:%S} by {versions}", markup=False)
    out.print(f"databases: Dagster's for {about.dagster}, MLflow's for {about.mlflow}", markup=False)
    for name, head in about.heads.items():
        out.print(f"the ledger of {name} ends with {head}", markup=False)
    for name, value in about.settings.items():
        out.print(f"set there: {name}={value}", markup=False)
    _tell_outside(out, about)
    out.print(f"[green]{len(manifest.files):,} files have the hashes that they were written with[/green]")


def _tell_outside(console: Console, about: About) -> None:
    for one in about.outside:
        console.print(f"[yellow]not in the archive[/yellow]: {escape(one)}")


@contextmanager
def _opened(file: str) -> Iterator[IO[bytes]]:
    """An archive, from a file or from standard input."""
    from mlops_assets.backup.errors import RestoreError

    if file == STREAM:
        yield sys.stdin.buffer
        return
    try:
        stream = Path(file).open("rb")  # noqa: SIM115  closed below, where errors are no longer those of opening
    except OSError as error:
        raise RestoreError(f"{file} cannot be read: {error.strerror}; name a file that `mlops backup` wrote") from None
    with stream:
        yield stream


@contextmanager
def _bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error that appears after two seconds; yields what is told how far the work is."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=err)
    task, began = bar.add_task(title, total=None), time.monotonic()

    def told(done: int, total: int) -> None:
        if not bar.live.is_started and time.monotonic() - began > BAR_SECONDS:
            bar.start()
        bar.update(task, completed=done, total=total)

    try:
        yield told
    finally:
        bar.stop()
