"""`mlops data`: datasets in Oxen, from the command line.

Belongs here: what a person types and reads. Does not: how versions are kept (`oxen/`), whether a table is good (the
pipeline's checks say so, visibly, after the commit), and comparing two tables (`row_changes.py`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.markup import escape
from rich.table import Table

from mlops_assets.cli.console import err, out
from mlops_assets.cli.intake import from_origin, has_origin, meter, source_given, tell
from mlops_assets.errors import MlopsError
from mlops_assets.home import ensure_home, open_instance
from mlops_assets.intake import DataError, Intake, given, with_key
from mlops_assets.intake import commit as commit_intake
from mlops_assets.oxen.errors import PathNotFound, RevisionNotFound
from mlops_assets.oxen.repository import Repository
from mlops_assets.oxen.tree import Entry
from mlops_assets.pipeline import Pipeline, own_pipeline
from mlops_assets.push import answers, nobody_there, push

if TYPE_CHECKING:
    import dagster as dg
    import polars as pl

    from mlops_assets.data.config import SourceConfig
    from mlops_assets.settings import Settings

app = typer.Typer(
    help="Import, commit and look at the data of a pipeline, versioned in Oxen.",
    no_args_is_help=True,
    epilog="Example: mlops data log iris",
)

LARGEST_DIFF: Final = 512 << 20
"""Bytes of one version beyond which rows are not compared: both versions are held in memory, several times over."""

SHOWN_FILES: Final = 50
SHOWN_ROWS: Final = 10
SHOWN_COLUMNS: Final = 12
SHOWN_LENGTH: Final = 40

PipelineName = Annotated[str, typer.Argument(metavar="PIPELINE", help="Name of the pipeline, a folder below defs/.")]
NoPush = Annotated[bool, typer.Option("--no-push", help="Leave the run to the sensor.")]
Revision = Annotated[str, typer.Option("--revision", "-r", help="A branch or a commit; default: the head.")]


@app.command("import", epilog="Example: mlops data import iris, or mlops data import churn customers.csv")
def import_(  # noqa: PLR0917 - typer reads them by name
    name: PipelineName,
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[PATH]...",
            help="A table, several with the same columns or a directory of them; for images a directory or an archive; "
            "without, what the pipeline names.",
        ),
    ] = None,
    sql: Annotated[str, typer.Option(metavar="QUERY", help="A query, or @FILE.sql; with --database.")] = "",
    database: Annotated[
        str, typer.Option(metavar="VARIABLE", help="The environment variable with the database's SQLAlchemy URL.")
    ] = "",
    url: Annotated[
        str, typer.Option(metavar="ADDRESS", help="A table (CSV, Parquet, JSON lines) or an archive, by HTTP.")
    ] = "",
    sha256: Annotated[str, typer.Option(metavar="DIGEST", help="What the download's SHA-256 must be.")] = "",
    token: Annotated[
        str, typer.Option(metavar="VARIABLE", help="The environment variable with the token for the address.")
    ] = "",
    message: Annotated[str, typer.Option("--message", "-m", help="What it is and where it comes from.")] = "",
    no_push: NoPush = False,
) -> None:
    """Put data into the pipeline's Oxen repository, making the repository when it is new.

    From files, from a query of any database that SQLAlchemy knows, or from an address; without any, from the source or
    the origin in the pipeline's defs.yaml. A file without the pipeline's key column gets one: the row's number, from 1
    on. A query's rows are put in the order of their key.
    """
    here = ensure_home()
    pipeline = own_pipeline(name)
    wanted = source_given(sql=sql, database=database, url=url, sha256=sha256, token=token)
    if paths and wanted:
        raise DataError(f"{paths[0]} and --sql or --url are both given; give one of them")
    with _taken(pipeline, here, paths or [], wanted or pipeline.spec.data.source) as intake:
        if intake is None:
            out.print(f"nothing changed: the address has what {pipeline.repository} has already", markup=False)
        else:
            _record(pipeline, here, intake, message or f"import {intake.source}", launch=not no_push)


@app.command(epilog='Example: mlops data commit iris iris.csv -m "two flowers corrected"')
def commit(
    name: PipelineName,
    path: Annotated[Path, typer.Argument(help="The new version: a table; for images a directory or an archive.")],
    message: Annotated[str, typer.Option("--message", "-m", help="What changed and why.")],
    no_push: NoPush = False,
) -> None:
    """Commit a new version of the data; where a Dagster webserver answers, its run starts at once.

    It is committed as it is: whether it is good is for the pipeline's checks to say.
    """
    here = ensure_home()
    pipeline = own_pipeline(name)
    existing(pipeline, here)
    with given(pipeline, [path], here.home, tell) as intake:
        _record(pipeline, here, intake, message, launch=not no_push)


@contextmanager
def _taken(
    pipeline: Pipeline, here: Settings, paths: list[Path], source: SourceConfig | None
) -> Iterator[Intake | None]:
    """What is named, else what the source has, else what the origin has; None when the source has nothing new."""
    if source and not paths:
        from mlops_assets import doors

        repository = here.repository(pipeline.repository)
        with doors.opened(pipeline, source, repository, here.home, tell=tell, meter=meter) as found:
            yield found
        return
    with given(pipeline, paths, here.home, tell) if paths else from_origin(pipeline, here) as intake:
        yield with_key(pipeline, intake, tell)


def ensure_data(pipeline: Pipeline, here: Settings) -> None:
    """Commit the first version from the pipeline's source or origin, where Oxen has none yet and one is known."""
    repository = here.repository(pipeline.repository)
    if repository.exists() and repository.heads():
        variable = pipeline.spec.data.origin.variable
        if variable and os.environ.get(variable):
            out.print(
                f"Oxen has data of {pipeline.name}, so {variable} is not read; `mlops data import {pipeline.name}` "
                "takes what it names",
                markup=False,
            )
        return
    source = pipeline.spec.data.source
    if not (source or has_origin(pipeline)):
        return
    with _taken(pipeline, here, [], source) as intake:
        assert intake is not None, "nothing is known of a source before there is a version"
        out.print(f"{pipeline.repository} has no data yet: importing {intake.source}", markup=False)
        _record(pipeline, here, intake, f"import {intake.source}", launch=False)


