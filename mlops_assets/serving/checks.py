"""Raw rows of a request: from JSON or tensors to a typed table, refused by field and row.

Belongs here: types, nulls and the checks of the pipeline's schema for a column, ready once for each version. Not here:
what pandera's own checks say (`verdicts.py`), and what the rows are for (`slot.py`). Only a schema with other checks
loads pandera. Checks of the schema for a whole table are of data sets, and not made here.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import polars as pl

from mlops_assets.data.readers import cast_text
from mlops_assets.errors import MlopsError
from mlops_assets.serving.contract import RawContract
from mlops_assets.serving.verdicts import Verdict

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pandera import polars as pa
    from pandera.api.polars.components import Column
    from pandera.polars import DataFrameSchema

_SHOWN: Final = 60  # characters of a value in a sentence
_WITHHELD: Final = "a value"


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
        left_out: Columns whose values no sentence may have, since sentences are logged.
    """

    def __init__(
        self, contract: RawContract, schema: Callable[[], DataFrameSchema], left_out: Collection[str] = ()
    ) -> None:
        self._left_out = frozenset(left_out)
        self._types = {one.name: one.polars_type for one in contract.inputs}
        self._ignored = {contract.key, contract.target}
        self._required = [one.name for one in contract.inputs if one.required]
        self._needed = [one.name for one in contract.inputs if one.required and not one.nullable]
        self._full = [one.name for one in contract.inputs if not one.nullable]
        self._verdicts = [Verdict(one, check) for one in contract.inputs for check in one.checks]
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
                raise InvalidInput(
                    f"row {number} is {_WITHHELD if self._left_out else shown(row)}, not an object of values by column "
                    "name",
                    row=number,
                )
            given.update(dict.fromkeys(row))
        if given.keys() <= self._ignored:
            given = dict.fromkeys(self._required)  # a row of nothing is one of nulls
        return self.from_columns({name: [row.get(name) for row in rows] for name in given})

    def from_columns(self, columns: Mapping[str, Any]) -> pl.DataFrame:
        """Columns of equal length, as lists of what JSON has, as arrays, or as series; in the contract's order.

        Raises:
            InvalidInput: As `from_records`.
        """
        for name in columns:
            if name not in self._types and name not in self._ignored:
                known = shown(list(self._types), 500)
                raise InvalidInput(f"there is no column {name!r}; the columns are {known}", field=str(name))
        for name in self._needed:
            if name not in columns:
                raise InvalidInput(f"column '{name}' is missing", field=name)
        made = {
            name: _typed(name, columns[name], dtype, self._shown(name))
            for name, dtype in self._types.items()
            if name in columns
        }
        lengths = {len(one) for one in made.values()}
        if len(lengths) > 1:
            raise InvalidInput("the columns differ in length: each must have one value for each row")
        rows = lengths.pop() if lengths else 0
        if not rows:
            raise InvalidInput("there are no rows; send at least one")
        for name in self._required:
            if name not in made:
                made[name] = pl.repeat(None, rows, dtype=self._types[name], eager=True).alias(name)
        frame = pl.DataFrame([made[name] for name in self._types if name in made])
        self.require(frame)
        return frame

    def from_frame(self, frame: pl.DataFrame) -> pl.DataFrame:
        """A table as it was read from a file, with columns that no model needs left out; text is cast.

        Raises:
            InvalidInput: As `from_records`.
        """
        known = [name for name in self._types if name in frame.columns]
        return self.from_columns({name: frame[name] for name in known})

    def require(self, frame: pl.DataFrame) -> None:
        """Refuse typed rows that the schema would refuse.

        Raises:
            InvalidInput: Names the first of them.
        """
        for name in self._full:
            if name in frame.columns:
                _require_full(frame[name])
        for one in self._verdicts:
            if one.column in frame.columns and (row := one.refuses(frame[one.column])) is not None:
                raise _refused(one, row, self._shown(one.column)(frame[one.column][row]))
        self._require_own(frame)

    def require_arrays(self, columns: Mapping[str, NDArray[Any]]) -> None:
        """Refuse columns of finite numbers without nulls that the schema would refuse.

        Raises:
            InvalidInput: Names the first value of them.
        """
        for one in self._verdicts:
            if (row := one.refuses_array(columns[one.column])) is not None:
                raise _refused(one, row, self._shown(one.column)(columns[one.column][row].item()))
        if self._own is not None:
            self._require_own(pl.DataFrame(dict(columns)))

    def _require_own(self, frame: pl.DataFrame) -> None:
        if self._own is None:
            return
        from mlops_assets.data.validation import validate

        for failure in validate(frame, self._own).failures:
            private = failure.column in self._left_out
            if not failure.rows:
                said = f"column '{failure.column}' is refused by {failure.check}" if private else failure.message
                raise InvalidInput(said, field=failure.column or "")
            row, value = failure.rows[0] - 1, _WITHHELD if private else failure.values[0]
            raise InvalidInput(
                f"row {row}, column '{failure.column}': {value} is refused by {failure.check}",
                field=failure.column or "",
                row=row,
            )

    def _shown(self, name: str) -> Callable[[object], str]:
        """How a sentence tells a value of a column."""
        return _withhold if name in self._left_out else shown


