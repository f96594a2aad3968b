"""Whether a table is what its pipeline says it is, with the rows that are not.

Belongs here: a user's pandera schema applied to a table, the platform's own checks of targets and features, and the
shift between two label counts. Does not belong here: reading or mending data, and what happens when a check fails.

The schemas are pandera's; the walk over them is ours. `DataFrameSchema.validate` names no row for a value of the wrong
type, ignores bad values in a lazy frame, may drop rows or be switched off by an environment variable, and formats
every failing row. Here nothing is coerced, filled or dropped: `coerce`, `default`, `drop_invalid_rows` and checks that
only warn have no effect.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import polars as pl
import xxhash
from numpy.typing import NDArray

from mlops_assets.data.readers import PolarsType, cast_text
from mlops_assets.data.splits import PARTS, SplitError, assign
from mlops_assets.errors import MlopsError

if TYPE_CHECKING:
    from pandera.api.polars.components import Column
    from pandera.polars import Check, DataFrameSchema

KEPT_ROWS: Final = 20
"""How many failing rows a `Failure` names; `count` says how many there are."""

KEPT_CLASSES: Final = 100
"""How many entries `class_counts` gives at most."""

OTHER_CLASSES: Final = "(all other classes)"
"""Under this name `class_counts` adds up the classes that it does not name."""

_SHOWN_ROWS: Final = 3  # in a sentence
_SHOWN_LENGTH: Final = 60  # characters of one value
_CLASS_LENGTH: Final = 200  # characters that tell classes apart in counts


class SchemaError(MlopsError):
    """What was given as a schema is none."""


@dataclass(frozen=True)
class Failure:
    """One check that a table fails.

    Attributes:
        column: The column, or None where the whole table fails.
        check: Name of the check: "missing", "type", "null", "unique", or the check's own name.
        count: How many rows fail; 0 where the failure is not one of rows.
        rows: The first `KEPT_ROWS` of them, counted from 1: row 1 is the first row under the header.
        values: Their values as text, shortened.
        message: One sentence without its full stop.
    """

    column: str | None
    check: str
    message: str
    count: int = 0
    rows: tuple[int, ...] = ()
    values: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report:
    """The outcome of one validation over `rows` rows."""

    rows: int
    failures: tuple[Failure, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return not self.failures

    def sentence(self) -> str:
        """Say the outcome in one sentence; rows count from 1, the first row under the header."""
        if self.passed:
            return f"all {self.rows} rows pass"
        shown = [failure.message for failure in self.failures[:_SHOWN_ROWS]]
        if more := len(self.failures) - len(shown):
            shown.append(f"and {more} more {'failure' if more == 1 else 'failures'}")
        return "; ".join(shown)


def dtypes(schema: DataFrameSchema) -> dict[str, PolarsType]:
    """Give the type of each column that a schema declares, for `read_table`; a regex column as `^...$`.

    Raises:
        SchemaError: It is not a `pandera.polars.DataFrameSchema`.
    """
    _require_schema(schema)
    return {
        str(column.selector): dtype
        for column in schema.columns.values()
        if (dtype := _polars_type(schema, column)) is not None
    }


def validate(frame: pl.DataFrame, schema: DataFrameSchema) -> Report:
    """Check a table against a pandera schema and name the rows that fail.

    A text column where the schema wants another type is cast value by value (`cast_text`): the values that do not
    cast are the failure, and the others go through the column's remaining checks. Checks of the whole table run only
    when no column is missing or of a wrong type. A check that raises is a failure that says so.

    Raises:
        SchemaError: It is not a `pandera.polars.DataFrameSchema`.
    """
    _require_schema(schema)
    failures: list[Failure] = []
    plain = {name for name, column in schema.columns.items() if not column.regex}
    declared: list[str] = []
    for name, column in schema.columns.items():
        found = matching(frame, column, plain)
        if not found and column.required:
            what = f"no column matches {name!r}" if column.regex else f"column {name!r} is missing"
            failures.append(Failure(None if column.regex else name, "missing", what))
        for each in found:
            failures.extend(_check_column(frame, each, column, _polars_type(schema, column)))
        declared.extend(found)
    failures.extend(_check_layout(frame, schema, declared))
    if not any(failure.check in {"missing", "type"} for failure in failures):
        failures.extend(_check_table(frame, schema))
    return Report(frame.height, tuple(failures))


def check_target(
    frame: pl.DataFrame,
    *,
    key: str,
    target: str,
    classes: Sequence[str | int],
    salt: str,
    test: float,
    validation: float,
    column: str | None = None,
) -> Report:
    """Check what a classifier needs of a dataset.

    Every row has a key of its own and a target among `classes`, and every class has a row in each part.

    Args:
        frame: The dataset.
        key: Name of the column that names a row.
        target: Name of the column to predict.
        classes: The classes; compared with the target as text.
        salt: Of the split, as in `assign`.
        test: Share of the test part, as in `assign`.
        validation: Share of the validation part, as in `assign`.
        column: Name of the column with the data's own split, if it has one.
    """
    failures = list(_check_key(frame, key))
    names = [str(name) for name in classes]
    if target not in frame.columns:
        failures.append(_missing(target))
    else:
        failures.extend(_check_labels(frame[target], names))
        if column is not None and column not in frame.columns:
            failures.append(_missing(column))
        elif not any(failure.column == key for failure in failures):
            own = None if column is None else frame[column]
            try:
                parts = assign(frame[key], salt=salt, test=test, validation=validation, own=own)
            except SplitError as error:
                failures.append(Failure(column or key, "split", str(error).rstrip(".")))
            else:
                failures.extend(_check_coverage(frame[target], names, parts))
    return Report(frame.height, tuple(failures))


def check_features(frame: pl.DataFrame, *, key: str, target: str, split: str, classes: Sequence[str | int]) -> Report:
    """Check what training needs of a feature table.

    Every column but the key, target and split is a feature: numeric or boolean, without nulls, finite. There is at
    least one feature and one row, each row has a key of its own and a target among `classes`, its split is one of
    `PARTS`, and every class has a row in each part: the function that made the table may have lost or renamed some.
    """
    failures = list(_check_rows(frame, key, target, split, [str(name) for name in classes]))
    features = [name for name in frame.columns if name not in {key, target, split}]
    if not features:
        failures.append(Failure(None, "features", f"no feature column beside {key!r}, {target!r} and {split!r}"))
    for name in features:
        failures.extend(_check_feature(frame[name]))
    return Report(frame.height, tuple(failures))


def check_images(
    pixels: NDArray[np.uint8], table: pl.DataFrame, *, key: str, target: str, split: str, classes: Sequence[str | int]
) -> Report:
    """Check what training needs of images and the table of their keys, targets and parts.

    There is one image of at least one pixel per row, uint8, shape (rows, height, width, 1 or 3 channels). The table
    is checked as in `check_features`, but for the features.
    """
    failures: list[Failure] = []
    if pixels.ndim != 4 or 0 in pixels.shape[1:3] or pixels.shape[3] not in {1, 3}:
        what = f"the images have the shape {pixels.shape}, not (rows, height, width, 1 or 3 channels)"
        failures.append(Failure(None, "shape", what))
    if pixels.dtype != np.uint8:
        failures.append(Failure(None, "type", f"the images are {pixels.dtype}, not uint8"))
    if len(pixels) != table.height:
        failures.append(Failure(None, "rows", f"there are {len(pixels)} images for {table.height} rows"))
    failures.extend(_check_rows(table, key, target, split, [str(name) for name in classes]))
    return Report(table.height, tuple(failures))


def leaks(pixels: NDArray[np.uint8], parts: pl.Series) -> Report:
    """Find test images that equal a training image, pixel by pixel: on them a model is asked what it was told.

    Args:
        pixels: Shape (rows, height, width, channels).
        parts: The part of each row.
    """
    digests = [xxhash.xxh3_128_digest(image.tobytes()) for image in pixels]
    trained = {digests[row]: row for row in reversed((parts == "train").arg_true().to_list())}
    copies = [(row + 1, trained[digests[row]] + 1) for row in (parts == "test").arg_true() if digests[row] in trained]
    if not copies:
        return Report(len(parts), ())
    examples = [f"row {row} equals row {twin}" for row, twin in copies[:_SHOWN_ROWS]]
    if len(copies) > len(examples):
        examples.append("...")
    verb = "test image equals a training image" if len(copies) == 1 else "test images equal training images"
    rows, twins = zip(*copies[:KEPT_ROWS], strict=True)
    message = f"{len(copies)} {verb} ({', '.join(examples)})"
    failure = Failure(None, "leak", message, len(copies), rows, tuple(f"row {twin}" for twin in twins))
    return Report(len(parts), (failure,))


def class_counts(frame: pl.DataFrame, target: str) -> dict[str, int]:
    """Count the rows of each class, by the class as text; empty where there is no such column, and without nulls.

    Of more than `KEPT_CLASSES` classes the most frequent are named, and the others are one entry, `OTHER_CLASSES`.
    Classes of the same first 200 characters are one.
    """
    if target not in frame.columns:
        return {}
    labels = frame[target].cast(pl.String).drop_nulls().str.head(_CLASS_LENGTH)
    counts = sorted(labels.value_counts(name="rows").iter_rows(), key=lambda item: (-item[1], item[0]))
    if len(counts) <= KEPT_CLASSES:
        return dict(sorted(counts))
    kept, others = counts[: KEPT_CLASSES - 1], counts[KEPT_CLASSES - 1 :]
    return {**dict(sorted(kept)), OTHER_CLASSES: sum(rows for _, rows in others)}


def label_shift(before: Mapping[str, int], after: Mapping[str, int]) -> float:
    """Measure how far class shares moved: the total variation distance of two counts, from 0 to 1.

    It is the share of rows that would have to change class. Counts without any row are as far from others as can be.
    """
    total_before, total_after = sum(before.values()), sum(after.values())
    if not total_before or not total_after:
        return float(total_before != total_after)
    names = before.keys() | after.keys()
    return sum(abs(before.get(name, 0) / total_before - after.get(name, 0) / total_after) for name in names) / 2


def _require_schema(schema: object) -> None:
    from pandera.polars import DataFrameSchema

    if not isinstance(schema, DataFrameSchema):
        kind = schema if isinstance(schema, type) else type(schema)
        raise SchemaError(
            f"{kind.__module__}.{kind.__qualname__} is no schema for Polars: give a pandera.polars.DataFrameSchema."
        )


def _polars_type(schema: DataFrameSchema, column: Column) -> PolarsType | None:
    declared = schema.dtype or column.dtype  # a type of the table overrides those of its columns, as in pandera
    return None if declared is None else declared.type


def matching(frame: pl.DataFrame, column: Column, plain: set[str]) -> list[str]:
    """Name the columns that a schema's column speaks of; a plain name takes precedence over a regex."""
    if not column.regex:
        return [column.name] if column.name in frame.columns else []
    return [name for name in frame.select(pl.col(column.selector)).columns if name not in plain]


