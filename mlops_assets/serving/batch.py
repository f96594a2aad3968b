"""Scoring of whole files by one version, with bounded memory whatever their size.

Belongs here: from a local file of rows or images to a Parquet file of predictions. Not here: how files are read in
pieces (`batch_tables.py`, `batch_images.py`), which files of a repository want scoring (`batch_plan.py`), and which
version does it.

One thread reads and checks rows, one for each core makes features and predictions of a chunk, and the caller's writes
them in order; no more chunks are in memory than these hold. So the version's own session needs one thread only: passes
beside each other use the cores better than one pass that is split.
"""

from __future__ import annotations

import json
import math
import os
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mlops_assets.data.image_files import is_image
from mlops_assets.data.image_layouts import SourceFile
from mlops_assets.data.readers import SUPPORTED, ReadError
from mlops_assets.serving.batch_images import array_chunks, file_chunks, image_files
from mlops_assets.serving.batch_tables import Chunk, Chunks, placed, table_chunks
from mlops_assets.serving.checks import InvalidInput
from mlops_assets.serving.contract import key_of

if TYPE_CHECKING:
    from mlops_assets.serving.slot import Slot

PROVENANCE: Final = "mlops_assets"
"""Key of a Parquet file's metadata under which JSON says what made it."""

CHUNK_ROWS: Final = 1 << 15
_CHUNK_VALUES: Final = 1 << 22
"""Numbers in a chunk's widest form, raw rows, features or probabilities: 16 MB of float32."""

Progress = Callable[[int], None]


class Scored(NamedTuple):
    """What became of a file.

    Attributes:
        rows: How many were scored.
        labels: How many got each class, by class; classes that none got are left out.
        refused: A sentence for each image file that was left out.
        known: Rows that were taken from an earlier output.
    """

    rows: int
    labels: Mapping[str, int]
    refused: tuple[str, ...] = ()
    known: int = 0


def score(
    slot: Slot,
    source: Path,
    target: Path,
    *,
    name: str = "",
    facts: Mapping[str, str] | None = None,
    on_progress: Progress | None = None,
) -> Scored:
    """Score a local file by what the version takes: `score_table` or `score_images`."""
    way = score_table if slot.contract.kind == "table" else score_images
    return way(slot, source, target, name=name, facts=facts, on_progress=on_progress)


def score_table(
    slot: Slot,
    source: Path,
    target: Path,
    *,
    name: str = "",
    chunk_rows: int | None = None,
    facts: Mapping[str, str] | None = None,
    on_progress: Progress | None = None,
) -> Scored:
    """Score a CSV, TSV (both gzipped or not) or Parquet file.

    The predictions have, in the order of the rows, the columns `key` (the key column's values, where the file has it,
    else `row`, from 1), `label`, `probability` (the label's), `p_CLASS` for each class, and `model_version`. The target
    appears whole or not at all.

    Args:
        slot: The version that scores.
        source: The file; the ending of its name says what it is.
        target: The Parquet file to write.
        name: What errors call the file; empty is its path.
        chunk_rows: Rows that are scored at once; None chooses by their width.
        facts: What is to be said of the input in the target's metadata.
        on_progress: Called with the rows done.

    Raises:
        ReadError: The file cannot be read.
        InvalidInput: The version does not answer a row; the sentence names file, row and column.
    """
    name, contract = name or str(source), slot.contract
    if not source.name.lower().endswith(SUPPORTED):
        raise ReadError(f"{name} is of no kind that can be read: its name must end in {', '.join(SUPPORTED)}.")
    width = max(len(contract.inputs), *contract.shape, len(contract.classes))
    chunks = table_chunks(slot, source, name, chunk_rows or _rows(width))
    return _score(slot, chunks, target, name=name, facts=facts, on_progress=on_progress)


