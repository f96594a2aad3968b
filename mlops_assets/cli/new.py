"""`mlops new`: a pipeline that runs as it is, written like another one.

Belongs here: copying a pipeline's folder with the few lines of YAML that must differ, and importing a table for a
pipeline of its own. Does not: what is written for a table (`derive.py`, `sources.py`).

A pipeline is written aside, read back, and moved into place in one step: what appears below `defs/` is complete.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from mlops_assets.cli.console import out
from mlops_assets.cli.intake import source_given
from mlops_assets.errors import MlopsError
from mlops_assets.home import ensure_home
from mlops_assets.pipeline import DEFS, Pipeline, find_pipeline, pipeline_folders
from mlops_assets.settings import Settings
from mlops_assets.spec import NAME_PATTERN, SPEC_FILE, PipelineSpec
from mlops_assets.spec_file import load_spec

if TYPE_CHECKING:
    from mlops_assets.cli.derive import Derived
    from mlops_assets.data.config import SourceConfig

NOT_COPIED: Final = shutil.ignore_patterns("__pycache__", ".*", "*.pyc")


class NewError(MlopsError):
    """A pipeline cannot be written."""


@dataclass(frozen=True)
class Table:
    """The file that a new pipeline learns from, and its columns that matter; an empty key adds one.

    Attributes:
        file: The table.
        target: Column with the class.
        key: Column that identifies a row.
        source: Where new versions come from, for `data.source`.
        said: What it is, for people; empty means the file's name.
    """

    file: Path
    target: str
    key: str = ""
    source: SourceConfig | None = None
    said: str = ""


def new(  # noqa: PLR0917 - typer reads them by name
    name: Annotated[str, typer.Argument(metavar="NAME", help="Lower-case letters, digits and underscores.")],
    like: Annotated[str, typer.Option(metavar="PIPELINE", help="The pipeline to begin from.")] = "iris",
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="A CSV or Parquet file, or a directory (or an archive) of images with one directory per class; "
            "default: the same data.",
        ),
    ] = None,
    sql: Annotated[str, typer.Option(metavar="QUERY", help="A query, or @FILE.sql; with --database.")] = "",
    database: Annotated[
        str, typer.Option(metavar="VARIABLE", help="The environment variable with the database's SQLAlchemy URL.")
    ] = "",
    target: Annotated[
        str, typer.Option(metavar="COLUMN", help="With --data or --sql: the column with the class.")
    ] = "",
    key: Annotated[
        str,
        typer.Option(
            metavar="COLUMN",
            help="With --data or --sql: what identifies a row; default: a number is added, of a query the column id.",
        ),
    ] = "",
    description: Annotated[str, typer.Option(help="One line for people who open the asset graph.")] = "",
) -> None:
    """Write a new pipeline that runs as it is: a copy of another one, or one for a table or images of your own.

    Example: [bold]mlops new churn --data customers.csv --target left[/bold], or
    [bold]mlops new shoes --data photos/[/bold], or
    [bold]mlops new churn --sql "SELECT * FROM customers" --database SHOP --target left[/bold]
    """
    here = ensure_home()
    description = " ".join(description.split())
    from mlops_assets.data.origin import is_archive

    source = source_given(sql=sql, database=database)
    if source:
        if data or not target:
            raise NewError("--sql needs --target COLUMN, which column has the class to predict, and no --data")
        from mlops_assets.cli.new_query import write_queried_pipeline

        folder = write_queried_pipeline(name, like, source, here, columns=(target, key), description=description)
    elif data is None:
        if target or key:
            raise NewError("--target and --key speak of the table that --data gives; add --data FILE")
        folder = copy_pipeline(name, like, here, description=description)
    elif data.is_dir() or is_archive(data):
        if target or key:
            raise NewError("images need neither --target nor --key: the directory of an image is its class")
        folder = write_image_pipeline(name, like, data, here, description=description)
    else:
        if not target:
            raise NewError(f"--data needs --target COLUMN: which column of {data} has the class to predict?")
        with out.status(f"reading {data} ..."):
            folder = write_pipeline(name, like, Table(data, target, key), here, description=description)
    for file in sorted(folder.iterdir()):
        out.print(f"wrote {file}", markup=False)
    spec = load_spec(folder / SPEC_FILE)
    repository = spec.data.repository or name
    out.print(
        f"data: {spec.data.path} of the Oxen repository '{repository}'; gate: {spec.gate.condition}", markup=False
    )
    first = "" if here.repository(repository).exists() else f"mlops data import {name} && "
    out.print(f"next: [bold]{first}mlops run {name}[/bold]")


def copy_pipeline(name: str, like: str, here: Settings, *, description: str = "", defs: Path = DEFS) -> Path:
    """Write a pipeline that reads the same data as another one, with a split and a margin of its own.

    Returns:
        Its folder.

    Raises:
        MlopsError: The name is taken or none, there is no such pipeline, or its files cannot be used.
    """
    source = begin(name, like, defs)
    with _aside(name, defs) as folder:
        shutil.copytree(source.folder, folder, ignore=NOT_COPIED)
        changes: dict[tuple[str, str], str] = {
            ("data", "repository"): source.repository,
            ("split", "salt"): f"{name}-1",
            ("gate", "condition"): _condition(source, here),
        }
        if description:
            changes["", "description"] = description
        file = folder / SPEC_FILE
        file.write_text(edited(file.read_text(encoding="utf-8"), changes), encoding="utf-8")
        if load_spec(file).model_dump() != _expected(source.spec, changes).model_dump():
            raise NewError(
                f"{source.folder / SPEC_FILE} is written in a way that `mlops new` cannot change line by line; "
                "copy the folder by hand and set repository, salt and condition"
            )
    return defs / name


def write_pipeline(
    name: str, like: str, table: Table, here: Settings, *, description: str = "", defs: Path = DEFS
) -> Path:
    """Write a pipeline for a table, trained like another one, and import the table into an Oxen repository of its own.

    Returns:
        Its folder.

    Raises:
        MlopsError: The name is taken or none, there is no such pipeline, or nothing can be learned from the table.
    """
    source = begin(name, like, defs)
    if source.spec.data.images is not None:
        raise NewError(f"'{like}' is a pipeline of images and {table.file} a table; name one of tables: --like iris")
    from mlops_assets.cli import sources
    from mlops_assets.cli.derive import derive
    from mlops_assets.data.readers import read_table
    from mlops_assets.data.tables import encode, ending, numbered

    path = f"{name}{ending(table.file.name)}"
    frame = read_table(table.file)
    key = table.key
    if not key:
        key = next(one for one in ("id", "row_id", *(f"row_id_{n}" for n in range(999))) if one not in frame.columns)
        frame = numbered(frame, key)
    derived = derive(frame, name=name, key=key, target=table.target, text=ending(path) not in {".parquet", ".pq"})
    with _aside(name, defs) as folder:
        folder.mkdir()
        content = table.file
        if not table.key:
            content = folder.parent / path
            content.write_bytes(encode(frame, path))
        for file in _of_the_network(source):
            (folder / file.name).write_bytes(file.read_bytes())
        said = table.said or table.file.name
        description = description or f"{table.target} learned from {said.partition(': ')[0]}"
        texts = {
            "schema.py": sources.schema_source(derived, path),
            "columns.py": sources.columns_source(derived),
            "features.py": sources.features_source(derived),
            SPEC_FILE: sources.spec_source(
                derived, source.spec, path=path, description=description, data_source=table.source
            ),
        }
        for file_name, text in texts.items():
            if text:
                (folder / file_name).write_text(text, encoding="utf-8")
        _try_out(Pipeline.load(folder), content, derived)
        _import(here, name, {path: content}, f"import {said}")
    return defs / name


def write_image_pipeline(
    name: str, like: str, place: Path, here: Settings, *, description: str = "", defs: Path = DEFS
) -> Path:
    """Write a pipeline for images, trained like another one, and import them into an Oxen repository of its own.

    Returns:
        Its folder.

    Raises:
        MlopsError: The name is taken or none, no pipeline of images is there, or nothing can be learned from these.
    """
    source = begin(name, like, defs)
    if source.spec.data.images is None:
        known = [Pipeline.load(folder) for folder in pipeline_folders(defs)]
        layouts = {one.spec.data.images.layout: one for one in known if one.spec.data.images is not None}
        if "folder" not in layouts:
            raise NewError("there is no pipeline of image folders to begin from; name one of images: --like PIPELINE")
        source = layouts["folder"]
    from mlops_assets import intake
    from mlops_assets.cli import new_images
    from mlops_assets.cli.intake import tell

    with intake.directory_of(place, here.home, tell) as found:
        files = intake.images_in(found, "folder", new_images.PATH)
        looked = new_images.look(place, files, name)
        with _aside(name, defs) as folder:
            folder.mkdir()
            features = source.folder / source.spec.functions.features.partition(":")[0]
            for file in {features, *_of_the_network(source)}:
                (folder / file.name).write_bytes(file.read_bytes())
            (folder / "schema.py").write_text(new_images.SCHEMA, encoding="utf-8")
            description = description or f"the classes of the images in {place.name}"
            text = new_images.spec_source(looked, source.spec, description=description)
            (folder / SPEC_FILE).write_text(text, encoding="utf-8")
            load_spec(folder / SPEC_FILE)
            _import(here, name, files, f"import {place.name}")
    return defs / name


def edited(text: str, changes: Mapping[tuple[str, str], str]) -> str:
    """A `defs.yaml` with some values set, its comments and its order kept.

    Args:
        text: The file.
        changes: Section and field, in `attributes`, to the new value; the section "" is `attributes` itself.
    """
    import yaml

    attributes = _value(yaml.compose(text, Loader=yaml.SafeLoader), "attributes")
    splices: list[tuple[int, int, str]] = []
    for (section, field), value in changes.items():
        parent = _value(attributes, section) if section else attributes
        if not isinstance(parent, yaml.MappingNode) or not parent.value:
            continue
        # Within brackets, YAML quotes whatever could end a value in any other place.
        scalar = yaml.safe_dump([value], default_flow_style=True, allow_unicode=True, width=10_000).strip()[1:-1]
        node = _value(parent, field)
        if node is None:
            first = parent.value[0][0].start_mark
            separator = ", " if parent.flow_style else "\n" + " " * first.column
            splices.append((first.index, first.index, f"{field}: {scalar}{separator}"))
        else:
            block = isinstance(node, yaml.ScalarNode) and node.style in {"|", ">"}
            splices.append((node.start_mark.index, node.end_mark.index, scalar + ("\n" if block else "")))
    for start, end, new_text in sorted(splices, reverse=True):
        text = text[:start] + new_text + text[end:]
    return text


def _value(node: Any, key: str) -> Any:
    """The node of a key in a mapping node, or None."""
    pairs = getattr(node, "value", None)
    if not isinstance(pairs, list):
        return None
    return next((value for name, value in pairs if getattr(name, "value", None) == key), None)


def _expected(spec: PipelineSpec, changes: Mapping[tuple[str, str], str]) -> PipelineSpec:
    for (section, field), value in changes.items():
        if section:
            spec = spec.model_copy(update={section: getattr(spec, section).model_copy(update={field: value})})
        else:
            spec = spec.model_copy(update={field: value})
    return spec


def _condition(source: Pipeline, here: Settings) -> str:
    """The condition with a margin that the test rows can decide, as many as Oxen knows of; else as it is."""
    from mlops_assets.gate.condition import parse
    from mlops_assets.oxen.errors import OxenError

    data, gate = source.spec.data, source.spec.gate
    repository = here.repository(source.repository)
    try:
        table = repository.table(data.path, repository.resolve(data.branch))
    except OxenError:
        return gate.condition
    condition = parse(gate.condition)
    for clause in reversed(condition.clauses):
        if table and clause.form == "n - o" and clause.direction in {">", ">="} and clause.threshold < 0:
            from mlops_assets.cli.sources import margin

            narrow = margin(table.rows * source.spec.split.test, gate, len(condition.clauses))
            tolerance = "" if clause.tolerance is None else f" +/- {clause.tolerance:g}"
            text = f"n - o {clause.direction} -{narrow:.2f}{tolerance}"
            return gate.condition[: clause.start] + text + gate.condition[clause.end :]
    return gate.condition


def begin(name: str, like: str, defs: Path) -> Pipeline:
    """The pipeline to begin from, having checked the new name."""
    known = ", ".join(folder.name for folder in pipeline_folders(defs)) or "none yet"
    if not NAME_PATTERN.fullmatch(name):
        raise NewError(
            f"'{name}' is no name for a pipeline: begin with a lower-case letter, then lower-case letters, digits and "
            f"underscores, 63 at most (known: {known})"
        )
    if (defs / name).exists():
        raise NewError(f"{defs / name} exists already; choose another name (known: {known})")
    if not (defs / like / SPEC_FILE).is_file():
        raise NewError(f"there is no pipeline '{like}' to begin from (known: {known})")
    return find_pipeline(like, defs)


@contextmanager
def _aside(name: str, defs: Path) -> Iterator[Path]:
    """A folder to make and fill, which then becomes the pipeline's; nothing of it stays after an error.

    It lies beside `defs/` and not in it, where a running code server would find it half-written.
    """
    try:
        with tempfile.TemporaryDirectory(prefix=".new-", dir=defs.parent) as place:
            folder = Path(place) / name
            yield folder
            folder.rename(defs / name)
    except OSError as error:
        raise NewError(
            f"{defs / name} cannot be written ({error.strerror or error}); mend its rights or space"
        ) from error


def _of_the_network(source: Pipeline) -> list[Path]:
    """The files of a pipeline's own folder that its model function runs."""
    from mlops_assets.fingerprint import sources

    network = source.folder / source.spec.functions.network.partition(":")[0]
    folder = source.folder.resolve()
    return [file for file in sources(network, source.folder.parent) if file.parent == folder]