def _check_column(frame: pl.DataFrame, name: str, column: Column, dtype: PolarsType | None) -> Iterator[Failure]:
    values = frame[name]
    miscast = pl.repeat(value=False, n=len(values), dtype=pl.Boolean, eager=True)
    if dtype is not None and values.dtype != dtype:
        typed = cast_text(values, dtype) if values.dtype == pl.String else values
        miscast = values.is_not_null() & typed.is_null()
        if not miscast.any():
            yield Failure(name, "type", f"column {name!r} is {values.dtype}, not {dtype}")
            return
        yield from _failing(values, miscast, "type", f"not {dtype}")
        values = typed
    if not column.nullable:
        empty = values.is_null() & ~miscast
        if values.dtype.is_float():
            empty |= values.is_nan().fill_null(value=False)
        yield from _failing(values, empty, "null", "null")
    if column.unique:
        yield from _failing(values, values.is_duplicated() & ~miscast, "unique", "not unique")
    for check in column.checks:
        yield from _run_check(values.to_frame(), check, name, miscast)


def _check_layout(frame: pl.DataFrame, schema: DataFrameSchema, declared: list[str]) -> Iterator[Failure]:
    if schema.strict is True:
        for name in frame.columns:
            if name not in declared:
                yield Failure(name, "undeclared", f"column {name!r} is not in the schema")
    if schema.ordered:
        actual = [name for name in frame.columns if name in declared]
        if actual != declared:
            yield Failure(None, "order", f"the columns are in the order {actual}, not {declared}")


