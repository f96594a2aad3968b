"""Stored predictions of up to three models, side by side on the rows that all of them judged.

Belongs here: which rows pair, and under which labels. Not here: making predictions (`predictions.py`), judging them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
import polars as pl

from mlops_assets.data.readers import from_parquet_bytes
from mlops_assets.errors import MlopsError
from mlops_assets.evaluation.predictions import FILE
from mlops_assets.gate.rows import Outputs, Paired

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mlops_assets.store import Entry

PAIRED_SHARE: Final = 0.5
"""Of today's test rows that must be paired: fewer are another test set, and what they say is not about this one."""


class TooFewPairs(MlopsError):
    """Two models' predictions are of test rows that are hardly the same."""


def pair(
    new: Entry,
    old: Entry | None = None,
    anchor: Entry | None = None,
    *,
    classes: Sequence[str] = (),
    slices: pl.DataFrame | None = None,
) -> Paired:
    """Put the models' predictions side by side, under today's labels.

    Those of champion and anchor may be of an older test set: a row keeps its key and its part of the split when data
    grow.

    Args:
        new: The new model's predictions, on all of today's test rows.
        old: The champion's.
        anchor: The anchor's.
        classes: The classes in their order; scores of a model that knows others are left out.
        slices: A column `key`, and the columns by whose values rows are told apart.

    Returns:
        The rows that every model judged, in the order of the new model's.

    Raises:
        TooFewPairs: They are less than half of today's test rows.
    """
    rows = from_parquet_bytes(new.read(FILE)).with_row_index("row_of_new")
    whole = rows.height
    frames = {"new": rows}
    rows = rows.select("key", "label", "row_of_new")
    for name, entry in (("old", old), ("anchor", anchor)):
        if entry is not None:
            frames[name] = from_parquet_bytes(entry.read(FILE)).with_row_index(f"row_of_{name}")
            rows = rows.join(frames[name].select("key", f"row_of_{name}"), on="key", maintain_order="left")
            if rows.height < PAIRED_SHARE * whole:
                who = "champion" if name == "old" else "anchor"
                raise TooFewPairs(f"only {rows.height} of {whole} test rows are among those that the {who} judged")
    values = {}
    if slices is not None:
        joined = rows.select("key").join(slices, on="key", how="left", maintain_order="left")
        values = {
            column: joined[column].cast(pl.String).fill_null("").to_numpy()
            for column in slices.columns
            if column != "key"
        }
    entries = {"new": new, "old": old, "anchor": anchor}
    outputs = {
        name: _outputs(frame, rows[f"row_of_{name}"].to_numpy(), _own(entries[name]), classes)
        for name, frame in frames.items()
    }
    return Paired(
        label=rows["label"].to_numpy(),
        new=outputs["new"],
        old=outputs.get("old"),
        anchor=outputs.get("anchor"),
        classes=tuple(classes),
        slices=values,
        keys=rows["key"].to_numpy(),
    )


def _own(entry: Entry | None) -> list[str]:
    return list(entry.info["classes"]) if entry else []


def _outputs(frame: pl.DataFrame, rows: NDArray[np.uint32], own: Sequence[str], classes: Sequence[str]) -> Outputs:
    taken = frame[rows]
    scores = None
    if classes and set(own) == set(classes) and f"p{len(own) - 1}" in frame.columns:
        scores = taken.select(f"p{own.index(name)}" for name in classes).to_numpy().astype(np.float64)
    return Outputs(taken["predicted"].to_numpy(), scores)
