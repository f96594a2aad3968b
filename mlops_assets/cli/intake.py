"""Where the first version of a pipeline's data comes from: its `origin`.

Belongs here: turning the origin into files for a commit. Does not: committing them (`../intake.py`), downloading and
unpacking (`data/`), and what is fetched again and again (`../doors.py`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from mlops_assets.cli.console import out, progress_bar
from mlops_assets.intake import DOWNLOADS, DataError, Intake, given
from mlops_assets.pipeline import Pipeline

if TYPE_CHECKING:
    from mlops_assets.data.config import SourceConfig
    from mlops_assets.settings import Settings


def tell(sentence: str) -> None:
    """Print a sentence as it is."""
    out.print(sentence, markup=False)


@contextmanager
def meter(title: str) -> Iterator[Callable[[int, int], None]]:
    """Show how many rows have arrived, or bytes of a file."""
    from mlops_assets.doors import ROWS

    if title == ROWS:
        with out.status("asking the database ...") as status:
            yield lambda done, _total: status.update(f"{done:,} rows ...")
    else:
        with progress_bar(title) as told:
            yield told


def source_given(*, sql: str, **options: str) -> SourceConfig | None:
    """The source that a command's options name, if they do; a query's file lies where the command is typed.

    Raises:
        DataError: They do not go together.
    """
    from pydantic import ValidationError

    from mlops_assets.data.config import SourceConfig

    if sql.startswith("@"):
        sql = f"@{Path(sql[1:]).expanduser().absolute()}"
    named = {name: value for name, value in {"sql": sql, **options}.items() if value}
    try:
        return SourceConfig(**named) if named else None
    except ValidationError as error:
        line = error.errors(include_url=False)[0]
        option = f"--{line['loc'][0]}: " if line["loc"] else ""
        raise DataError(f"{option}{line['msg'].removeprefix('Value error, ')}") from None


@contextmanager
def from_origin(pipeline: Pipeline, here: Settings) -> Iterator[Intake]:
    """What the pipeline's `origin` names: a local path by a variable, a sample, or a download.

    Raises:
        DataError: It names nothing.
        OriginError: A download failed; what has arrived is kept, and the next attempt goes on from there.
    """
    source = pipeline.spec.data.origin
    path = os.environ.get(source.variable, "") if source.variable else ""
    if path:
        with given(pipeline, [Path(path).expanduser()], here.home, tell) as intake:
            yield intake
    elif source.sample:
        yield _sample(pipeline)
    elif source.url:
        with _downloaded(pipeline, here) as file, given(pipeline, [file], here.home, tell) as intake:
            yield intake
    else:
        hint = f", or set {source.variable}" if source.variable else ""
        raise DataError(
            f"pipeline '{pipeline.name}' has no data of its own to begin with; give some: "
            f"`mlops data import {pipeline.name} PATH`{hint}"
        )


def has_origin(pipeline: Pipeline) -> bool:
    """Whether `from_origin` has something to take."""
    source = pipeline.spec.data.origin
    return bool(source.sample or source.url or (source.variable and os.environ.get(source.variable)))


@contextmanager
def _downloaded(pipeline: Pipeline, here: Settings) -> Iterator[Path]:
    """The origin's file, which is removed once it has been used: Oxen has its content then."""
    from mlops_assets.data.download import fetch

    source = pipeline.spec.data.origin
    target = here.home / DOWNLOADS / PurePath(urlsplit(source.url).path).name
    out.print(f"downloading {target.name}", markup=False)
    with progress_bar(target.name) as tell:
        fetch(source.url, source.sha256, target, on_progress=tell)
    yield target
    target.unlink(missing_ok=True)


def _sample(pipeline: Pipeline) -> Intake:
    from mlops_assets.data import samples
    from mlops_assets.data.tables import encode

    data = pipeline.spec.data
    name = data.origin.sample
    if name == "digits":
        files: Mapping[str, Path | bytes] = {f"{data.path}/{path}": image for path, image in samples.digits().items()}
    else:
        files = {data.path: encode(samples.iris(), data.path)}
    return Intake(files, f"the sample '{name}'")
