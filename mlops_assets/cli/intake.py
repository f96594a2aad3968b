"""What a new version of a pipeline's data is made of.

Belongs here: turning what a person names, or the pipeline's own origin, into files for a commit. Does not: committing
them (`data.py`), downloading and unpacking (`data/origin.py`).
"""

from __future__ import annotations

import gzip
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from mlops_assets.cli.console import out, progress_bar
from mlops_assets.errors import MlopsError
from mlops_assets.pipeline import Pipeline

if TYPE_CHECKING:
    import polars as pl

    from mlops_assets.settings import Settings

DOWNLOADS: Final = "downloads"


class DataError(MlopsError):
    """A data command cannot do what was asked."""


@dataclass(frozen=True)
class Intake:
    """One version of the data, before it is committed.

    Attributes:
        files: Content by path in the repository; a local directory stands for all files below it.
        source: What it was made of, for the commit's message.
    """

    files: Mapping[str, Path | bytes]
    source: str


@contextmanager
def given(pipeline: Pipeline, file: Path, here: Settings) -> Iterator[Intake]:
    """What a person names: a table, or for images a directory or an archive.

    Raises:
        DataError: It is missing, or of another kind than the path in `defs.yaml`.
    """
    data = pipeline.spec.data
    if not file.exists():
        what = "the file of the table" if data.images is None else "a directory of images, or an archive of one"
        raise DataError(f"{file} does not exist; give {what}")
    if data.images is None:
        yield Intake({data.path: _checked_table(file, pipeline)}, file.name)
        return
    with directory_of(file, here) as place:
        yield Intake(images_in(place, data.images.layout, data.path), file.name)


@contextmanager
def directory_of(file: Path, here: Settings) -> Iterator[Path]:
    """A directory as it is, or what is in an archive, unpacked for as long as it takes.

    Raises:
        OriginError: It is neither, or the archive cannot be unpacked.
    """
    from mlops_assets.data import origin

    place = origin.local(file)
    if place.is_dir():
        yield place
        return
    folder = here.home / DOWNLOADS
    folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unpacked-", dir=folder) as aside:
        with out.status(f"unpacking {place.name} ..."):
            unpacked = origin.unpacked(place, Path(aside) / "data")
        yield unpacked


def images_in(place: Path, layout: str, path: str) -> dict[str, Path]:
    """The files of a directory that a layout reads, by their path in the repository; others are nobody's business.

    Raises:
        DataError: There is none, or they cannot be listed.
    """
    from mlops_assets.data.image_layouts import belongs

    try:
        files = [one for one in sorted(place.rglob("*")) if one.is_file()]
    except OSError as error:
        raise DataError(f"{place} cannot be read ({error.strerror}); make it readable") from None
    found = {one.relative_to(place).as_posix(): one for one in files}
    wanted = {name: one for name, one in found.items() if belongs(name, layout)}
    if not wanted:
        raise DataError(f"{place} has no file of layout `{layout}` among its {len(found)} files; give another place")
    if layout == "folder" and not all("/" in name for name in wanted):
        stray = next(name for name in wanted if "/" not in name)
        raise DataError(f"{place}: {stray} lies in no class's directory; move it into one named after its class")
    return {f"{path}/{name}": one for name, one in wanted.items()}


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
        with given(pipeline, Path(path).expanduser(), here) as intake:
            yield intake
    elif source.sample:
        yield _sample(pipeline)
    elif source.url:
        with _downloaded(pipeline, here) as file, given(pipeline, file, here) as intake:
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
    from mlops_assets.data.origin import fetch

    source = pipeline.spec.data.origin
    target = here.home / DOWNLOADS / PurePath(urlsplit(source.url).path).name
    out.print(f"downloading {target.name}", markup=False)
    with progress_bar(target.name) as tell:
        fetch(source.url, source.sha256, target, on_progress=tell)
    yield target
    target.unlink(missing_ok=True)


def _sample(pipeline: Pipeline) -> Intake:
    from mlops_assets.data import samples

    data = pipeline.spec.data
    name = data.origin.sample
    if name == "digits":
        files: Mapping[str, Path | bytes] = {f"{data.path}/{path}": image for path, image in samples.digits().items()}
    else:
        files = {data.path: encode(samples.iris(), data.path)}
    return Intake(files, f"the sample '{name}'")


def _checked_table(file: Path, pipeline: Pipeline) -> Path:
    if file.is_dir():
        raise DataError(f"{file} is a directory; give the file of the table")
    wanted, found = ending(pipeline.spec.data.path), ending(file.name)
    if wanted != found:
        raise DataError(
            f"{file} ends in '{found}', but `path` in {pipeline.folder / 'defs.yaml'} is '{pipeline.spec.data.path}'; "
            f"give a {wanted} file"
        )
    return file


def with_key(pipeline: Pipeline, intake: Intake) -> Intake:
    """The same, where a table without the key column gets one: the row's number, from 1 on."""
    from mlops_assets.data.readers import read_table

    data = pipeline.spec.data
    file = intake.files.get(data.path)
    if data.images is not None or not isinstance(file, Path):
        return intake
    frame = read_table(file)
    if data.key in frame.columns or not frame.columns:
        return intake
    out.print(f"{file.name} has no key column '{data.key}': it gets one, the row's number from 1 on", markup=False)
    return Intake({data.path: encode(numbered(frame, data.key), data.path)}, intake.source)


def ending(name: str) -> str:
    """The part of a file's name that tells its kind, in lower case: `.csv`, `.csv.gz`, `.parquet`."""
    path = PurePath(name.lower())
    return "".join(path.suffixes[-2:]) if path.suffix == ".gz" else path.suffix


def numbered(frame: pl.DataFrame, key: str) -> pl.DataFrame:
    """A table with its row numbers, from 1 on, as first column."""
    import polars as pl

    return frame.insert_column(0, pl.int_range(1, frame.height + 1, eager=True, dtype=pl.Int64).alias(key))


def encode(frame: pl.DataFrame, path: str) -> bytes:
    """A table as the bytes of a file of that name."""
    from mlops_assets.data.readers import SUPPORTED, to_parquet_bytes

    kind = ending(path)
    if kind not in SUPPORTED:
        raise DataError(f"'{path}' is of no kind that can be written: its name must end in {', '.join(SUPPORTED)}")
    if kind in {".parquet", ".pq"}:
        return to_parquet_bytes(frame)
    text = frame.write_csv(separator="\t" if kind.startswith(".tsv") else ",").encode()
    return gzip.compress(text, mtime=0) if kind.endswith(".gz") else text