class Declared(NamedTuple):
    """What a schema says of a column."""

    nullable: bool
    checks: list[pa.Check]


def declared(schema: DataFrameSchema, frame: pl.DataFrame) -> dict[str, Declared]:
    """What a schema says of each column of a table; all that match a name count, one after the other."""
    from mlops_assets.data.validation import matching

    plain = {name for name, column in schema.columns.items() if not column.regex}
    found: dict[str, list[Column]] = {}
    for column in schema.columns.values():
        for name in matching(frame, column, plain):
            found.setdefault(name, []).append(column)
    return {
        name: Declared(all(one.nullable for one in columns), [check for one in columns for check in one.checks])
        for name, columns in found.items()
    }


def _own_checks(contract: RawContract, schema: Callable[[], DataFrameSchema]) -> DataFrameSchema | None:
    """The schema of those columns that have checks which are not built in, with these alone."""
    wanted = [one for one in contract.inputs if one.custom]
    if not wanted:
        return None
    from pandera.polars import Column, DataFrameSchema

    told = declared(schema(), pl.DataFrame(schema={one.name: one.polars_type for one in contract.inputs}))
    return DataFrameSchema(
        {
            one.name: Column(
                checks=[told[one.name].checks[place] for place in one.custom_places], nullable=True, required=False
            )
            for one in wanted
        }
    )


def _require_full(values: pl.Series) -> None:
    empty = values.is_null() if values.null_count() else None
    if empty is None and values.dtype.is_float() and values.is_nan().any():
        empty = values.is_nan()
    if empty is not None:
        row = int(empty.arg_true()[0])
        raise InvalidInput(f"row {row}, column '{values.name}': a value is needed", field=values.name, row=row)


def _refused(verdict: Verdict, row: int, value: str) -> InvalidInput:
    told = shown({name: one for name, one in verdict.statistics.items() if one is not None}, 200)
    return InvalidInput(
        f"row {row}, column '{verdict.column}': {value} is refused by {verdict.name} ({told[1:-1]})",
        field=verdict.column,
        row=row,
    )


def _typed(name: str, values: Any, dtype: Any, show: Callable[[object], str]) -> pl.Series:
    """A column in its type.

    Raises:
        InvalidInput: A value is not one of that type.
    """
    if isinstance(values, np.ndarray):
        values = _flat(name, values)
    made = values.alias(name) if isinstance(values, pl.Series) else _series(name, values, dtype, show)
    if made.dtype == dtype:
        return made
    typed = _cast(made, dtype)
    wrong = typed.is_null() & made.is_not_null()
    if wrong.any():
        row = int(wrong.arg_true()[0])
        raise _not_of(name, row, show(made[row]), dtype)
    return typed