def _check_table(frame: pl.DataFrame, schema: DataFrameSchema) -> Iterator[Failure]:
    unique: list[Any] = schema.unique or []
    for group in [unique] if all(isinstance(name, str) for name in unique) else unique:
        present = [name for name in group if name in frame.columns]
        if present:
            together = frame.select(pl.struct(present).alias(" + ".join(present))).to_series()
            yield from _failing(together, frame.select(present).is_duplicated(), "unique", "not unique")
    for check in schema.checks:
        yield from _run_check(frame, check, None, None)


def _run_check(frame: pl.DataFrame, check: Check, column: str | None, ignored: pl.Series | None) -> Iterator[Failure]:
    if check.raise_warning:
        return
    label = str(check.error or check.name or check.title or "a check without a name")
    subject = "the table" if column is None else f"column {column!r}"
    try:
        result: pl.DataFrame = check(frame.lazy(), column).check_output.collect()
        refused = ~result.to_series()
    except Exception as error:  # noqa: BLE001 - a user's function may raise anything, and that is the finding
        reason = next(iter(str(error).splitlines()), "")
        message = f"{subject}: the check {label} could not run ({type(error).__name__}: {reason})"
        yield Failure(column, label, message)
        return
    if len(refused) != frame.height:
        if refused.any():
            yield Failure(column, label, f"{subject} as a whole is refused by {label}")
        return
    if ignored is not None:
        refused &= ~ignored
    if refused.any():
        values = frame[column] if column is not None else frame.select(pl.struct(pl.all()).alias("")).to_series()
        yield from _failing(values, refused, label, f"refused by {label}")


