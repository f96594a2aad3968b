"""From a table to what a pipeline that learns from it needs to know.

Belongs here: looking at the columns, and judging what each can be. Does not: the source that is written from it
(`sources.py`), nor how the table gets into Oxen (`new.py`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

import polars as pl

from mlops_assets.data.readers import PolarsType, cast_text
from mlops_assets.data.splits import PARTS, assign
from mlops_assets.errors import MlopsError

MOST_CLASSES: Final = 50
MOST_CATEGORIES: Final = 50
ROWS_PER_CATEGORY: Final = 10
"""A text column with more values than a tenth of the rows says too little about any one of them."""

LONGEST_CATEGORY: Final = 60
SALTS: Final = 100
VALIDATION: Final = 0.15
SMALL_TABLE: Final = 5000
"""Rows below which three tenths are kept for testing instead of two, so that the gate has something to decide on."""

MISSING: Final = ("?", "-", ".", "NA", "N/A", "na", "n/a", "NULL", "null", "None", "none", "NaN", "nan")
"""What people write for a missing number."""

RESERVED: Final = "split"
"""The platform adds a column of this name to the features."""


class DeriveError(MlopsError):
    """A table from which no pipeline can be written."""


@dataclass(frozen=True)
class Column:
    """One column of the table.

    Attributes:
        name: Its name.
        dtype: Its type, which the schema declares; None leaves it undeclared.
        nullable: Whether values are missing.
        role: What becomes of it.
        values: Its values, when it is a category.
        fill: What stands for its missing values, when it is a number that has some.
        note: Why it is left out.
    """

    name: str
    dtype: PolarsType | None
    nullable: bool = False
    role: Literal["key", "target", "number", "filled", "category", "left out"] = "left out"
    values: tuple[str, ...] = ()
    fill: float = 0.0
    note: str = ""


@dataclass(frozen=True)
class Derived:
    """What a table says about the pipeline that learns from it."""

    rows: int
    key: str
    target: str
    classes: list[str]
    commonest: float
    """Share of the commonest class."""
    salt: str
    test: float
    columns: list[Column]

    def of(self, role: str) -> list[Column]:
        """The columns of a role."""
        return [column for column in self.columns if column.role == role]


def derive(frame: pl.DataFrame, *, name: str, key: str, target: str, text: bool) -> Derived:
    """Look at a table.

    Args:
        frame: As `read_table` gives it without types.
        name: The pipeline's name, which the salt of the split begins with.
        key: Column that identifies a row.
        target: Column with the class.
        text: Whether it comes from text, so that the schema decides on the types.

    Raises:
        DeriveError: Key or target cannot be what they are said to be, or no column can become a number.
    """
    for role, column in (("key", key), ("target", target)):
        if column not in frame.columns:
            known = ", ".join(frame.columns[:30])
            raise DeriveError(f"the table has no column '{column}' to be the {role}; its columns are {known}")
    if key == target:
        raise DeriveError(f"key and target must be two columns (both are '{key}')")
    keys, labels = _keys(frame[key], text=text), _labels(frame[target])
    counts = labels.alias("class").value_counts(sort=True, name="rows")
    classes = sorted(counts["class"].to_list())
    test = 0.3 if frame.height < SMALL_TABLE else 0.2
    salt, parts = first_split(name, keys, labels, test)
    columns = [Column(key, keys.dtype, role="key"), Column(target, frame[target].dtype, role="target")]
    taken = {key, target, RESERVED}
    for values in frame.drop(key, target):
        columns.append(_column(values, _type(values) if text else values.dtype, parts == "train", taken))
        taken.update(_feature_names(columns[-1]))
    columns.sort(key=lambda column: frame.get_column_index(column.name))
    derived = Derived(
        rows=frame.height,
        key=key,
        target=target,
        classes=classes,
        commonest=counts["rows"][0] / frame.height,
        salt=salt,
        test=test,
        columns=columns,
    )
    if not (derived.of("number") or derived.of("filled") or derived.of("category")):
        notes = "; ".join(f"'{column.name}' is {column.note}" for column in derived.of("left out")[:5])
        raise DeriveError(f"no column beside key and target can become a number: {notes or 'there is none'}")
    return derived


def _keys(values: pl.Series, *, text: bool) -> pl.Series:
    name = values.name
    if values.dtype == pl.String:
        whole = cast_text(values, pl.Int64)
        if text and whole.null_count() == values.null_count() and whole.n_unique() == values.n_unique():
            values = whole
    elif not (values.dtype.is_integer() or values.dtype == pl.Date):
        raise DeriveError(f"column '{name}' is {values.dtype}: a key must be whole numbers, text or dates")
    if values.has_nulls():
        row = int(values.is_null().arg_max() or 0) + 1
        raise DeriveError(f"column '{name}' cannot be the key: row {row} has no value; leave --key out to add one")
    if values.is_duplicated().any():
        row = int(values.is_duplicated().arg_max() or 0) + 1
        raise DeriveError(
            f"column '{name}' cannot be the key: {values[row - 1]!r} (row {row}) is there more than once; "
            "leave --key out to add one"
        )
    return values


def _labels(values: pl.Series) -> pl.Series:
    name, missing = values.name, values.null_count()
    if missing:
        row = int(values.is_null().arg_max() or 0) + 1
        raise DeriveError(
            f"column '{name}' has no class in {missing} rows (the first is row {row}); fill or remove them"
        )
    labels = values.cast(pl.String)
    count = labels.n_unique()
    if count < 2:
        raise DeriveError(f"column '{name}' has {count} class(es) in {len(values)} rows; a target needs two or more")
    if count > MOST_CLASSES:
        raise DeriveError(
            f"column '{name}' has {count} different values; a target is a class, of at most {MOST_CLASSES}"
        )
    return labels


def first_split(name: str, keys: pl.Series, labels: pl.Series, test: float) -> tuple[str, pl.Series]:
    """The first salt under which each class is in each part, and the parts.

    Raises:
        DeriveError: There is none, because a class has too few rows.
    """
    counts = labels.alias("class").value_counts(sort=True, name="rows")
    for number in range(1, SALTS + 1):
        salt = f"{name}-{number}"
        parts = assign(keys, salt=salt, test=test, validation=VALIDATION)
        seen = pl.DataFrame({"label": labels, "part": parts}).n_unique()
        if seen == counts.height * len(PARTS):
            return salt, parts
    rarest, rows = counts.row(-1)
    raise DeriveError(
        f"class '{rarest}' of column '{labels.name}' has {rows} of {len(labels)} rows, too few to train, validate and "
        "test on; add rows of it, or leave the class out"
    )


def _column(values: pl.Series, dtype: pl.DataType, train: pl.Series, taken: set[str]) -> Column:
    name = values.name
    if not name or (name.startswith("^") and name.endswith("$")):
        return Column(name, None, note="without a name that can be used")
    if values.null_count() == len(values):
        return Column(name, dtype if dtype == pl.String else None, nullable=True, note="empty")
    typed = cast_text(values, dtype) if values.dtype != dtype else values
    nullable = typed.has_nulls() or (dtype.is_float() and bool(typed.is_nan().any()))
    numbers = _numbers(typed)
    if numbers is None:
        column = _category(typed, nullable=nullable)
    else:
        column = _number(typed, numbers, train, nullable=nullable)
    if column.role != "left out" and taken.intersection(_feature_names(column)):
        return Column(name, dtype, nullable=nullable, note="named like another column of the features")
    return column


def _type(values: pl.Series) -> pl.DataType:
    """The type that a schema should ask for; of text, a number or a time where every value is one."""
    if values.dtype == pl.String and values.null_count() < len(values):
        for dtype in (pl.Int64(), pl.Float64(), pl.Date(), pl.Datetime("us")):
            if cast_text(values, dtype).null_count() == values.null_count():
                return dtype
    return values.dtype


def _numbers(values: pl.Series) -> pl.Series | None:
    """The values as floats, null where missing or not finite; None when they are no numbers."""
    if values.dtype == pl.String:
        marked = values.is_in(MISSING)
        numbers = values.cast(pl.Float64, strict=False)
        if numbers.null_count() == len(values) or not (numbers.is_not_null() | marked | values.is_null()).all():
            return None
    elif values.dtype.is_numeric() or values.dtype == pl.Boolean:
        numbers = values.cast(pl.Float64)
    else:
        return None
    return numbers.set(~numbers.is_finite().fill_null(value=True), None)


def _number(values: pl.Series, numbers: pl.Series, train: pl.Series, *, nullable: bool) -> Column:
    name, dtype, known = values.name, values.dtype, numbers.drop_nulls()
    if known.n_unique() <= 1:
        note = f"always {known[0]:g}" if len(known) else "without any finite number"
        return Column(name, dtype, nullable=nullable, note=note)
    if dtype.is_integer() and not nullable and values.n_unique() == len(values):
        lowest, highest = known.min(), known.max()
        if isinstance(lowest, float) and isinstance(highest, float) and highest - lowest + 1 == len(values):
            return Column(name, dtype, note="a running number")
    if not numbers.has_nulls() and dtype != pl.String:
        return Column(name, dtype, role="number")
    median = numbers.filter(train).median()
    fill = float(f"{median:.6g}") if isinstance(median, float) and math.isfinite(median) else 0.0
    return Column(name, dtype, nullable=nullable, role="filled", fill=fill)


def _category(values: pl.Series, *, nullable: bool) -> Column:
    name, dtype = values.name, values.dtype
    if dtype.base_type() not in {pl.String, pl.Categorical, pl.Enum}:
        declared = dtype if dtype.base_type() in {pl.Date, pl.Datetime, pl.Time, pl.Duration} else None
        return Column(name, declared, nullable=nullable, note=f"of type {dtype}")
    text = values.cast(pl.String).drop_nulls().unique().sort()
    known = dtype if dtype == pl.String else None
    if len(text) == 1:
        return Column(name, known, nullable=nullable, note=f"always {text[0]!r:.60}")
    few = len(text) <= min(MOST_CATEGORIES, max(2, len(values) // ROWS_PER_CATEGORY))
    if not few or (text.str.len_chars() > LONGEST_CATEGORY).any():
        return Column(name, known, nullable=nullable, note=f"text with {len(text)} different values")
    return Column(name, known, nullable=nullable, role="category", values=tuple(text))


def _feature_names(column: Column) -> set[str]:
    if column.role == "category":
        return {f"{column.name}={value}" for value in column.values}
    return {column.name} if column.role in {"number", "filled"} else set()
