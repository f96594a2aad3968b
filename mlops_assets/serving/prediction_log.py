"""The prediction log: what was answered, by which version, to what, and what turned out to be true.

Belongs here: keeping answers and feedback until a thread has written them, the files, and reading them again. Not here:
what is told of requests that were not answered (`metrics.py`), and what follows from the log (`monitoring/`).

`HOME/predictions/NAME/date=YYYY-MM-DD/WORKER-TIME-N.parquet` has one row for each row that was answered; labels that
came later lie in the same way below `HOME/feedback`. Days are those of UTC. A worker goes on with its newest file of a
day, each time written anew aside and renamed over the old one, until that has many rows or some minutes have passed: a
reader sees whole files only, and a quiet day does not leave one for every two seconds.
"""

from __future__ import annotations

import io
import logging
import os
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import polars as pl

from mlops_assets.serving.prediction_rows import FEEDBACK, PREDICTIONS, Answered, Told, predictions, truths

if TYPE_CHECKING:
    from mlops_assets.serving.metrics import Metrics
    from mlops_assets.serving.slot import Answer, Batch, Slot

log = logging.getLogger("mlops_assets")

SECONDS: Final = 2.0
"""Between two writes."""

WAKE: Final = 512
"""So many answers are made into columns at once, without waiting: as frames of one row they take ten times the room."""

MOST_ROWS: Final = 500_000
MOST_BYTES: Final = 256 << 20
"""What may wait to be written; what comes then is dropped from the log."""

FILE_ROWS: Final = 10_000
FILE_BYTES: Final = 4 << 20
FILE_SECONDS: Final = 600.0
"""A file that has reached one of these is finished."""

RETRY_SECONDS: Final = 30.0
"""Longest between two attempts while the disk cannot be written: each packs all that waits."""

TELL_SECONDS: Final = 60.0

_COLUMN_BYTES: Final = 600
"""What a column of a table takes beside its values."""

_RECORD_BYTES: Final = 500
"""What an answer takes beside its inputs and scores."""

_LAST_ROW: Final = (1 << 32) - 1
_MAGIC: Final = b"PAR1"

_Key = tuple[str, str, int]
"""Of a file that is not finished: `predictions` or `feedback`, the pipeline, the day since the epoch."""


@dataclass
class _File:
    """A file that is not finished: all its rows, and how much of them is not on disk yet."""

    path: Path
    began: float
    frames: list[pl.DataFrame] = field(default_factory=list)
    rows: int = 0
    bytes: int = 0
    new_rows: int = 0
    new_bytes: int = 0