@app.command(epilog="Example: mlops data log iris")
def log(
    name: PipelineName,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many commits.")] = 20,
) -> None:
    """List the commits, the newest first."""
    here = ensure_home()
    pipeline = own_pipeline(name)
    table = Table("commit", "when (UTC)", "files" if pipeline.spec.data.images else "rows", "author", "message")
    repository = existing(pipeline, here)[1]
    for one in repository.log(pipeline.spec.data.branch, limit=limit):
        rows = _rows(repository, pipeline, one.id)
        table.add_row(one.id[:12], f"{one.timestamp:%Y-%m-%d %H:%M:%S}", rows, escape(one.author), escape(one.message))
    out.print(table)


@app.command(epilog="Example: mlops data show iris --rows 5")
def show(
    name: PipelineName,
    revision: Revision = "",
    rows: Annotated[int, typer.Option("--rows", "-n", min=0, help="How many rows to print.")] = SHOWN_ROWS,
) -> None:
    """Print commit, columns, row count and the first rows of a version, or the files where they are images."""
    here = ensure_home()
    pipeline = own_pipeline(name)
    repository = existing(pipeline, here)[1]
    commit_id = _commit_id(repository, pipeline, revision)
    made = repository.log(commit_id, limit=1)[0]
    path = pipeline.spec.data.path
    out.print(f"{pipeline.repository} {path} at {commit_id} ({made.message})", markup=False)
    if pipeline.spec.data.images is not None:
        _print_files(repository.entries(path, commit_id), path)
        return
    frame = _table(repository, pipeline, commit_id, here)
    out.print(f"{frame.height} rows, {frame.width} columns: {', '.join(frame.columns)}", markup=False)
    table = Table(*[escape(column) for column in frame.columns[:SHOWN_COLUMNS]])
    for row in frame.select(frame.columns[:SHOWN_COLUMNS]).head(rows).iter_rows():
        table.add_row(*[escape(_short(value)) for value in row])
    out.print(table)