def _check_rows(frame: pl.DataFrame, key: str, target: str, split: str, names: list[str]) -> Iterator[Failure]:
    """Yield what keeps any model from being trained and judged on a table's rows."""
    yield from _check_key(frame, key)
    if target not in frame.columns:
        yield _missing(target)
    else:
        yield from _check_labels(frame[target], names)
    if split not in frame.columns:
        yield _missing(split)
    else:
        yield from _failing(frame[split], frame[split].is_null(), "null", "null")
        valid = frame[split].cast(pl.String).is_in(PARTS).fill_null(value=True)
        yield from _failing(frame[split], ~valid, "split", f"none of {', '.join(PARTS)}")
    if frame.is_empty():
        yield Failure(None, "rows", "the table has no rows")
    elif target in frame.columns and split in frame.columns:
        yield from _check_coverage(frame[target], names, frame[split])


def _check_key(frame: pl.DataFrame, key: str) -> Iterator[Failure]:
    if key not in frame.columns:
        yield _missing(key)
        return
    values = frame[key]
    yield from _failing(values, values.is_null(), "null", "null")
    yield from _failing(values, values.is_duplicated() & values.is_not_null(), "unique", "not unique")


def _check_labels(target: pl.Series, classes: list[str]) -> Iterator[Failure]:
    labels = target.cast(pl.String)
    yield from _failing(target, labels.is_null(), "null", "null")
    outside = ~labels.is_in(classes).fill_null(value=True)
    yield from _failing(target, outside, "classes", f"none of the classes {', '.join(classes)}")


def _check_coverage(target: pl.Series, classes: list[str], parts: pl.Series) -> Iterator[Failure]:
    seen = set(zip(target.cast(pl.String).to_list(), parts.cast(pl.String).to_list(), strict=True))
    for name in classes:
        if absent := [part for part in PARTS if (name, part) not in seen]:
            where = "" if len(absent) == len(PARTS) else f" in {' or '.join(absent)}"
            yield Failure(target.name, "coverage", f"column {target.name!r}: no row of class {name!r}{where}")


def _check_feature(values: pl.Series) -> Iterator[Failure]:
    if not (values.dtype.is_numeric() or values.dtype == pl.Boolean):
        yield Failure(values.name, "type", f"column {values.name!r} is {values.dtype}, neither numeric nor Boolean")
        return
    yield from _failing(values, values.is_null(), "null", "null")
    if values.dtype.is_float():
        yield from _failing(values, ~values.is_finite().fill_null(value=True), "finite", "not finite")


def _missing(name: str) -> Failure:
    return Failure(name, "missing", f"column {name!r} is missing")


def _failing(values: pl.Series, mask: pl.Series, check: str, words: str) -> Iterator[Failure]:
    """Yield a failure if any row of a mask is set; an unnamed series stands for whole rows."""
    count = int(mask.sum())
    if not count:
        return
    places = mask.arg_true().head(KEPT_ROWS)
    shown = tuple(_show(value) for value in values.gather(places))
    rows = tuple(place + 1 for place in places)
    examples = [f"row {row}: {value}" for row, value in zip(rows, shown, strict=True)][:_SHOWN_ROWS]
    if count > len(examples):
        examples.append("...")
    subject = f"column {values.name!r}: " if values.name else ""
    verb = "row is" if count == 1 else "rows are"
    message = f"{subject}{count} {verb} {words} ({', '.join(examples)})"
    yield Failure(values.name or None, check, message, count, rows, shown)


def _show(value: object) -> str:
    text = "null" if value is None else repr(value) if isinstance(value, str | dict) else str(value)
    return text if len(text) <= _SHOWN_LENGTH else f"{text[: _SHOWN_LENGTH - 3]}..."
