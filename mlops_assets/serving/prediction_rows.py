"""The rows of the prediction log: their columns, made for many requests at once.

Belongs here: what is kept of an answer and of a label that came later. Not here: when it is written, and where
(`prediction_log.py`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from itertools import chain
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import polars as pl

if TYPE_CHECKING:
    from mlops_assets.serving.slot import Answer, Batch, Slot

PREDICTIONS: Final = pl.Schema(
    {
        "request_id": pl.String(),
        "row": pl.UInt32(),
        "received": pl.Datetime("us", "UTC"),
        "pipeline": pl.String(),
        "version": pl.Int64(),
        "model": pl.String(),
        "label": pl.String(),
        "probability": pl.Float32(),
        "scores": pl.List(pl.Float32()),
        "seconds": pl.Float32(),
        "inputs": pl.String(),
    }
)
"""Columns: which row of which request; when it came; what answered (`model` is its digest); the label, its probability
and those of all classes; seconds from arrival to answer; the raw row as JSON, or `sha256:` and its digest, or null."""

FEEDBACK: Final = pl.Schema(
    {"request_id": pl.String(), "row": pl.UInt32(), "received": pl.Datetime("us", "UTC"), "truth": pl.String()}
)


class Answered(NamedTuple):
    """An answer; `bytes` is what it takes while it waits."""

    request_id: str
    slot: Slot
    batch: Batch | None
    answer: Answer
    seconds: float
    received: float
    bytes: int


class Told(NamedTuple):
    """What a row's label turned out to be."""

    pipeline: str
    request_id: str
    row: int
    label: str
    received: float
    bytes: int


def predictions(answers: list[Answered]) -> pl.DataFrame:
    """One row for each that one version answered."""
    slot = answers[0].slot
    counts = np.array([len(one.answer.labels) for one in answers])
    request = np.repeat(np.arange(len(answers)), counts)
    first = np.repeat(np.cumsum(counts) - counts, counts)
    probabilities = np.concatenate([one.answer.probabilities for one in answers])

    def by_request(values: Iterable[Any], dtype: Any) -> pl.Series:
        return pl.Series(values, dtype=dtype).gather(request)

    columns: dict[str, Any] = {
        "request_id": by_request([one.request_id for one in answers], pl.String),
        "row": np.arange(len(request)) - first,
        "received": by_request([int(one.received * 1e6) for one in answers], pl.Int64),
        "pipeline": pl.repeat(slot.pipeline, len(request), eager=True),
        "version": pl.repeat(slot.version, len(request), eager=True),
        "model": pl.repeat(slot.model_digest, len(request), eager=True),
        "label": list(chain.from_iterable(one.answer.labels for one in answers)),
        "probability": probabilities.max(axis=1),
        "scores": pl.Series(probabilities),
        "seconds": by_request([one.seconds for one in answers], pl.Float32),
        "inputs": _inputs(slot, [one.batch for one in answers], len(request)),
    }
    return _as(columns, PREDICTIONS)


def _inputs(slot: Slot, batches: list[Any], rows: int) -> pl.Series:
    kept = slot.serving.log
    if kept.inputs == "none":
        return pl.repeat(None, rows, dtype=pl.String, eager=True)
    if isinstance(batches[0], np.ndarray):
        return pl.Series([_digest(np.ascontiguousarray(image)) for images in batches for image in images])
    texts = _json(batches, kept.leave_out)
    return texts if kept.inputs == "values" else pl.Series([_digest(text.encode()) for text in texts])


def _json(frames: list[pl.DataFrame], leave_out: list[str]) -> pl.Series:
    """Each row as a JSON object, without the columns that must not reach the disk."""
    try:
        rows = pl.concat(frames, rechunk=True)
    except pl.exceptions.PolarsError:  # columns that a model does not need are in some requests only
        rows = pl.concat(frames, how="diagonal", rechunk=True)
    kept = rows.drop(leave_out, strict=False)
    if not kept.width:
        return pl.repeat("{}", rows.height, eager=True)
    return kept.select(pl.struct(pl.all()).struct.json_encode()).to_series()


def _digest(data: Any) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def truths(tellings: list[Told]) -> pl.DataFrame:
    """One row for each label that was told."""
    columns = {
        "request_id": [one.request_id for one in tellings],
        "row": [one.row for one in tellings],
        "received": [int(one.received * 1e6) for one in tellings],
        "truth": [one.label for one in tellings],
    }
    return _as(columns, FEEDBACK)


def _as(columns: dict[str, Any], schema: pl.Schema) -> pl.DataFrame:
    times = pl.col("received").cast(pl.Int64).cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    return pl.DataFrame(columns).with_columns(times).cast(schema)