def _cast(made: pl.Series, dtype: Any) -> pl.Series:
    """To another type, with null for each value that does not stand for one of it."""
    if isinstance(made.dtype, pl.Categorical | pl.Enum):
        made = made.cast(pl.String)
    if made.dtype == pl.String:
        return cast_text(made, dtype)
    alike = made.dtype.is_numeric() and dtype.is_numeric()
    if not alike and made.dtype.base_type() != dtype.base_type():
        return pl.repeat(None, len(made), dtype=dtype, eager=True).alias(made.name)
    if dtype.is_integer() and made.dtype.is_float():
        made = made.set(made != made.floor(), None)
    return made.cast(dtype, strict=False)


def _series(name: str, values: Any, dtype: Any, show: Callable[[object], str]) -> pl.Series:
    """Values as JSON has them; of one kind, so that `true` is no number and a number no text."""
    if not isinstance(values, Sequence) or isinstance(values, str | bytes):
        raise InvalidInput(f"column '{name}' is {show(values)}, not a list of values", field=name)
    native, kind, made_of = _ways(dtype)
    if set(map(type, values)) <= {kind, type(None)}:
        try:
            return pl.Series(name, values, native)
        except (TypeError, ValueError, OverflowError, pl.exceptions.PolarsError):
            pass  # below, where the row is known
    made = []
    for row, value in enumerate(values):
        try:
            made.append(None if value is None else made_of(value))
        except (TypeError, ValueError, OverflowError):
            raise _not_of(name, row, show(value), dtype) from None
    return pl.Series(name, made, native)


def _ways(dtype: Any) -> tuple[Any, type, Callable[[Any], Any]]:
    """For a column's type: that of the series to build, Python's own, and what makes one of a value or raises."""
    if dtype.is_integer():
        return dtype, int, partial(_whole, *_limits(dtype))
    if dtype.is_float():
        return dtype, float, _real
    return (dtype, bool, _truth) if dtype == pl.Boolean else (pl.String, str, _text)


def _limits(dtype: Any) -> tuple[int, int]:
    """The least and the greatest integer of a type."""
    name = str(dtype)
    bits = int(name.lstrip("UInt"))
    return (0, 2**bits - 1) if name.startswith("U") else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def _whole(least: int, greatest: int, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= greatest:
        raise TypeError
    whole = int(value)
    if whole != value or not least <= whole <= greatest:
        raise ValueError
    return whole


def _real(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError
    return float(value)


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    value.encode()  # half a pair of surrogates is no text
    return value


def _flat(name: str, values: np.ndarray[Any, Any]) -> pl.Series:
    """A tensor of shape (rows,) or (rows, 1) as a column."""
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1:
        raise InvalidInput(
            f"'{name}' has the shape {list(values.shape)}; a column's is [rows] or [rows, 1]", field=name
        )
    if values.dtype.kind in "biufU":
        return pl.Series(name, values)
    if values.dtype.kind not in "OS":
        raise InvalidInput(f"'{name}' is a tensor of {values.dtype}; send numbers, booleans or texts", field=name)
    try:
        texts = [one.decode() if isinstance(one, bytes) else one for one in values.tolist()]
        return pl.Series(name, texts, pl.String)
    except (UnicodeError, TypeError):
        raise InvalidInput(f"'{name}' has a value that is no text in UTF-8", field=name) from None


def _not_of(name: str, row: int, value: str, dtype: Any) -> InvalidInput:
    return InvalidInput(f"row {row}, column '{name}': {value} is not {dtype}", field=name, row=row)


def _withhold(value: object) -> str:  # noqa: ARG001  in the place of `shown`
    return _WITHHELD


def shown(value: object, length: int = _SHOWN) -> str:
    """A value in a sentence; one that is deep or long is cut before it is written out."""
    text = _REPR.repr(value)
    return text if len(text) <= length else f"{text[: length - 3]}..."


_REPR: Final = reprlib.Repr()
_REPR.maxlevel = 3
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 200
_REPR.maxlist = _REPR.maxdict = 20