def _try_out(pipeline: Pipeline, content: Path, derived: Derived) -> None:
    """Take the table through the new schema and features, as a run would.

    Raises:
        NewError: It does not pass.
    """
    from mlops_assets.data import readers, splits, validation
    from mlops_assets.functions import call

    schema = call(pipeline.function("schema"))
    frame = readers.read_table(content, validation.dtypes(schema))
    report = validation.validate(frame, schema)
    if report.passed:
        made = call(pipeline.function("features"), frame)
        parts = splits.assign(made[derived.key], **pipeline.spec.split.model_dump(exclude={"column"}))
        report = validation.check_features(
            made.with_columns(parts.alias("split")),
            key=derived.key,
            target=derived.target,
            split="split",
            classes=pipeline.spec.data.classes,
        )
    if not report.passed:
        raise NewError(f"no pipeline can be written for this table as it is: {report.sentence()}")


def _import(here: Settings, name: str, files: Mapping[str, Path], message: str) -> None:
    """Commit the first version to a repository of its own; an interrupted attempt may have done so."""
    import xxhash

    repository = here.repository(name)
    repository.init()
    head = repository.heads().get("main")
    if head:
        entries = {entry.path: entry.hash for entry in repository.entries("", head)}
        if entries != {path: xxhash.xxh3_128_hexdigest(file.read_bytes()) for path, file in files.items()}:
            raise NewError(
                f"the Oxen repository '{name}' exists already ({repository.path}) and holds something else; choose "
                "another name, or remove that folder"
            )
    with out.status("committing to Oxen ..."):
        repository.commit(message, files=files)
