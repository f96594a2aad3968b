"""Where new versions of a pipeline's data come in: a folder, a query of a database, an HTTP address.

Belongs here: from a `source` to files for a commit, and telling that a source has nothing new. Does not: the commit
(`intake.py`), who asks for it (`cli/data.py`, `assets/imported.py`), and the work behind each door (`data/`).

Addresses of databases and tokens are read from the environment when they are used, and appear nowhere else.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path, PurePosixPath
from textwrap import shorten
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, urlsplit

from mlops_assets.data.config import SourceConfig
from mlops_assets.fingerprint import digest
from mlops_assets.intake import (
    DOWNLOADS,
    DataError,
    Intake,
    Tell,
    as_one,
    aside,
    directory_of,
    given,
    images_in,
    tables_in,
    with_key,
)
from mlops_assets.oxen.errors import PathNotFound
from mlops_assets.oxen.repository import Repository
from mlops_assets.pipeline import Pipeline

if TYPE_CHECKING:
    from mlops_assets.data.download import Mark

Meter = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]
"""By a title, what takes how much is done and of how much in all, 0 where nobody knows."""

ROWS: Final = "rows"
"""The title of what counts rows; all others count the bytes of a file."""

_SHOWN: Final = 200  # characters of a query in a commit's message


@contextmanager
def opened(
    pipeline: Pipeline, source: SourceConfig, repository: Repository, home: Path, *, tell: Tell, meter: Meter
) -> Iterator[Intake | None]:
    """What a source has now; None when its server says that it has what the pipeline's branch has.

    What is yielded is to be committed before this is left: only then it counts as known.

    Args:
        pipeline: Whose data it is.
        source: Where it is.
        repository: Where the pipeline's data are kept.
        home: The platform's.
        tell: Gets sentences about what happens.
        meter: Shows how far it is.

    Raises:
        MlopsError: The source cannot be read, or has no data that the pipeline can use.
    """
    if source.sql:
        with _queried(pipeline, source, home, meter) as intake:
            yield intake
    elif source.url:
        with _downloaded(pipeline, source, repository, home, tell=tell, meter=meter) as found:
            yield found and with_key(pipeline, found, tell)
    else:
        with _found(pipeline, source, home, tell) as intake:
            yield with_key(pipeline, intake, tell)


@contextmanager
def _found(pipeline: Pipeline, source: SourceConfig, home: Path, tell: Tell) -> Iterator[Intake]:
    place = pipeline.folder / Path(source.folder).expanduser()
    if pipeline.spec.data.images is not None or not set("*?[") & set(place.name):
        with given(pipeline, [place], home, tell) as intake:
            yield intake
        return
    data = pipeline.spec.data
    files = tables_in(place, data.path)
    with as_one(files, data.path, home) as table:
        yield Intake({data.path: table}, f"{len(files)} files {source.folder}")


@contextmanager
def _queried(pipeline: Pipeline, source: SourceConfig, home: Path, meter: Meter) -> Iterator[Intake]:
    data = pipeline.spec.data
    sql = query_of(source, pipeline.folder)
    with aside(home) as place:
        table = place / PurePosixPath(data.path).name
        said = ask(sql, source, table, key=data.key, needed={"target": data.target}, meter=meter)
        yield Intake({data.path: table}, said)


def query_of(source: SourceConfig, folder: Path) -> str:
    """The text of a query, from its file where it is given as `@FILE`.

    Raises:
        DataError: There is no such file.
    """
    if not source.sql.startswith("@"):
        return source.sql
    file = folder / Path(source.sql[1:]).expanduser()
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the query {file} cannot be read ({getattr(error, 'strerror', None) or error})") from None


def ask(sql: str, source: SourceConfig, table: Path, *, key: str, needed: dict[str, str], meter: Meter) -> str:
    """Write the answer to a query to a file; returns what it is, for a commit's message.

    Raises:
        MlopsError: The variable is not set, or the database does not give such a table.
    """
    from mlops_assets.data.query import run_query, shown

    url = _secret(source.database, "the SQLAlchemy URL of the database")
    with meter(ROWS) as told:
        rows = run_query(
            sql, url, table, key=key, needed=needed, timeout=source.timeout, on_progress=lambda rows: told(rows, 0)
        )
    return f"{rows:,} rows from {shown(url)} ({source.database}): {shorten(sql, _SHOWN, placeholder=' ...')}"


@contextmanager
def _downloaded(
    pipeline: Pipeline, source: SourceConfig, repository: Repository, home: Path, *, tell: Tell, meter: Meter
) -> Iterator[Intake | None]:
    from mlops_assets.data.download import fetch_new
    from mlops_assets.data.origin import is_archive

    data, address = pipeline.spec.data, urlsplit(source.url)
    shown = f"{address.scheme}://{address.netloc.rpartition('@')[2]}{address.path}"  # a query may hold secrets
    token = _secret(source.token, "the token") if source.token else ""
    folder = home / DOWNLOADS / digest(["url", pipeline.name, source.url])[:16]
    name = _file_name(pipeline, unquote(address.path))
    target = folder / name
    memory = folder / "known.json"
    with ExitStack() as stack:
        stack.enter_context(_alone(folder))  # until it is committed: a second one would take the file away
        with meter(name) as told:
            mark = fetch_new(
                source.url,
                target,
                known=_known(memory, pipeline, repository, source),
                sha256=source.sha256,
                token=token,
                on_progress=told,
            )
        if mark is None:
            yield None
            return
        if data.images is not None:
            place = stack.enter_context(directory_of(target, home, tell))
            yield Intake(images_in(place, data.images.layout, data.path), shown)
        else:
            tables = {name: target}
            if is_archive(target):
                tables = tables_in(stack.enter_context(directory_of(target, home, tell)), data.path, below=True)
            yield Intake({data.path: stack.enter_context(as_one(tables, data.path, home))}, shown)
        _remember(memory, mark, pipeline, repository, source)
        target.unlink(missing_ok=True)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    from filelock import FileLock

    lock = FileLock(folder / ".lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        raise DataError(f"{folder} cannot be written ({error.strerror or error}); mend its place") from None
    try:
        yield
    finally:
        lock.release()


def _file_name(pipeline: Pipeline, path: str) -> str:
    """What to call a download so that its name tells its kind; where the address does not, it is the pipeline's own.

    Raises:
        DataError: It is a table of a kind that the pipeline's cannot be made of.
    """
    from mlops_assets.data.origin import is_archive
    from mlops_assets.data.tables import JSON_LINES, PARQUET, TEXT, convertible, ending

    data, name = pipeline.spec.data, PurePosixPath(path).name
    kind = ending(name)
    if is_archive(Path(name)):
        return name
    if data.images is not None:
        return f"{name}.zip"
    if kind not in PARQUET | TEXT | JSON_LINES:
        return f"{name}{ending(data.path)}"
    if kind not in convertible(data.path):
        raise DataError(f"'{name}' at the address ends in '{kind}', which cannot become '{data.path}'; change either")
    return name


def _known(memory: Path, pipeline: Pipeline, repository: Repository, source: SourceConfig) -> Mark:
    """The version of the file that the branch's data were made of; none when they are others by now."""
    from mlops_assets.data.download import Mark

    try:
        known = json.loads(memory.read_text(encoding="utf-8"))
        if known["content"] == _content(pipeline, repository, source):
            return Mark(*map(str, known["mark"]))
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not known is as good as not there
    return Mark()


def _remember(memory: Path, mark: Mark, pipeline: Pipeline, repository: Repository, source: SourceConfig) -> None:
    content = _content(pipeline, repository, source)
    aside_ = memory.with_suffix(f".{os.getpid()}")
    aside_.write_text(json.dumps({"mark": mark, "content": content}), encoding="utf-8")
    aside_.replace(memory)


def _content(pipeline: Pipeline, repository: Repository, source: SourceConfig) -> str:
    """What the branch holds, and as what a download would be read; empty when it holds nothing."""
    data = pipeline.spec.data
    head = repository.heads().get(data.branch) if repository.exists() else None
    try:
        held = repository.digest(data.path, head) if head else ""
    except PathNotFound:
        held = ""
    images = data.images.model_dump() if data.images else None
    return digest([held, source.sha256, data.key, images]) if held else ""


def _secret(variable: str, what: str) -> str:
    value = os.environ.get(variable, "")
    if not value:
        raise DataError(f"the environment variable {variable} is not set; it must hold {what}, here and in .env")
    return value
