"""What a model takes of raw rows, by a pipeline's own features function.

Belongs here: how that function is asked about rows that come alone, in training and in service alike: what table it is
given, and what is taken of its answer. Not here: which rows those are (`slot.py`, `contract_making.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import polars as pl

from mlops_assets.errors import MlopsError

if TYPE_CHECKING:
    from numpy.typing import NDArray


class FeaturesError(MlopsError):
    """What a features function made of some rows is not what a model takes."""


def table_features(
    function: Callable[[pl.DataFrame], Any],
    rows: pl.DataFrame,
    *,
    columns: list[str],
    key: str,
    key_type: str,
    target: str,
    features: Sequence[str],
) -> NDArray[np.float32]:
    """Features of rows without key and target: they are numbered, and their target is null.

    Args:
        function: The features function.
        rows: Raw rows.
        columns: The raw columns that the function is given, before key and target.
        key: Name of the key column.
        key_type: Its Polars type: Int64, Float64 or String.
        target: Name of the target column.
        features: Names of the feature columns.

    Returns:
        Shape (rows, features), in the order of the rows, whatever order the function gives; null is NaN.

    Raises:
        FeaturesError: The function made other rows or columns.
    """
    numbers = pl.int_range(rows.height, eager=True).alias(key).cast(getattr(pl, key_type))
    absent = pl.Series(target, [None], pl.String).new_from_index(0, rows.height)
    given = rows if rows.columns == columns else rows[columns]
    made = function(given.hstack([numbers, absent]))
    if not isinstance(made, pl.DataFrame):
        raise FeaturesError(f"the features function made {type(made).__name__}, not a polars.DataFrame")
    if not {key, *features} <= (there := set(made.columns)):
        lost = next(name for name in (key, *features) if name not in there)
        raise FeaturesError(f"the features function made no column '{lost}' of these rows")
    if made.height != rows.height:
        raise FeaturesError(f"the features function made {made.height} rows of {rows.height}")
    if made.height > 1:
        made = _in_order(made, key)
    chosen = made[list(features)]
    # the same rounding, and a tenth of the time for a few rows
    exact = _EXACT.issuperset(chosen.dtypes)
    x = chosen.to_numpy().astype(np.float32) if exact else chosen.cast(pl.Float32).to_numpy()
    return np.ascontiguousarray(x)


_EXACT: Final = frozenset({pl.Int8, pl.Int16, pl.Int32, pl.UInt8, pl.UInt16, pl.UInt32, pl.Float32, pl.Float64})
"""Types whose values a float64 holds, so that a table of them may pass through it."""


def _in_order(made: pl.DataFrame, key: str) -> pl.DataFrame:
    """Rows by their numbers.

    Raises:
        FeaturesError: They have others.
    """
    numbers = made[key].cast(pl.Int64, strict=False)
    if np.array_equal(numbers.to_numpy(), np.arange(made.height)):
        return made
    order = numbers.arg_sort()
    if numbers[order].to_list() != list(range(made.height)):
        raise FeaturesError("the features function gave these rows other keys")
    return made[order]


def image_features(
    function: Callable[[NDArray[np.uint8]], Any], images: NDArray[np.uint8], shape: tuple[int, ...]
) -> NDArray[np.uint8]:
    """What a model takes of images.

    Args:
        function: The features function.
        images: Shape (rows, height, width, channels).
        shape: Of one image as the model takes it.

    Raises:
        FeaturesError: The function made something else.
    """
    made = function(images)
    if not isinstance(made, np.ndarray) or made.dtype != np.uint8 or made.shape != (len(images), *shape):
        what = f"{made.dtype} {made.shape}" if isinstance(made, np.ndarray) else type(made).__name__
        raise FeaturesError(f"the features function made {what} of these images, not uint8 {(len(images), *shape)}")
    return np.ascontiguousarray(made)
