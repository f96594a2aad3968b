"""From features to the arrays that a network takes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mlops_assets.fingerprint import DIGEST_LENGTH


@dataclass(frozen=True, eq=False)
class Arrays:
    """One part of the split.

    Attributes:
        keys: What identifies each row, as text, shape (rows,).
        x: Features, shape (rows, features), float32; or images, shape (rows, height, width, channels), uint8.
        y: Index of the class, shape (rows,), int64.
        features: Names of the feature columns; none for images.
    """

    keys: list[str]
    x: NDArray[np.float32] | NDArray[np.uint8]
    y: NDArray[np.int64]
    features: list[str]

    @property
    def digest(self) -> str:
        """Content hash of keys, features and labels; the order of the rows counts."""
        content = hashlib.sha256("\0".join([*self.features, "", *self.keys]).encode())
        content.update(np.ascontiguousarray(self.x).data)
        content.update(np.ascontiguousarray(self.y).data)
        return content.hexdigest()[:DIGEST_LENGTH]


def arrays(
    frame: pl.DataFrame,
    pixels: NDArray[np.uint8] | None,
    part: str,
    *,
    key: str,
    target: str,
    split: str,
    classes: Sequence[str],
) -> Arrays:
    """Take one part of checked features.

    Args:
        frame: The feature table: key, target and split columns, and numbers where there are no images.
        pixels: The images of the table's rows, or None.
        part: `train`, `validation` or `test`.
        key: Name of the key column.
        target: Name of the target column.
        split: Name of the split column.
        classes: The target's values, in the order of their indices.
    """
    wanted = frame[split] == part
    rows = frame.filter(wanted)
    features = [name for name in frame.columns if name not in {key, target, split}]
    index = {name: position for position, name in enumerate(classes)}
    return Arrays(
        keys=rows[key].cast(pl.String).to_list(),
        x=rows.select(pl.col(features).cast(pl.Float32)).to_numpy() if pixels is None else pixels[wanted.to_numpy()],
        y=rows[target].cast(pl.String).replace_strict(index, return_dtype=pl.Int64).to_numpy(),
        features=features,
    )