def score_images(
    slot: Slot,
    source: Path | Sequence[SourceFile],
    target: Path,
    *,
    name: str = "",
    chunk_rows: int | None = None,
    facts: Mapping[str, str] | None = None,
    on_progress: Progress | None = None,
    known: pl.DataFrame | None = None,
) -> Scored:
    """Score image files, or the images of an idx file or of a binary batch of CIFAR.

    The predictions are those of `score_table`. Of image files the `key` is their path, a further column `file` has
    their content's hash, and those that cannot be decoded are left out and told.

    Args:
        slot: The version that scores.
        source: An idx or CIFAR file, a directory of image files, one image file, or image files wherever they are.
        target: The Parquet file to write.
        name: What errors call the file; empty is its path.
        chunk_rows: Images that are scored at once; None chooses by their size.
        facts: What is to be said of the input in the target's metadata.
        on_progress: Called with the rows done.
        known: An earlier output of the same version over image files: what it has of their contents is not decoded
            and scored again. Its rows come first.

    Raises:
        ReadError: The file cannot be read.
        InvalidInput: The version does not answer an image of an idx or CIFAR file.
    """
    contract = slot.contract
    rows = chunk_rows or _rows(max(math.prod(contract.image_shape), math.prod(contract.shape), len(contract.classes)))
    refused: list[str] = []
    names: pl.DataFrame | None = None
    earlier: pl.DataFrame | None = None
    if isinstance(source, Path) and source.is_file() and not is_image(source.name):
        name = name or str(source)
        chunks = array_chunks(slot, source, name, rows)
    else:
        files = image_files(source) if isinstance(source, Path) else source
        name = name or (str(source) if isinstance(source, Path) else "")
        if known is not None:
            files, earlier = _without(files, known)
        names = pl.DataFrame(schema={"key": pl.String, "file": pl.String})
        chunks = file_chunks(slot, files, rows, refused)
    told: dict[str, Any] = {"name": name, "facts": facts, "on_progress": on_progress}
    done = _score(slot, chunks, target, **told, names=names, earlier=earlier)
    return done._replace(refused=tuple(refused))


def provenance(slot: Slot, facts: Mapping[str, str]) -> dict[str, Any]:
    """What is written into the metadata of predictions: the version that made them, and the facts about their input."""
    return {
        "pipeline": slot.pipeline,
        "version": slot.version,
        "model_digest": slot.model_digest,
        "mlflow_run": slot.run_id,
        "contract": key_of(slot.contract),
        **facts,
    }


