"""What a features function makes of rows that come alone, held against what it made of them in training.

Belongs here: which rows of the dataset are tried, whether a row's features are its own, and which columns may be
missing. Not here: the contract that says so (`contract_making.py`). Of the rows that are tried only the sample is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import polars as pl
import polars.selectors as cs

from mlops_assets.serving.features import FeaturesError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Compute = Callable[[pl.DataFrame, Sequence[str]], NDArray[np.float32]]
    """Features of raw rows by some of their columns, as they are computed in service."""

SAMPLE_ROWS: Final = 5
RANDOM_ROWS: Final = 200
ALONE: Final = 64
"""So many of the rows that are tried are tried alone, and all of them in groups."""

GROUPS: Final = 32
"""At most so many, of at least four rows where there are as many."""

JUDGED_VALUES: Final = 20_000
"""Of a wide table fewer rows tell which columns may be missing, since each column is a question of its own."""

FAR: Final = 1e30
"""A number beyond those of most data, which Float32 holds too."""

TYPES: Final = frozenset(
    {
        *("Int8", "Int16", "Int32", "Int64", "UInt8", "UInt16", "UInt32", "UInt64", "Float32", "Float64"),
        *("String", "Boolean", "Date", "Datetime", "Time", "Categorical", "Enum"),
    }
)
"""Of the columns that a request can carry."""


def can_be_sent(dtype: Any) -> bool:
    """Whether a request can carry values of a type."""
    return str(dtype.base_type()) in TYPES and getattr(dtype, "time_zone", None) is None


def probe_rows(kept: pl.DataFrame, target: str, columns: Sequence[str]) -> tuple[pl.DataFrame, int]:
    """Rows that tell most of a features function, and how many of them, at the beginning, are the sample.

    A gap that is filled from other rows shows where there is one, and a limit at the least and the greatest value.

    Args:
        kept: The rows of the dataset that the features function keeps.
        target: Name of the target column.
        columns: The raw columns.
    """
    sample = _sample(kept, target)
    gaps, ends = list[int | None](), list[int | None]()
    for name in columns:
        values = kept[name]
        gaps.append(values.is_null().arg_max() if values.null_count() else None)
        if values.dtype.is_float():
            odd = values.is_nan()
            gaps.append(odd.arg_max() if odd.any() else None)
        if can_be_sent(values.dtype):
            ends += _ends(values)
    count = min(RANDOM_ROWS, kept.height)
    chance = np.random.default_rng(0).choice(kept.height, count, replace=False).tolist()
    places = dict.fromkeys(place for place in (*sample, *gaps, *ends, *chance) if place is not None)
    return kept[list(places)], len(sample)


def why_not_by_row(
    compute: Compute, rows: pl.DataFrame, columns: Sequence[str], wanted: NDArray[np.float32], *, private: bool
) -> str:
    """Why features of rows that come alone and without a target are not those of training; empty when they are.

    Args:
        compute: Computes features.
        rows: Raw rows.
        columns: All raw columns.
        wanted: The features that these rows have in training.
        private: Whether rows have values that must not be told.
    """
    try:
        for chosen in compositions(rows.height):
            if not np.array_equal(compute(rows[chosen], columns), wanted[chosen], equal_nan=True):
                return "the features of a row depend on other rows, its key or its target; alone it has other ones"
    except Exception as error:  # noqa: BLE001  a user's function may raise anything, and that is the finding
        return f"the features function fails on a few rows without a target ({said(error, private=private)})"
    return ""


def compositions(rows: int) -> Iterator[list[int]]:
    """So many rows in different company: the sample, some alone, all in groups, and all in another order."""
    yield list(range(min(rows, SAMPLE_ROWS)))
    yield from ([place] for place in range(min(rows, ALONE)))
    mixed = np.random.default_rng(1).permutation(rows)
    yield from (group.tolist() for group in np.array_split(mixed, max(1, min(GROUPS, rows // 4))))
    yield list(reversed(range(rows)))


def needed_columns(
    compute: Compute,
    rows: pl.DataFrame,
    columns: Sequence[str],
    wanted: NDArray[np.float32],
    *,
    kept: pl.DataFrame,
    offered: Collection[str],
) -> list[str]:
    """The columns that a request must have, because the features function needs them.

    Another may be missing: features are the same without it, with null in it, and with other values; the function may
    sum all columns of a kind, and these rows' be zero, or take the greatest of them.

    Args:
        compute: Computes features.
        rows: Raw rows.
        columns: All raw columns.
        wanted: The features that these rows have in training.
        kept: All rows of the dataset that the features function keeps.
        offered: The columns that a request may have in any case; where one is missing, the function is given nulls.
    """
    count = max(SAMPLE_ROWS, JUDGED_VALUES // max(1, len(columns)))
    rows, wanted = rows.head(count), wanted[:count]

    def same(given: pl.DataFrame, names: Sequence[str]) -> bool:
        try:
            made = compute(given, names)
        except Exception:  # noqa: BLE001  without a column that it needs, a function may raise anything
            return False
        return np.array_equal(made, np.tile(wanted, (given.height // rows.height, 1)), equal_nan=True)

    needed, served = list(columns), list(columns)
    for name in columns:
        rest = [one for one in needed if one != name]
        if same(rows, rest):
            changed = [one.alias(name) for one in _changed(rows[name], kept[name])]
            stacked = rows[np.tile(np.arange(rows.height), len(changed))]
            if same(stacked.with_columns(pl.concat(changed)), served):
                needed = rest
                served = [one for one in served if one != name or one in offered]
    missing = set(served).difference(needed)
    empty = rows.with_columns(rows[name].clear(rows.height) for name in missing)
    return needed if same(pl.concat([rows, empty]), served) else list(columns)


def said(error: Exception, *, private: bool) -> str:
    """An error in one line: the first of its own, since that of Polars goes on; its type where it may tell a value."""
    name = type(error).__name__
    return name if private and not isinstance(error, FeaturesError) else ": ".join([name, *str(error).splitlines()[:1]])


def _sample(kept: pl.DataFrame, target: str) -> list[int]:
    """A few rows of different classes, in an order of their own, so that features of neighbours show.

    Those come first whose numbers JSON has.
    """
    finite = pl.all_horizontal(pl.lit(value=True), cs.float().is_finite().fill_null(value=True))
    marks = kept.select(finite.alias("finite"), pl.col(target).is_first_distinct().alias("first"))
    order = marks.with_row_index().sort("finite", "first", descending=True, maintain_order=True)["index"]
    return order.head(SAMPLE_ROWS).reverse().to_list()


def _ends(values: pl.Series) -> list[int | None]:
    """Where the greatest and the least value are."""
    numbers = values.fill_nan(None) if values.dtype.is_float() else values
    return [numbers.arg_max(), numbers.arg_min()]


def _changed(values: pl.Series, column: pl.Series) -> Iterator[pl.Series]:
    """A column with other values: null, the ends of the whole column, and those that no row has, where there are."""
    rows, dtype = len(values), values.dtype
    yield values.clear(rows)
    if can_be_sent(dtype):
        yield from (column.new_from_index(place, rows) for place in _ends(column) if place is not None)
    if dtype.is_numeric():
        yield (values.fill_null(0) + 1).cast(dtype, wrap_numerical=True)
    if dtype.is_integer():
        limits = pl.select(low=dtype.min(), high=dtype.max())  # type: ignore[attr-defined]
        yield from (one.new_from_index(0, rows) for one in limits)
    if dtype.is_float():
        yield from (pl.repeat(far, rows, dtype=dtype, eager=True) for far in (-FAR, FAR))
    if dtype == pl.Boolean:
        yield ~values.fill_null(value=False)
    if dtype == pl.String:
        yield values.fill_null("") + "x"
