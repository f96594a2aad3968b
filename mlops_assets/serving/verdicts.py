"""What pandera's built-in checks say of values, without pandera, which takes 3 ms for a row and 0.7 s to load.

Belongs here: each check's verdict on a column, the same as pandera's: in Python for a few values, in NumPy for arrays,
and in Polars. Not here: types and nulls, and what is said of a value that is refused (`checks.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import polars as pl

from mlops_assets.serving.contract import Check, Input

if TYPE_CHECKING:
    from numpy.typing import NDArray

FEW_ROWS: Final = 32
"""Up to so many rows, comparing values one by one is quicker than asking Polars."""


class Verdict:
    """A check of a column, ready to be asked.

    Attributes:
        column: Name of the column.
        name: Name of the check.
        statistics: What it compares with.
    """

    def __init__(self, column: Input, check: Check) -> None:
        self.column, self.name, self.statistics = column.name, check.name, check.statistics
        self._compare = _COMPARISONS.get(check.name)
        self._few = None if self._compare is None else _of_kind(check.statistics, _KINDS.get(column.dtype))

    def refuses(self, values: pl.Series) -> int | None:
        """The first row that is refused, or None; null passes, since nulls are judged apart.

        A comparison of Python's costs 0.1 us, one of Polars as much as 30 us and then next to nothing for each row.
        """
        if len(values) <= FEW_ROWS and self._few is not None and self._compare is not None:
            given = values.to_list()
            if not any(isinstance(value, float) and math.isnan(value) for value in given):  # Polars has it greatest
                rows = (row for row, value in enumerate(given) if value is not None)
                return next((row for row in rows if not self._compare(given[row], self._few)), None)
        compare = self._compare or _TEXTS[self.name]
        passes = pl.select(compare(pl.lit(values), self.statistics)).to_series()
        return None if passes.all() else int((~passes).arg_true()[0])

    def refuses_array(self, values: NDArray[Any]) -> int | None:
        """The first of some finite numbers that is refused, or None."""
        with np.errstate(over="ignore"):  # of a limit beyond Float32, which then is infinite, as it is to Polars
            passes = _COMPARISONS[self.name](values, self.statistics)
        return None if passes.all() else int(passes.argmin())


def _of_kind(statistics: Mapping[str, Any], kinds: tuple[type, ...] | None) -> Mapping[str, Any] | None:
    """What a check compares with, as values of a column's type; None where Python and Polars may compare otherwise.

    They do for the order of an Enum, numbers that are rounded to Float32, and integers beside fractions.
    """
    if kinds is None:
        return None
    told: dict[str, Any] = {}
    for name, value in statistics.items():
        if name.startswith("include_"):
            told[name] = value
            continue
        values = value if isinstance(value, list) else [value]
        if not all(type(one) in kinds for one in values):
            return None
        alike = [float(one) for one in values] if float in kinds else values
        told[name] = frozenset(alike) if isinstance(value, list) else alike[0]
    return told


def _in_range(value: Any, told: Mapping[str, Any]) -> Any:
    low = value >= told["min_value"] if told["include_min"] else value > told["min_value"]
    return low & (value <= told["max_value"] if told["include_max"] else value < told["max_value"])


def _is_in(value: Any, known: Any) -> Any:
    if isinstance(value, pl.Expr):
        return value.is_in(known)
    return np.isin(value, known) if isinstance(value, np.ndarray) else value in known


_KINDS: Final[Mapping[str, tuple[type, ...]]] = {
    **dict.fromkeys(("Int8", "Int16", "Int32", "Int64", "UInt8", "UInt16", "UInt32", "UInt64"), (int,)),
    "Float64": (int, float),
    "String": (str,),
}
"""Types of which Python compares values as Polars does."""

# As pandera's own functions for Polars have them; of a value of Python's, an array, or an expression.
_COMPARISONS: Final[Mapping[str, Callable[[Any, Mapping[str, Any]], Any]]] = {
    "equal_to": lambda value, told: value == told["value"],
    "not_equal_to": lambda value, told: value != told["value"],
    "greater_than": lambda value, told: value > told["min_value"],
    "greater_than_or_equal_to": lambda value, told: value >= told["min_value"],
    "less_than": lambda value, told: value < told["max_value"],
    "less_than_or_equal_to": lambda value, told: value <= told["max_value"],
    "in_range": _in_range,
    "isin": lambda value, told: _is_in(value, told["allowed_values"]),
    "notin": lambda value, told: _is_in(value, told["forbidden_values"]) == False,  # noqa: E712  of an array too
}
_TEXTS: Final[Mapping[str, Callable[[Any, Mapping[str, Any]], Any]]] = {
    "str_startswith": lambda text, told: text.str.starts_with(told["string"]),
    "str_endswith": lambda text, told: text.str.ends_with(told["string"]),
    "str_matches": lambda text, told: text.str.contains("^" + told["pattern"].removeprefix("^")),
    "str_contains": lambda text, told: text.str.contains(told["pattern"]),
    "str_length": lambda text, told: _length(text.str.len_chars(), told),
}


def _length(length: pl.Expr, told: Mapping[str, Any]) -> pl.Expr:
    low, high, exact = told.get("min_value"), told.get("max_value"), told.get("exact_value")
    if exact is not None:
        low = high = exact
    return length.is_between(low or 0, 2**32 if high is None else high)
