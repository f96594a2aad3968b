"""How good a model is on groups of the test rows: those with one value in a column.

Belongs here: counting, and the interval of each group. Not here: whether a group is good enough (that is the gate), and
how the figures are shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mlops_assets.gate.intervals import wilson

MOST_VALUES: Final = 30
_EMPTY: Final = "(empty)"
_TWO_SIDED_95: Final = 0.975


@dataclass(frozen=True)
class SliceFigures:
    """The accuracy on the rows with one value in a column.

    Attributes:
        column: The column.
        value: The value as text; for the rest of a column with many values, how many these are.
        rows: Test rows with it, at least one.
        share: Their share of all test rows.
        accuracy: Share of them predicted rightly.
        lower: Lower end of its two-sided 95 % Wilson interval.
        upper: Upper end.
    """

    column: str
    value: str
    rows: int
    share: float
    accuracy: float
    lower: float
    upper: float

    def below(self, accuracy: float) -> bool:
        """Whether the whole interval lies below an accuracy, such as that of all rows."""
        return self.upper < accuracy


def slice_figures(
    label: NDArray[Any], predicted: NDArray[Any], slices: Mapping[str, NDArray[Any]]
) -> list[SliceFigures]:
    """Measure the accuracy on every group of rows.

    Values are taken as text. A column of numbers that hardly repeat therefore falls into its 30 most frequent ones and
    a large rest: put such numbers into ranges first.

    Args:
        label: True classes, shape (rows,).
        predicted: Predicted classes, shape (rows,).
        slices: Column to the value of each row, shape (rows,).

    Returns:
        Per column its values, the most frequent first; beyond 30 the rest together, last.
    """
    right = label == predicted
    return [one for column, values in slices.items() if len(values) for one in _of_column(column, values, right)]


def _of_column(column: str, values: NDArray[Any], right: NDArray[np.bool_]) -> list[SliceFigures]:
    numbers: dict[str, int] = {}
    # A dictionary, since NumPy would sort a text per row, and make room in each for the longest.
    which = np.fromiter((numbers.setdefault(str(value) or _EMPTY, len(numbers)) for value in values.tolist()), np.int64)
    names = [*numbers]
    counts = np.bincount(which)
    order = sorted(range(len(names)), key=lambda number: (-counts[number], names[number]))
    shown, rest = order[:MOST_VALUES], order[MOST_VALUES:]
    place = np.full(len(names), len(shown))
    place[shown] = np.arange(len(shown))
    texts = [names[number] for number in shown] + ([f"other ({len(rest):,} values)"] if rest else [])
    rows = np.bincount(place[which])
    accuracy = wilson(np.bincount(place[which[right]], minlength=len(rows)), rows, _TWO_SIDED_95)
    columns = (rows, rows / len(values), *accuracy)
    return [SliceFigures(column, *one) for one in zip(texts, *(each.tolist() for each in columns), strict=True)]
