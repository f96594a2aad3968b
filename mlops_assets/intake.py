"""What a new version of a pipeline's data is made of, and its commit.

Belongs here: what the command line and the scheduled import share: from files and directories to a commit. Does not:
where the files come from (`doors.py`, `cli/intake.py`), and whether a table is good (the pipeline's checks say so).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Final

from mlops_assets.errors import MlopsError
from mlops_assets.oxen.errors import PathNotFound
from mlops_assets.oxen.repository import Repository
from mlops_assets.oxen.tree import Commit
from mlops_assets.pipeline import Pipeline

Tell = Callable[[str], None]
"""Takes a sentence for whoever follows what is going on."""

DOWNLOADS: Final = "downloads"
"""The folder of the home for what is on its way into Oxen."""


class DataError(MlopsError):
    """Data cannot be taken or committed as asked."""


@dataclass(frozen=True)
class Intake:
    """One version of the data, before it is committed.

    Attributes:
        files: Content by path in the repository; a local directory stands for all files below it.
        source: What it was made of, for the commit's message.
    """

    files: Mapping[str, Path | bytes]
    source: str


def tables_in(place: Path, path: str, *, below: bool = False) -> dict[str, Path]:
    """The tables of a directory, or those that a pattern names, that can become the table `path`, in name order.

    Args:
        place: A directory, or a pattern of files in one.
        path: The pipeline's own.
        below: Whether those in directories of the directory are meant too; hidden ones never are.

    Raises:
        DataError: There is none, or they cannot be listed.
    """
    from mlops_assets.data.tables import convertible, ending

    top, pattern = (place, "**/*" if below else "*") if place.is_dir() else (place.parent, place.name)
    try:
        found = {one.relative_to(top).as_posix(): one for one in sorted(top.glob(pattern)) if one.is_file()}
    except (OSError, ValueError) as error:
        raise DataError(f"{place} cannot be read ({getattr(error, 'strerror', None) or error}); mend that") from None
    seen = {
        name: one for name, one in found.items() if not name.startswith((".", "__MACOSX")) and "/." not in f"/{name}"
    }
    wanted = convertible(path)
    tables = {name: one for name, one in seen.items() if ending(name) in wanted}
    if not tables:
        raise DataError(
            f"{place} has no table ({', '.join(sorted(wanted))}) among its {len(seen)} files; give another place"
        )
    return tables


@contextmanager
def as_one(files: Mapping[str, Path], path: str, home: Path) -> Iterator[Path]:
    """Tables as the one of that name, for as long as it takes; a single file of the right kind as it is.

    Raises:
        MlopsError: They cannot be read, or are not of the same columns.
    """
    from mlops_assets.data.tables import encode, ending, together

    if len(files) == 1 and ending(next(iter(files))) == ending(path):
        yield next(iter(files.values()))
        return
    with aside(home) as place:
        made = place / PurePath(path).name
        made.write_bytes(encode(together(files), path))
        yield made


@contextmanager
def aside(home: Path) -> Iterator[Path]:
    """A directory of the home for what is needed until it is committed."""
    folder = home / DOWNLOADS
    folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".intake-", dir=folder) as place:
        yield Path(place)


@contextmanager
def directory_of(file: Path, home: Path, tell: Tell) -> Iterator[Path]:
    """A directory as it is, or what is in an archive, unpacked for as long as it takes.

    Raises:
        OriginError: It is neither, or the archive cannot be unpacked.
    """
    from mlops_assets.data import origin

    place = origin.local(file)
    if place.is_dir():
        yield place
        return
    with aside(home) as folder:
        tell(f"unpacking {place.name}")
        yield origin.unpacked(place, folder / "data")


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
def given(pipeline: Pipeline, places: Sequence[Path], home: Path, tell: Tell) -> Iterator[Intake]:
    """What a person names: a table, several or a directory of them; for images a directory or an archive.

    Raises:
        MlopsError: It is missing, of another kind than the path in `defs.yaml`, or cannot be read.
    """
    data, first = pipeline.spec.data, places[0]
    what = "a table, or a directory of tables" if data.images is None else "a directory of images, or an archive of one"
    for place in places:
        if not place.exists():
            raise DataError(f"{place} does not exist; give {what}")
    if data.images is not None:
        if len(places) > 1:
            raise DataError(f"{len(places)} places are named; give {what}")
        with directory_of(first, home, tell) as place:
            yield Intake(images_in(place, data.images.layout, data.path), first.name)
        return
    if len(places) == 1 and not first.is_dir():
        _require_kind(first, pipeline)
        files, source = {first.name: first}, first.name
    else:
        files = tables_in(first, data.path) if len(places) == 1 else {str(place): place for place in sorted(places)}
        source = f"{len(files)} files of {(first if len(places) == 1 else first.parent).resolve().name}"
    with as_one(files, data.path, home) as table:
        yield Intake({data.path: table}, source)


def _require_kind(file: Path, pipeline: Pipeline) -> None:
    from mlops_assets.data.tables import JSON_LINES, ending

    wanted, found = ending(pipeline.spec.data.path), ending(file.name)
    if found not in {wanted, *JSON_LINES}:
        raise DataError(
            f"{file} ends in '{found}', but `path` in {pipeline.folder / 'defs.yaml'} is '{pipeline.spec.data.path}'; "
            f"give a {wanted} file"
        )


def with_key(pipeline: Pipeline, intake: Intake, tell: Tell) -> Intake:
    """The same, where a table without the key column gets one: the row's number, from 1 on."""
    from mlops_assets.data.readers import read_table
    from mlops_assets.data.tables import encode, numbered

    data = pipeline.spec.data
    file = intake.files.get(data.path)
    if data.images is not None or not isinstance(file, Path):
        return intake
    frame = read_table(file)
    if data.key in frame.columns or not frame.columns:
        return intake
    tell(f"{intake.source} has no key column '{data.key}': it gets one, the row's number from 1 on")
    return Intake({data.path: encode(numbered(frame, data.key), data.path)}, intake.source)


def commit(repository: Repository, pipeline: Pipeline, intake: Intake, message: str) -> Commit | None:
    """Put a version on the pipeline's branch, making repository and branch where they are new.

    Returns:
        The commit, or None when the branch has this very content.

    Raises:
        OxenError: It cannot be committed.
    """
    data = pipeline.spec.data
    repository.init()
    heads = repository.heads()
    if data.branch == "main" or heads:
        # of images, what the new version does not have is gone
        replaced = data.images is not None and data.branch in heads and _holds(repository, data.path, data.branch)
        remove = [data.path] if replaced else []
        return repository.commit(message, files=intake.files, remove=remove, branch=data.branch)
    made = repository.commit(message, files=intake.files)  # the first commit of a repository is always on main
    repository.create_branch(data.branch)
    return made


def _holds(repository: Repository, path: str, branch: str) -> bool:
    try:
        return bool(repository.entries(path, repository.resolve(branch)))
    except PathNotFound:
        return False