class PredictionLog:
    """What a worker answers, on its way to disk.

    `record` and `feedback` only put references in a queue; a thread does the rest. Nothing here fails a request: while
    the disk cannot be written everything waits in memory, as long as there is room, and is then dropped and counted. A
    process that is killed loses what it had not written yet: what came in the last two seconds, or since the disk could
    last be written.

    Args:
        home: The platform's home.
        worker: Number of the process; no other that lives has it.
        metrics: What is told of rows written, waiting and dropped.
        seconds: Between two writes.
        most_rows: That may wait.
        most_bytes: That they may take, about.
    """

    def __init__(
        self,
        home: Path,
        worker: int,
        metrics: Metrics,
        *,
        seconds: float = SECONDS,
        most_rows: int = MOST_ROWS,
        most_bytes: int = MOST_BYTES,
    ) -> None:
        self._home, self._worker, self._metrics, self._seconds = home, worker, metrics, seconds
        self._most_rows, self._most_bytes = most_rows, most_bytes
        self._queue: deque[Answered | Told] = deque()
        # What came and what went are counted by one thread each, so that neither takes a lock.
        self._came_rows = self._came_bytes = self._went_rows = self._went_bytes = 0
        self._dropped = self._dropped_told = 0
        self._files: dict[_Key, _File] = {}
        self._made = 0
        self._told_at = -TELL_SECONDS
        self._wake = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="prediction-log", daemon=True)
        self._thread.start()

    def record(
        self, *, request_id: str, slot: Slot, batch: Batch, answer: Answer, seconds: float, received: float
    ) -> None:
        """Keep an answer; for one thread alone, the event loop's.

        Args:
            request_id: Of the request.
            slot: That answered.
            batch: The valid raw rows.
            answer: To them.
            seconds: From the request's arrival to its answer.
            received: When it came, in seconds since the epoch.
        """
        rows = len(answer.labels)
        size = _RECORD_BYTES + answer.probabilities.nbytes
        if slot.serving.log.inputs == "none":
            batch = None
        elif isinstance(batch, np.ndarray):
            size += batch.nbytes
        else:
            size += batch.estimated_size() + _COLUMN_BYTES * batch.width
        if self._room(rows, size):
            self._queue.append(Answered(request_id, slot, batch, answer, seconds, received, size))
            if len(self._queue) >= WAKE and not self._wake.is_set():
                self._wake.set()

    def feedback(self, *, pipeline: str, request_id: str, row: int, label: str) -> bool:
        """Keep what a row's label turned out to be; the last one that is told counts. For the same thread as `record`.

        Args:
            pipeline: That answered.
            request_id: Of the request.
            row: In the request, from 0.
            label: The true one.

        Returns:
            False when there is no room, and it was dropped.
        """
        room = self._room(1, _RECORD_BYTES)
        if room:
            row = min(row, _LAST_ROW)  # a number that no request has must not spoil what is written with it
            self._queue.append(Told(pipeline, request_id, row, label, time.time(), _RECORD_BYTES))
        return room

    def close(self) -> None:
        """Write what waits; what cannot be written now is lost and counted."""
        self._closing = True
        self._wake.set()
        self._thread.join()

    def _room(self, rows: int, size: int) -> bool:
        waiting_rows, waiting_bytes = self._came_rows - self._went_rows, self._came_bytes - self._went_bytes
        if waiting_rows + rows > self._most_rows or waiting_bytes + size > self._most_bytes:
            self._dropped += rows
            self._metrics.log_dropped.inc(rows)
            return False
        self._came_rows += rows
        self._came_bytes += size
        return True

    def _run(self) -> None:
        with suppress(OSError):  # what cannot be removed now is no hindrance
            self._clean()
        pause = self._seconds
        due = time.monotonic() + pause
        while not self._closing:
            self._wake.wait(max(0.0, due - time.monotonic()))
            self._wake.clear()
            self._take()
            if time.monotonic() >= due:
                pause = self._seconds if self._write() else min(2 * pause, RETRY_SECONDS)
                due = time.monotonic() + pause
            self._metrics.log_pending.set(self._came_rows - self._went_rows)
        self._take()
        self._write()
        lost = self._came_rows - self._went_rows
        if lost:
            self._metrics.log_dropped.inc(lost)
            log.error("%d rows of the prediction log are lost: they could not be written before the end", lost)

    def _clean(self) -> None:
        """Remove what a killed process of this number left half written."""
        for kind in ("predictions", "feedback"):
            for left in (self._home / kind / ".aside").glob(f"{self._worker}-*"):
                left.unlink(missing_ok=True)

    def _take(self) -> None:
        """Make columns of what waits, in its order, and put them to their files."""
        answered: dict[tuple[int, int], list[Answered]] = {}
        told: dict[tuple[str, int], list[Told]] = {}
        for one in [self._queue.popleft() for _ in range(len(self._queue))]:
            day = int(one.received // 86400)
            if isinstance(one, Answered):
                answered.setdefault((id(one.slot), day), []).append(one)
            else:
                told.setdefault((one.pipeline, day), []).append(one)
        for (_, day), answers in answered.items():
            key = ("predictions", answers[0].slot.pipeline, day)
            self._put(key, answers, sum(len(one.answer.labels) for one in answers))
        for (pipeline, day), tellings in told.items():
            self._put(("feedback", pipeline, day), tellings, len(tellings))

    def _put(self, key: _Key, taken: list[Answered] | list[Told], rows: int) -> None:
        size = sum(one.bytes for one in taken)
        kind, pipeline, day = key
        try:
            frame = predictions(taken) if kind == "predictions" else truths(taken)  # type: ignore[arg-type]
        except Exception:  # a thread that ended here would lose all that comes after
            self._went_rows += rows
            self._went_bytes += size
            self._metrics.log_dropped.inc(rows)
            log.exception("%d rows of '%s' could not be put in the prediction log; this is a defect", rows, pipeline)
            return
        file = self._files.get(key)
        if file is None:
            now, self._made = datetime.now(UTC), self._made + 1
            folder = self._home / kind / pipeline / f"date={datetime.fromtimestamp(day * 86400, UTC):%Y-%m-%d}"
            file = _File(folder / f"{self._worker}-{now:%H%M%S%f}-{self._made}.parquet", time.monotonic())
            self._files[key] = file
        file.frames.append(frame)
        file.rows += rows
        file.bytes += int(frame.estimated_size())
        file.new_rows += rows
        file.new_bytes += size

    def _write(self) -> bool:
        """Write what is new; whether all of it could be."""
        now, well = time.monotonic(), True
        for key, file in list(self._files.items()):
            if file.new_rows:
                try:
                    file.frames = [pl.concat(file.frames, rechunk=True)]
                    _replace(file.path, file.frames[0], self._home / key[0] / ".aside")
                except OSError as error:
                    self._metrics.log_errors.inc()
                    self._tell(file, error)
                    well = False
                    continue
                self._went_rows += file.new_rows
                self._went_bytes += file.new_bytes
                self._metrics.log_rows.inc(file.new_rows)
                file.new_rows = file.new_bytes = 0
            if file.rows >= FILE_ROWS or file.bytes >= FILE_BYTES or now - file.began >= FILE_SECONDS:
                del self._files[key]
        return well

    def _tell(self, file: _File, error: OSError) -> None:
        now, dropped = time.monotonic(), self._dropped
        if now - self._told_at < TELL_SECONDS:
            return
        waiting = self._came_rows - self._went_rows
        log.error(
            "the prediction log cannot be written to %s (%s): %d rows wait in memory and %d were dropped since this "
            "was last told; free space there or mend its rights",
            *(file.path.parent, error.strerror or error, waiting, dropped - self._dropped_told),
        )
        self._told_at, self._dropped_told = now, dropped


def read(home: Path, pipeline: str, *, since: date | None = None, until: date | None = None) -> pl.LazyFrame:
    """A pipeline's predictions with the labels that came later, also while they are being written.

    Args:
        home: The platform's home.
        pipeline: Its name.
        since: First day on which requests came, in UTC; None is the first there is.
        until: Last day; None is today.

    Returns:
        The columns of `PREDICTIONS`, and `truth`: the last label that was told, null where none was.
    """
    told = _scan(home / "feedback" / pipeline, FEEDBACK, since, None)
    latest = told.sort("received").unique(["request_id", "row"], keep="last").drop("received")
    answered = _scan(home / "predictions" / pipeline, PREDICTIONS, since, until)
    return answered.join(latest, on=["request_id", "row"], how="left", maintain_order="left")


def _scan(folder: Path, schema: pl.Schema, since: date | None, until: date | None) -> pl.LazyFrame:
    first, last = f"date={since or date.min}", f"date={until or date.max}"
    days = sorted(day for day in folder.glob("date=*") if first <= day.name <= last)
    files = [file for day in days for file in sorted(day.glob("*.parquet")) if _is_whole(file)]
    # With the schema given, no file's footer is kept from now until it is read: it may be replaced in between.
    return pl.scan_parquet(files, schema=schema, hive_partitioning=False) if files else pl.LazyFrame(schema=schema)


def _is_whole(path: Path) -> bool:
    """Whether a file ends as Parquet does; after a power cut one may not."""
    with path.open("rb") as file:
        file.seek(0, os.SEEK_END)
        if file.tell() < 2 * len(_MAGIC):
            return False
        file.seek(-len(_MAGIC), os.SEEK_END)
        return file.read() == _MAGIC


def _replace(path: Path, frame: pl.DataFrame, asides: Path) -> None:
    """Write a file aside, and rename it.

    Raises:
        OSError: It cannot be written.
    """
    asides.mkdir(parents=True, exist_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = asides / path.name
    with aside.open("wb") as file:
        # By way of memory: Polars has errors of its own for a disk that is full.
        made = io.BytesIO()
        frame.write_parquet(made, compression="zstd", compression_level=1)
        file.write(made.getbuffer())
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