@app.command(epilog="Example: mlops data diff iris, or mlops data diff iris --from 3f2a91c0 --to main")
def diff(
    name: PipelineName,
    left: Annotated[str, typer.Option("--from", help="A branch or a commit; default: the one before --to.")] = "",
    right: Annotated[str, typer.Option("--to", help="A branch or a commit; default: the head.")] = "",
) -> None:
    """Tell which files differ between two versions, and which rows of the pipeline's table, by key."""
    here = ensure_home()
    pipeline = own_pipeline(name)
    repository = existing(pipeline, here)[1]
    after = _commit_id(repository, pipeline, right)
    if left:
        before = _commit_id(repository, pipeline, left)
    else:
        parents = repository.log(after, limit=1)[0].parents
        if not parents:
            out.print(f"{after[:12]} is the first commit: there is nothing before it to compare with")
            return
        before = parents[0]
    out.print(f"{before[:12]} -> {after[:12]}")
    files = repository.diff(before, after)
    for label, colour, paths in (
        ("added", "green", files.added),
        ("removed", "red", files.removed),
        ("changed", "yellow", files.changed),
    ):
        for path in paths[:SHOWN_FILES]:
            out.print(f"[{colour}]{label}[/{colour}] {escape(path)}")
        if len(paths) > SHOWN_FILES:
            out.print(f"... and {len(paths) - SHOWN_FILES} more files {label}")
    if pipeline.spec.data.path in files.changed:
        _print_row_changes(repository, pipeline, (before, after), here)
    if not any(files):
        out.print("no difference")


def _print_files(entries: list[Entry], path: str) -> None:
    """How many files each directory has, and how large they are."""
    found: dict[str, list[int]] = {}
    for entry in entries:
        found.setdefault(entry.path.removeprefix(path).strip("/").rpartition("/")[0] or ".", []).append(entry.bytes)
    table = Table("directory", "files", "bytes")
    for directory, sizes in list(found.items())[:SHOWN_FILES]:
        table.add_row(escape(directory), f"{len(sizes):,}", f"{sum(sizes):,}")
    out.print(table)
    if len(found) > SHOWN_FILES:
        out.print(f"... and {len(found) - SHOWN_FILES} more directories")


def _record(pipeline: Pipeline, here: Settings, intake: Intake, message: str, *, launch: bool) -> None:
    """Commit, tell what came of it, and launch the run."""
    repository = here.repository(pipeline.repository)
    path, counted = pipeline.spec.data.path, "files" if pipeline.spec.data.images is not None else "rows"
    with _dagster_if_up(here, wanted=launch) as instance:
        with out.status("committing to Oxen ..."):
            made = commit_intake(repository, pipeline, intake, message)
        if made is None:
            out.print(f"nothing changed: {pipeline.repository} {path} has this very content already", markup=False)
            return
        out.print(f"[green]committed[/green] {made.id} {escape(made.message)}")
        parent = made.parents[0] if made.parents else ""
        before, after = (_rows(repository, pipeline, one) for one in (parent, made.id))
        out.print(f"{pipeline.repository} {path}: {before or 'no'} {counted} before, {after or 'no'} now", markup=False)
        for warning in _warnings(repository, pipeline, made.id):
            _warn(warning)
        if not launch:
            out.print("the run is left to the sensor")
        elif instance is None:
            out.print(nobody_there(pipeline.name, here), markup=False)
        else:
            _push(pipeline, repository, instance, here)


@contextmanager
def _dagster_if_up(here: Settings, *, wanted: bool) -> Iterator[dg.DagsterInstance | None]:
    """Load all that a push needs before the commit is made, so that the run starts right behind it.

    None when no webserver answers, and then nothing was loaded: Dagster costs a second.
    """
    with ExitStack() as stack:
        instance = None
        if wanted and answers(here):
            try:
                import httpx  # noqa: F401

                import mlops_assets.assessment  # noqa: F401

                instance = stack.enter_context(open_instance(here))
            except Exception as error:  # noqa: BLE001 - a Dagster that is in no state to run must not stop a commit
                _warn(f"Dagster's own files in {here.dagster_home} cannot be read ({error})")
        yield instance


