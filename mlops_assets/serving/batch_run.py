"""One round of batch scoring: what a version has not scored yet, from Oxen and back to it.

Belongs here: the order in which files are scored, kept and committed, so that a kill at any point loses nothing. Not
here: what wants scoring (`batch_plan.py`), and scoring (`batch.py`).

Each file's predictions go into the store of outputs first, under the recipe of input, model and contract; at the end
one commit adds them all, removes those of inputs that are gone, and replaces the manifest. So after a kill only the
unfinished file is scored again; so a version that is champion again finds what it scored before; and a file that comes
twice is scored once. Whoever commits to the branch meanwhile loses nothing: the commit is made on top of the head, from
a fresh look at it, and what changed under it is found by the next round.
"""

from __future__ import annotations

import hashlib
import logging
import mmap
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final, cast

from mlops_assets.fingerprint import Recipe
from mlops_assets.oxen.errors import PathNotFound
from mlops_assets.oxen.repository import Repository
from mlops_assets.oxen.tree import Commit
from mlops_assets.serving.batch_plan import MANIFEST, Look, Manifest, Record, Unit, look
from mlops_assets.store import Entry, EntryCorrupt, Store, StoreError

if TYPE_CHECKING:
    import polars as pl

    from mlops_assets.serving.batch import Scored
    from mlops_assets.serving.slot import Slot
    from mlops_assets.spec import PipelineSpec

log = logging.getLogger("mlops_assets")

ASSET: Final = "scored"
"""The store keeps predictions as NAME/scored; NAME/predictions are those that evaluations judge."""

CODE: Final = "1"
"""Raised when the same version makes other predictions of the same file, or writes them otherwise."""

FILE: Final = "predictions.parquet"
PROGRESS_SECONDS: Final = 2.0
_ATTEMPTS: Final = 5  # commits whose removals others were quicker with
_SENTENCES: Final = 100  # kept for each input


@dataclass(frozen=True)
class Round:
    """What one round did.

    Attributes:
        look: The inputs that it started from.
        records: What was scored, taken from the store or refused in this round, by input path.
        reused: Those of them that the store had.
        kept: Inputs that the version had scored or refused before.
        removed: Predictions that were removed, their input being gone or refused now.
        manifest: What is told of all inputs now.
        commit: The commit with all that; None when there was nothing to commit.
        seconds: That scoring took.
        rows: That were scored in them.
    """

    look: Look
    records: Mapping[str, Record]
    reused: frozenset[str]
    kept: int
    removed: tuple[str, ...]
    manifest: Manifest
    commit: Commit | None
    seconds: float = 0.0
    rows: int = 0

    @property
    def refusals(self) -> list[str]:
        """Why inputs, or images among them, have no predictions, whether of this round or of an earlier one."""
        return [sentence for record in self.manifest.files.values() for sentence in record.refused]


@dataclass
class _Work:
    """The round as it goes on."""

    slot: Slot
    repository: Repository
    store: Store
    place: Path
    found: Look
    contract: str
    places: dict[str, Path] = field(default_factory=dict)
    reused: set[str] = field(default_factory=set)
    seconds: float = 0.0
    rows: int = 0


def run(slot: Slot, repository: Repository, spec: PipelineSpec, store: Store, home: Path, *, told: str = "") -> Round:
    """Score what a version has not scored yet, and commit the predictions.

    Args:
        slot: The version.
        repository: Of the pipeline.
        spec: Of the pipeline.
        store: Of outputs.
        home: Where files are kept while they are worked on: below `scoring/`, which is cleared.
        told: Who asks, for the commit's message.

    Raises:
        OxenError: The repository cannot be read or written.
        PredictionsTaken: Another pipeline scores into the same directory; nothing was committed.
        StoreError: The store cannot be written.
    """
    from mlops_assets.serving.contract import key_of

    with _workplace(home / "scoring" / slot.pipeline) as place:
        found = look(repository, spec)
        found.require_own(slot.pipeline, spec.predictions.to)
        work = _Work(slot, repository, store, place, found, key_of(slot.contract))
        wanted = found.wanted(slot.model_digest, work.contract)
        records: dict[str, Record] = {}
        for number, unit in enumerate(wanted, start=1):
            log.info("%s: %s, %d of %d", slot.pipeline, unit.path, number, len(wanted))
            records[unit.path] = _record(work, unit)
        message = f"Predictions by version {slot.version} of {slot.pipeline}" + (f", {told}" if told else "")
        commit, manifest, removed = _publish(work, spec, records, message)
    return Round(
        look=found,
        records=records,
        reused=frozenset(work.reused),
        kept=len(found.units) - len(wanted),
        removed=removed,
        manifest=manifest,
        commit=commit,
        seconds=work.seconds,
        rows=work.rows,
    )