def _rows(width: int) -> int:
    return max(1, min(CHUNK_ROWS, _CHUNK_VALUES // max(1, width)))


def _without(files: Iterable[SourceFile], known: pl.DataFrame) -> tuple[list[SourceFile], pl.DataFrame]:
    """The files that are not known by content, and the known rows of the others, under their paths of today."""
    listed = [*files]
    today = pl.DataFrame([(file.path, file.hash) for file in listed], ["key", "file"], orient="row")
    kept = today.join(known.drop("key").unique("file"), on="file", maintain_order="left")
    found = set(kept["key"])
    return [file for file in listed if file.path not in found], kept.select(known.columns)


def _score(
    slot: Slot,
    chunks: Chunks,
    target: Path,
    *,
    name: str,
    facts: Mapping[str, str] | None,
    on_progress: Progress | None,
    names: pl.DataFrame | None = None,
    earlier: pl.DataFrame | None = None,
) -> Scored:
    """Score chunk by chunk; `names` is what those of a file without rows look like."""
    rows = known = 0
    labels = Counter[str]()
    workers = os.cpu_count() or 1
    with _Writer(slot, target, facts or {}, names) as writer, closing(chunks), ThreadPoolExecutor(workers + 1) as pool:
        if earlier is not None and earlier.height:
            writer.write(earlier)
            known = earlier.height
            labels.update(earlier["label"])
        for part in _in_order(chunks, partial(_answered, slot, name), pool, workers):
            writer.write(part)
            labels.update(dict(part["label"].value_counts().iter_rows()))
            rows += part.height
            if on_progress is not None:
                on_progress(rows)
    return Scored(rows + known, dict(sorted(labels.items())), known=known)


def _answered(slot: Slot, name: str, chunk: Chunk, start: int) -> pl.DataFrame:
    """The predictions of a chunk.

    Raises:
        InvalidInput: The version does not answer one of its rows.
    """
    try:
        probabilities = slot.probabilities(slot.features(chunk.rows))
    except InvalidInput as error:
        raise placed(error, name, start) from error
    return predictions(slot, chunk.names, probabilities, start)


def _in_order(
    chunks: Chunks, score_one: Callable[[Chunk, int], pl.DataFrame], pool: Executor, workers: int
) -> Iterator[pl.DataFrame]:
    """Score chunks beside each other while the next one is read; give what becomes of them in their order."""
    coming: Future[Chunk | None] = pool.submit(next, chunks, None)
    scoring: deque[Future[pl.DataFrame]] = deque()
    start = 0
    while (chunk := coming.result()) is not None:
        coming = pool.submit(next, chunks, None)
        scoring.append(pool.submit(score_one, chunk, start))
        start += len(chunk.rows)
        if len(scoring) > workers:
            yield scoring.popleft().result()
    for each in scoring:
        yield each.result()


def predictions(slot: Slot, names: pl.DataFrame | None, probabilities: NDArray[np.float32], start: int) -> pl.DataFrame:
    """Predictions as a table.

    Args:
        slot: The version that scored.
        names: What identifies the rows; None numbers them.
        probabilities: (rows, classes).
        start: How many rows of the input come before.
    """
    count, best = len(probabilities), probabilities.argmax(axis=1)
    by_class = np.ascontiguousarray(probabilities.T)
    return pl.DataFrame(
        [
            *([pl.int_range(start + 1, start + count + 1, eager=True).alias("row")] if names is None else names),
            pl.Series("label", slot.contract.classes, pl.String).gather(best),
            pl.Series("probability", by_class[best, np.arange(count)]),
            *(pl.Series(f"p_{each}", by_class[index]) for index, each in enumerate(slot.contract.classes)),
            pl.repeat(slot.version, count, dtype=pl.Int32, eager=True).alias("model_version"),
        ]
    )


class _Writer:
    """A Parquet file that is written aside, and moved into place when all of it is on disk and nothing failed."""

    def __init__(self, slot: Slot, target: Path, facts: Mapping[str, str], names: pl.DataFrame | None) -> None:
        self._slot, self._target, self._names = slot, target, names
        self._metadata = {PROVENANCE: json.dumps(provenance(slot, facts), sort_keys=True)}
        self._aside = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
        self._writer: Any = None

    def __enter__(self) -> Self:
        return self

    def write(self, frame: pl.DataFrame) -> None:
        """Append rows as a row group."""
        import pyarrow.parquet as pq  # type: ignore[import-untyped]

        table = frame.to_arrow(compat_level=pl.CompatLevel.oldest())
        if self._writer is None:
            self._writer = pq.ParquetWriter(
                self._aside,
                table.schema.with_metadata(self._metadata),
                # probabilities hardly repeat: a dictionary of them costs time and saves nothing
                use_dictionary=["label", "model_version"],
                compression={name: "snappy" if name in {"key", "file"} else "none" for name in frame.columns},
            )
        self._writer.write_table(table)

    def __exit__(self, failed: type[BaseException] | None, *_: object) -> None:
        try:
            if failed is None and self._writer is None:  # a file without rows is no reason to have no output
                slot = self._slot
                nothing = np.empty((0, len(slot.contract.classes)), np.float32)
                self.write(predictions(slot, self._names, nothing, 0))
            if self._writer is not None:
                self._writer.close()
            if failed is None:
                with self._aside.open("rb") as written:
                    os.fsync(written.fileno())
                self._aside.replace(self._target)
        finally:
            self._aside.unlink(missing_ok=True)
