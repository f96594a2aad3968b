"""Raw rows of a request: from JSON or tensors to a typed table, refused by field and row.

Belongs here: types, nulls and the checks of the pipeline's schema, compiled once for each version. Not here: what the
rows are for (`slot.py`). pandera itself takes 3 ms for a row and 0.7 s to load: its built-in checks are made by Polars
here, and only a schema with checks of its own loads pandera.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import polars as pl

from mlops_assets.data.readers import cast_text
from mlops_assets.errors import MlopsError
from mlops_assets.serving.contract import Check, RawContract

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pandera.polars import DataFrameSchema

FEW_ROWS: Final = 32
"""Up to so many rows, comparing values one by one is quicker than asking Polars."""

_SHOWN: Final = 60  # characters of a value in a sentence


class InvalidInput(MlopsError):
    """Rows that a version does not answer.

    Attributes:
        field: The column or tensor that is at fault; empty where it is the whole.
        row: Its row, from 0, or None.
    """

    def __init__(self, sentence: str, *, field: str = "", row: int | None = None) -> None:
        super().__init__(sentence)
        self.field, self.row = field, row


class Checks:
    """The raw columns of a version, ready to be asked.

    Args:
        contract: What raw rows look like.
        schema: The pipeline's schema; called only where it has checks that are not built in.
    """

    def __init__(self, contract: RawContract, schema: Callable[[], DataFrameSchema]) -> None:
        self._inputs = {one.name: one for one in contract.inputs}
        self._types = {one.name: one.polars_type for one in contract.inputs}
        self._ignored = {contract.key, contract.target}
        self._needed = [one.name for one in contract.inputs if one.required and not one.nullable]
        self._full = [one.name for one in contract.inputs if not one.nullable]
        self._checks = [(one.name, check) for one in contract.inputs for check in one.checks]
        self._own = _own_checks(contract, schema)

    def from_records(self, rows: Sequence[Mapping[str, Any]]) -> pl.DataFrame:
        """Rows as JSON has them, by column name.

        Raises:
            InvalidInput: A column is missing, unknown or of another type, or a value is refused.
        """
        if not rows:
            raise InvalidInput("there are no rows; send at least one")
        given: dict[str, None] = {}
        for number, row in enumerate(rows):
            if not isinstance(row, Mapping):
                raise InvalidInput(f"row {number} is {_show(row)}, not an object of values by column name", row=number)
            given.update(dict.fromkeys(row))
        return self.from_columns({str(name): [row.get(name) for row in rows] for name in given})

    def from_columns(self, columns: Mapping[str, Any]) -> pl.DataFrame:
        """Columns of equal length, as lists of what JSON has, as arrays, or as series.

        Raises:
            InvalidInput: As `from_records`.
        """
        made = []
        for name, values in columns.items():
            if name in self._ignored:
                continue
            if name not in self._inputs:
                known = ", ".join(self._inputs)
                raise InvalidInput(f"there is no column '{name}'; the columns are {known}", field=name)
            made.append(_typed(name, values, self._types[name]))
        lengths = {len(one) for one in made}
        if len(lengths) > 1:
            raise InvalidInput("the columns differ in length: each must have one value for each row")
        if not made or not len(made[0]):
            raise InvalidInput("there are no rows; send at least one")
        frame = pl.DataFrame(made)
        for name in self._needed:
            if name not in frame.columns:
                raise InvalidInput(f"column '{name}' is missing", field=name)
        absent = [one for one in self._inputs.values() if one.required and one.name not in frame.columns]
        if absent:
            frame = frame.with_columns(pl.lit(None, self._types[one.name]).alias(one.name) for one in absent)
        self.require(frame)
        return frame

    def from_frame(self, frame: pl.DataFrame) -> pl.DataFrame:
        """A table as it was read from a file, with columns that no model needs left out; text is cast.

        Raises:
            InvalidInput: As `from_records`.
        """
        known = [name for name in self._inputs if name in frame.columns]
        return self.from_columns({name: frame[name] for name in known})

    def require(self, frame: pl.DataFrame) -> None:
        """Refuse typed rows that the schema would refuse.

        Raises:
            InvalidInput: Names the first of them.
        """
        for name in self._full:
            if name in frame.columns:
                self._require_full(frame[name])
        few = frame.height <= FEW_ROWS
        for name, check in self._checks:
            if name in frame.columns:
                _require(frame[name], check, few=few)
        if self._own is not None:
            self._require_own(frame, self._own)

    def require_arrays(self, columns: Mapping[str, NDArray[Any]]) -> None:
        """Refuse columns of numbers without nulls that the schema would refuse.

        Raises:
            InvalidInput: Names the first value of them.
        """
        for name, check in self._checks:
            passes = _COMPARISONS[check.name](columns[name], check.statistics)
            if not passes.all():
                row = int(passes.argmin())
                raise _refused(name, check, row, columns[name][row])
        if self._own is not None:
            self._require_own(pl.DataFrame(dict(columns)), self._own)

    def _require_full(self, values: pl.Series) -> None:
        empty = values.is_null() if values.null_count() else None
        if empty is None and values.dtype.is_float() and values.is_nan().any():
            empty = values.is_nan()
        if empty is not None:
            row = int(empty.arg_true()[0])
            raise InvalidInput(f"row {row}, column '{values.name}': a value is needed", field=values.name, row=row)

    def _require_own(self, frame: pl.DataFrame, schema: DataFrameSchema) -> None:
        from mlops_assets.data.validation import validate

        for failure in validate(frame, schema).failures:
            row = failure.rows[0] - 1 if failure.rows else None
            raise InvalidInput(failure.message, field=failure.column or "", row=row)


def _own_checks(contract: RawContract, schema: Callable[[], DataFrameSchema]) -> DataFrameSchema | None:
    """The schema of those columns that have checks which are not built in."""
    wanted = {one.name: one.polars_type for one in contract.inputs if one.custom}
    if not wanted:
        return None
    from pandera.polars import Column, DataFrameSchema

    from mlops_assets.data.validation import matching

    declared, frame = schema().columns, pl.DataFrame(schema=wanted)
    plain = {name for name, column in declared.items() if not column.regex}
    return DataFrameSchema(
        {
            name: Column(checks=column.checks, nullable=True, required=False)
            for column in declared.values()
            for name in matching(frame, column, plain)
        }
    )


def _require(values: pl.Series, check: Check, *, few: bool) -> None:
    """Refuse a column by one check; null passes, since nulls are judged apart.

    A comparison of Python's costs 0.1 us, one of Polars as much as 30 us and then next to nothing for each row.
    """
    compare = _COMPARISONS.get(check.name)
    if compare is None:
        passes = pl.select(_TEXTS[check.name](pl.lit(values).cast(pl.String), check.statistics)).to_series()
    elif few:
        for row, value in enumerate(values.to_list()):
            if value is not None and not compare(value, check.statistics):
                raise _refused(values.name, check, row, value)
        return
    else:
        passes = pl.select(compare(pl.lit(values), check.statistics)).to_series()
    if not passes.all():
        row = int((~passes).arg_true()[0])
        raise _refused(values.name, check, row, values[row])


def _refused(name: str, check: Check, row: int, value: Any) -> InvalidInput:
    told = ", ".join(f"{key} {one}" for key, one in check.statistics.items() if one is not None)
    shown = value.item() if isinstance(value, np.generic) else value
    return InvalidInput(
        f"row {row}, column '{name}': {_show(shown)} is refused by {check.name} ({told})", field=name, row=row
    )


def _typed(name: str, values: Any, dtype: Any) -> pl.Series:
    """A column in its type.

    Raises:
        InvalidInput: A value is not one of that type.
    """
    if isinstance(values, np.ndarray):
        values = _flat(name, values)
    made = values.alias(name) if isinstance(values, pl.Series) else _series(name, values, dtype)
    if made.dtype == dtype:
        return made
    typed = _cast(made, dtype)
    wrong = typed.is_null() & made.is_not_null()
    if wrong.any():
        row = int(wrong.arg_true()[0])
        raise _not_of(name, row, made[row], dtype)
    return typed


def _cast(made: pl.Series, dtype: Any) -> pl.Series:
    """To another type, with null for each value that does not stand for one of it."""
    if made.dtype == pl.String:
        return cast_text(made, dtype)
    numbers = made.dtype.is_numeric() and dtype.is_numeric()
    typed = made.cast(dtype, strict=False) if numbers else pl.Series(made.name, [None] * len(made), dtype)
    if numbers and dtype.is_integer() and made.dtype.is_float():
        typed = typed.set(made != made.floor(), None)
    return typed


def _series(name: str, values: Any, dtype: Any) -> pl.Series:
    """Values as JSON has them; of one kind, so that `true` is no number and a number no text."""
    if not isinstance(values, Sequence) or isinstance(values, str | bytes):
        raise InvalidInput(f"column '{name}' is {_show(values)}, not a list of values", field=name)
    allowed: tuple[type, ...] = (str,)
    if dtype == pl.Boolean:
        allowed = (bool,)
    elif dtype.is_numeric():
        allowed = (int, float)
    for row, value in enumerate(values):
        if value is not None and (not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed)):
            raise _not_of(name, row, value, dtype)
    try:
        return pl.Series(name, values, dtype if dtype.is_float() or dtype == pl.Boolean else None, strict=False)
    except (pl.exceptions.PolarsError, OverflowError, TypeError):
        raise InvalidInput(f"column '{name}' has a value that is not {dtype}", field=name) from None


def _flat(name: str, values: np.ndarray[Any, Any]) -> pl.Series:
    """A tensor of shape (rows,) or (rows, 1) as a column."""
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1:
        raise InvalidInput(
            f"'{name}' has the shape {list(values.shape)}; a column's is [rows] or [rows, 1]", field=name
        )
    if values.dtype != object:
        return pl.Series(name, values)
    try:
        texts = [one.decode() if isinstance(one, bytes) else one for one in values]
        return pl.Series(name, texts, pl.String)
    except (UnicodeDecodeError, TypeError):
        raise InvalidInput(f"'{name}' has a text that is not UTF-8", field=name) from None


def _not_of(name: str, row: int, value: object, dtype: Any) -> InvalidInput:
    return InvalidInput(f"row {row}, column '{name}': {_show(value)} is not {dtype}", field=name, row=row)


def _in_range(value: Any, told: Mapping[str, Any]) -> Any:
    low = value >= told["min_value"] if told["include_min"] else value > told["min_value"]
    return low & (value <= told["max_value"] if told["include_max"] else value < told["max_value"])


def _is_in(value: Any, known: Sequence[Any]) -> Any:
    if isinstance(value, pl.Expr):
        return value.is_in(known)
    return np.isin(value, known) if isinstance(value, np.ndarray) else value in known


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
_TEXTS: Final[Mapping[str, Callable[[pl.Expr, Mapping[str, Any]], pl.Expr]]] = {
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


def _show(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."