@contextmanager
def _workplace(place: Path) -> Iterator[Path]:
    """An empty folder that no other round of the pipeline uses; whoever comes second waits."""
    from filelock import FileLock, Timeout

    place.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(place.with_name(f"{place.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("%s is being scored by another process; going on when it is done or gone", place.name)
        lock.acquire()
    try:
        shutil.rmtree(place, ignore_errors=True)  # of a killed one
        place.mkdir()
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)
        lock.release()


def _record(work: _Work, unit: Unit) -> Record:
    """An input's predictions, from the store or made now, or why there are none."""
    from polars.exceptions import PanicException

    from mlops_assets.data.readers import ReadError
    from mlops_assets.serving.checks import InvalidInput

    slot = work.slot
    if unit.refused:
        return _refused(work, unit, unit.refused)
    inputs = {"file": unit.hash, "form": unit.form, "model": slot.model_digest, "contract": work.contract}
    recipe = Recipe(f"{slot.pipeline}/{ASSET}", CODE, inputs)
    with work.store.making(recipe):
        entry = _kept(work, recipe)
        if entry is not None:
            work.reused.add(unit.path)
        else:
            try:
                entry = _made(work, unit, recipe)
            except (InvalidInput, ReadError) as error:
                return _refused(work, unit, str(error))
            except PanicException as error:  # no `Exception`: it would end the round
                return _refused(work, unit, f"{unit.path}: Polars fails at it: {error}")
        work.places[unit.path] = _local(work, entry)
    # the store may have them of equal files elsewhere, so what it tells of image files names no directory
    refusals = tuple(f"{unit.path}/{one}" for one in entry.info["refused"])
    told = {**entry.info, "refused": refusals, "output_sha256": entry.files[FILE].sha256}
    return Record(**_made_of(work, unit), output=unit.output, **told)


def _refused(work: _Work, unit: Unit, sentence: str) -> Record:
    log.warning("%s: refused: %s", work.slot.pipeline, sentence)
    table = work.repository.table(unit.path, work.found.commit) if unit.form != "folder" else None
    rows = table.rows if table else None
    return Record(**_made_of(work, unit), version=work.slot.version, refused=(sentence,), rows_refused=rows)


def _made_of(work: _Work, unit: Unit) -> dict[str, str]:
    return {"input": unit.hash, "model_digest": work.slot.model_digest, "contract": work.contract}


def _kept(work: _Work, recipe: Recipe) -> Entry | None:
    """What the store has under a recipe, if it is whole."""
    try:
        entry = work.store.find(recipe.asset, recipe.key)
        if entry is not None:
            _local(work, entry)
    except StoreError as error:
        log.warning("%s is made again, because %s", recipe.asset, error)
        return None
    return entry


def _local(work: _Work, entry: Entry) -> Path:
    """A verified local file of stored predictions; that of the store itself where it is local.

    Raises:
        StoreError: They are gone or damaged.
    """
    file = entry.files[FILE]
    url = f"{entry.url}/{file.path}"
    place = Path(url) if work.store.is_local else work.place / f"{entry.key}.parquet"
    try:
        if not place.exists():
            work.store.fs.get_file(url, str(place))
        with place.open("rb") as stored:
            whole = hashlib.file_digest(stored, "sha256").hexdigest() == file.sha256
    except OSError as error:
        raise StoreError.reading(url, error) from None
    if not whole:
        raise EntryCorrupt(url, "its hash is wrong", entry.asset)
    return place


def _made(work: _Work, unit: Unit, recipe: Recipe) -> Entry:
    """Score an input and keep its predictions.

    Raises:
        InvalidInput: The version does not answer one of its rows.
        ReadError: It cannot be read.
    """
    target, source = work.place / "predictions", work.place / "input"
    began = time.monotonic()
    try:
        scored = _score(work, unit, source, target)
        work.rows += scored.rows - scored.known
        work.seconds += time.monotonic() - began
        info: dict[str, Any] = {
            "version": work.slot.version,
            "rows": scored.rows,
            "rows_refused": len(scored.refused),
            "labels": dict(scored.labels),
            "refused": scored.refused[:_SENTENCES],
        }
        with target.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            named = hashlib.sha256(data).hexdigest()[:32]
            # the store hashes and writes what has a buffer: predictions of any size need not fit into memory
            return work.store.put(recipe, named, info, {FILE: cast("bytes", data)})
    finally:
        target.unlink(missing_ok=True)
        shutil.rmtree(source, ignore_errors=True)


def _score(work: _Work, unit: Unit, source: Path, target: Path) -> Scored:
    from mlops_assets.data.image_layouts import SourceFile
    from mlops_assets.serving import batch

    facts = {"input": unit.hash, "input_form": unit.form}
    told: dict[str, Any] = {"name": unit.path, "facts": facts, "on_progress": _progress(work.slot.pipeline, unit.path)}
    if unit.form != "folder":
        local = work.repository.materialize(unit.path, work.found.commit, source)
        return batch.score(work.slot, local, target, **told)
    files = [
        SourceFile(PurePosixPath(entry.path).name, entry.hash, entry.bytes, partial(work.repository.read, entry))
        for entry in unit.files
    ]
    return batch.score_images(work.slot, files, target, known=_known(work, unit), **told)


def _known(work: _Work, unit: Unit) -> pl.DataFrame | None:
    """What the version has scored of a directory's images in an earlier state of the directory."""
    import polars as pl

    before = work.found.manifest.files.get(unit.path)
    if before is None or (before.model_digest, before.contract) != (work.slot.model_digest, work.contract):
        return None
    output = work.found.outputs.get(before.output)
    return None if output is None else pl.read_parquet(work.repository.read(output))


def _publish(
    work: _Work, spec: PipelineSpec, records: Mapping[str, Record], message: str
) -> tuple[Commit | None, Manifest, tuple[str, ...]]:
    """Commit what is new on top of whatever the branch holds by now; returns the manifest, and what was removed."""
    target = f"{spec.predictions.to}/{MANIFEST}"
    for _ in range(_ATTEMPTS):
        now = look(work.repository, spec)
        now.require_own(work.slot.pipeline, spec.predictions.to)
        before = now.manifest.files
        current = {
            path: one for path, one in records.items() if path in now.units and now.units[path].hash == one.input
        }
        told = {path: one for path, one in before.items() if path in now.units} | current
        manifest = Manifest(pipeline=work.slot.pipeline, files=told)
        needed = {one.output for one in told.values()}
        removed = tuple(sorted({one.output for one in before.values()} & now.outputs.keys() - needed))
        if told == before and not current:
            return None, manifest, ()
        files: dict[str, Path | bytes] = {one.output: work.places[path] for path, one in current.items() if one.output}
        try:
            done = work.repository.commit(
                message, files={**files, target: manifest.to_bytes()}, remove=removed, branch=spec.data.branch
            )
        except PathNotFound:
            continue  # somebody else has just removed one of them
        return done, manifest, removed
    raise PathNotFound(
        f"{work.repository.path}: others keep removing files of {spec.predictions.to} while predictions are committed; "
        "stop them, then run it again."
    )


def _progress(pipeline: str, path: str) -> Callable[[int], None]:
    began = told = time.monotonic()

    def tell(rows: int) -> None:
        nonlocal told
        now = time.monotonic()
        if now - told >= PROGRESS_SECONDS:
            told = now
            log.info("%s: %s: %s rows scored, %s a second", pipeline, path, f"{rows:,}", f"{rows / (now - began):,.0f}")

    return tell