def _push(pipeline: Pipeline, repository: Repository, instance: dg.DagsterInstance, here: Settings) -> None:
    from mlops_assets.assessment import Assessment

    try:
        now = Assessment.of(pipeline, repository, instance)
        out.print(push(now, instance, here).sentence, markup=False)
    except Exception as error:  # noqa: BLE001 - whatever went wrong, the commit stands and must not look failed
        told = str(error) if isinstance(error, MlopsError) else f"{type(error).__name__}: {error}"
        _warn(f"the commit is made, but no run was started: {told}")


def _warn(sentence: str) -> None:
    err.print(f"[yellow]warning:[/yellow] {escape(sentence)}")


def existing(pipeline: Pipeline, here: Settings) -> tuple[Pipeline, Repository]:
    """A pipeline with its repository.

    Raises:
        DataError: There is none yet.
    """
    repository = here.repository(pipeline.repository)
    if not repository.exists():
        raise DataError(
            f"there is no Oxen repository '{pipeline.repository}' yet; `mlops data import {pipeline.name}` makes it"
        )
    return pipeline, repository


def _commit_id(repository: Repository, pipeline: Pipeline, revision: str) -> str:
    """The full id of a branch, of a full commit id, or of the beginning of one on the pipeline's branch."""
    branch = pipeline.spec.data.branch
    try:
        return repository.resolve(revision or branch)
    except RevisionNotFound:
        found = [one.id for one in repository.log(branch) if one.id.startswith(revision)] if revision else []
        if len(found) > 1:
            raise DataError(f"{len(found)} commits begin with '{revision}'; give more of the id") from None
        if not found or len(revision) < 4:
            raise
        return found[0]


def _rows(repository: Repository, pipeline: Pipeline, commit_id: str) -> str:
    """The row count that Oxen recorded, as text, or of images the number of files; empty where there is none.

    It costs nothing, whatever the size of the file, and counts lines where a CSV has line breaks within values.
    """
    try:
        if pipeline.spec.data.images is not None:
            return f"{len(repository.entries(pipeline.spec.data.path, commit_id)):,}" if commit_id else ""
        table = repository.table(pipeline.spec.data.path, commit_id) if commit_id else None
    except PathNotFound:
        return ""
    return str(table.rows) if table else ""


def _warnings(repository: Repository, pipeline: Pipeline, commit_id: str) -> list[str]:
    """What will certainly stop the pipeline's run, as far as Oxen's own look at the file tells."""
    data = pipeline.spec.data
    if data.images is not None:
        return []
    table = repository.table(data.path, commit_id)
    if table is None:
        return [f"Oxen cannot read {data.path} as a table; the run of '{pipeline.name}' will say why it cannot be used"]
    names = {column.strip() for column, _ in table.columns}
    return [
        f"the table has no column '{column}', the {role} of '{pipeline.name}'; its checks will refuse this version"
        for role, column in (("key", data.key), ("target", data.target))
        if column not in names
    ]


def _table(repository: Repository, pipeline: Pipeline, commit_id: str, here: Settings) -> pl.DataFrame:
    from mlops_assets.data.readers import read_table

    return read_table(repository.materialize(pipeline.spec.data.path, commit_id, here.home / "cache"))


def _print_row_changes(repository: Repository, pipeline: Pipeline, versions: tuple[str, str], here: Settings) -> None:
    """Rows added, removed and changed between two versions of the pipeline's table."""
    path, key = pipeline.spec.data.path, pipeline.spec.data.key
    largest = max(repository.entries(path, one)[0].bytes for one in versions)
    if largest > LARGEST_DIFF:
        counts = " -> ".join(_rows(repository, pipeline, one) or "?" for one in versions)
        out.print(f"rows: {counts}; {largest >> 20} MB are too much to compare row by row")
        return
    from mlops_assets.data.row_changes import RowChanges

    try:
        before, after = (_table(repository, pipeline, one, here) for one in versions)
        changes = RowChanges.between(before, after, key)
    except MlopsError as error:
        _warn(f"rows cannot be compared: {error}")
        return
    for line in changes.lines(rows=SHOWN_ROWS, columns=SHOWN_COLUMNS, length=SHOWN_LENGTH):
        out.print(line, markup=False)


def _short(value: object) -> str:
    text = "" if value is None else str(value)
    return text if len(text) <= SHOWN_LENGTH else f"{text[: SHOWN_LENGTH - 3]}..."
