"""A pipeline's serving contract, made when its features are.

Belongs here: which raw columns the features function needs, whether rows that come alone get the features of training,
and the code and sample rows that are kept. Not here: what a contract says (`contract.py`), and what training adds to it
(`assets/contract.py`).
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import polars as pl
import polars.selectors as cs

from mlops_assets.data.config import ImagesConfig
from mlops_assets.fingerprint import PACKAGE_ROOT, sources
from mlops_assets.serving.checks import Declared, declared
from mlops_assets.serving.contract import BUILT_IN, Check, ContractError, Input, RawContract
from mlops_assets.serving.features import image_features, table_features

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pandera import polars as pa
    from pandera.polars import DataFrameSchema

    Compute = Callable[[pl.DataFrame, Sequence[str]], NDArray[np.float32]]
    """Features of raw rows by some of their columns, as they are computed in service."""

SAMPLE_ROWS: Final = 5
SAMPLE_BYTES: Final = 1 << 20
"""Of sample images; there are at least two."""

TYPES: Final = frozenset(
    {
        *("Int8", "Int16", "Int32", "Int64", "UInt8", "UInt16", "UInt32", "UInt64", "Float32", "Float64"),
        *("String", "Boolean", "Date", "Datetime", "Time", "Categorical", "Enum"),
    }
)
"""Of the columns that a request can carry."""


def collect_sources(files: Sequence[Path], root: Path) -> dict[str, str]:
    """The text of Python files and of what they import from the folder of all pipelines, by path below that.

    Raises:
        ContractError: One imports first-party code that would not be pinned with the version.
        SourceError: One is missing or does not parse.
    """
    base, found = root.resolve(), dict[str, str]()
    waiting = list(files)
    for file in waiting:
        for path in sources(file, root):
            if not path.is_relative_to(base):
                project = PACKAGE_ROOT.parent
                shown = path.relative_to(project) if path.is_relative_to(project) else path
                raise ContractError(
                    f"{file.name} imports {shown}, which is not below the folder of all pipelines: the code that "
                    "answers is kept with each version; move it there"
                )
            name = path.relative_to(base).as_posix()
            if name in found:
                continue
            try:
                found[name] = path.read_text(encoding="utf-8-sig")
            except UnicodeDecodeError:
                raise ContractError(f"{name} is not UTF-8, in which code is kept with each version") from None
            _require_relative(name, found[name], base)
            # Python runs these on the way to the file
            folders = [one for one in path.parents if one != base and one.is_relative_to(base)]
            waiting += [one / "__init__.py" for one in folders if (one / "__init__.py").is_file()]
    return dict(sorted(found.items()))


def table_contract(
    *,
    frame: pl.DataFrame,
    made: pl.DataFrame,
    features: Callable[[pl.DataFrame], pl.DataFrame],
    schema: DataFrameSchema,
    key: str,
    target: str,
    ignored: Sequence[str],
    left_out: Sequence[str],
    **rest: Any,
) -> tuple[RawContract, NDArray[np.float32]]:
    """The contract of a table's features, and whether they can be computed for single rows at all.

    Args:
        frame: The dataset.
        made: What the features function made of all of it: key, target and features, in its order of rows.
        features: The features function.
        schema: Of the dataset.
        key: Name of the key column.
        target: Name of the target column.
        ignored: Other columns that no request has, such as the data's own split.
        left_out: Columns whose values must not leave the data.
        rest: The fields of `RawContract` that are known.

    Returns:
        The contract, and the features of its sample rows, (rows, features).
    """
    apart = {key, target, *ignored}
    names = [name for name in made.columns if name not in apart]
    columns = [name for name in frame.columns if name not in apart]
    key_type = _key_type(frame.schema[key])
    compute = partial(_compute, features, {"key": key, "key_type": key_type, "target": target, "features": names})
    rows = _some_rows(frame, made, key, target)
    wanted = _of_training(made, names, rows[key], key)
    unservable = _why_not_by_row(compute, rows, columns, wanted)
    needed = columns if unservable else _needed(compute, rows, columns, wanted)
    strange = [name for name in columns if not _can_be_sent(frame.schema[name])]
    if unreachable := [name for name in needed if name in strange]:
        unservable = unservable or f"column '{unreachable[0]}' is of a type that no request can carry"
    told = declared(schema, frame)
    inputs = [
        _input(name, rows[name], told.get(name), required=name in needed)
        for name in columns
        if name not in strange and (name in needed or name in told)
    ]
    sample = _hidden(rows, frame, [one for one in inputs if one.name in left_out])
    if left_out and not unservable:
        unservable, wanted = _of_hidden(compute, sample, needed)
    contract = RawContract(
        kind="table",
        inputs=tuple(inputs),
        key=key,
        key_type=key_type,
        target=target,
        sample=() if unservable else tuple(_as_records(sample.select([one.name for one in inputs]))),
        unservable=unservable,
        **rest,
    )
    return contract, wanted


def images_contract(
    *,
    pixels: NDArray[np.uint8],
    made: NDArray[np.uint8],
    table: pl.DataFrame,
    features: Callable[[NDArray[np.uint8]], NDArray[np.uint8]],
    schema: DataFrameSchema,
    images: ImagesConfig,
    key: str,
    target: str,
    **rest: Any,
) -> tuple[RawContract, NDArray[np.uint8]]:
    """The contract of images, as `table_contract` makes it of a table.

    Args:
        pixels: The raw images, (rows, height, width, channels).
        made: What the features function made of all of them.
        table: Of the images: key, target, height, width, mean.
        features: The features function.
        schema: Of `table`.
        images: How image files are decoded.
        key: Name of the key column.
        target: Name of the target column.
        rest: The fields of `RawContract` that are known.

    Returns:
        The contract, and what the features function made of its sample images.
    """
    chosen = np.union1d(table[target].is_first_distinct().arg_true().to_numpy(), np.arange(min(2, len(pixels))))
    chosen = chosen[: max(2, min(SAMPLE_ROWS, SAMPLE_BYTES // math.prod(pixels.shape[1:])))]
    unservable = ""
    for rows in (chosen, *chosen[:, np.newaxis]):
        try:
            alone = image_features(features, pixels[rows], made.shape[1:])
        except Exception as error:  # noqa: BLE001  a user's function may raise anything, and that is the finding
            unservable = f"the features function fails on a few images ({_said(error)})"
        else:
            if not np.array_equal(alone, made[rows]):
                unservable = "the features function makes something else of an image alone than among the others"
    told = declared(schema, table)
    # of what is resized, the schema means the sizes before, and a request may have pixels alone
    described = ["mean"] if images.size else ["height", "width", "mean"]
    contract = RawContract(
        kind="images",
        inputs=tuple(_input(name, table[name], told[name], required=False) for name in described if name in told),
        images=images,
        image_shape=pixels.shape[1:],
        key=key,
        target=target,
        sample=() if unservable else tuple(base64.b64encode(one.tobytes()).decode() for one in pixels[chosen]),
        unservable=unservable,
        **rest,
    )
    return contract, made[chosen]


def _require_relative(name: str, text: str, base: Path) -> None:
    """Refuse an import of a pipeline's code by its full name: it would run what that is later.

    Raises:
        ContractError: There is one.
    """
    import ast

    if not base.is_relative_to(PACKAGE_ROOT.parent):
        return
    package = ".".join(base.relative_to(PACKAGE_ROOT.parent).parts)
    for node in ast.walk(ast.parse(text)):
        imported = [one.name for one in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level:
            imported = [node.module or "", *(f"{node.module}.{one.name}" for one in node.names)]
        if found := [one for one in imported if one == package or one.startswith(f"{package}.")]:
            raise ContractError(
                f"{name} imports {found[0]} by its full name, so it would not be kept with the version; import it "
                "relatively, as in `from ..iris.features import features`"
            )


def _key_type(dtype: Any) -> str:
    return "Int64" if dtype.is_integer() else "Float64" if dtype.is_float() else "String"


def _can_be_sent(dtype: Any) -> bool:
    return _type_name(dtype) in TYPES and getattr(dtype, "time_zone", None) is None


def _some_rows(frame: pl.DataFrame, made: pl.DataFrame, key: str, target: str) -> pl.DataFrame:
    """A few rows of different classes, in an order of their own, so that features of neighbours show.

    They are rows that the features function keeps; those come first whose numbers JSON has.
    """
    text = pl.col(key).cast(pl.String)
    kept = frame.join(made.select(text), left_on=text, right_on=key, how="semi", maintain_order="left")
    finite = pl.all_horizontal(pl.lit(value=True), cs.float().is_finite().fill_null(value=True))
    marks = kept.select(finite.alias("finite"), pl.col(target).is_first_distinct().alias("first"))
    order = marks.with_row_index().sort("finite", "first", descending=True, maintain_order=True)["index"]
    return kept[order.head(SAMPLE_ROWS)].reverse()


def _compute(
    function: Callable[[pl.DataFrame], Any], known: Mapping[str, Any], rows: pl.DataFrame, columns: Sequence[str]
) -> NDArray[np.float32]:
    return table_features(function, rows, columns=list(columns), **known)


def _why_not_by_row(compute: Compute, rows: pl.DataFrame, columns: Sequence[str], wanted: NDArray[np.float32]) -> str:
    """Why features of rows that come alone and without a target are not those of training; empty when they are."""
    places = range(rows.height)
    try:
        for chosen in (list(places), list(reversed(places)), *([place] for place in places)):
            if not np.array_equal(compute(rows[chosen], columns), wanted[chosen], equal_nan=True):
                return "the features of a row depend on other rows, its key or its target; alone it has other ones"
    except Exception as error:  # noqa: BLE001  a user's function may raise anything, and that is the finding
        return f"the features function fails on a few rows without a target ({_said(error)})"
    return ""


def _needed(compute: Compute, rows: pl.DataFrame, columns: Sequence[str], wanted: NDArray[np.float32]) -> list[str]:
    """The columns that the features function needs.

    One that it does not need may be missing, and may have other values: the function may sum all columns of a kind,
    and the sample's be zero.
    """
    needed = list(columns)
    for name in columns:
        rest = [one for one in needed if one != name]
        try:
            other = rows.with_columns(_changed(rows[name]))
            if all(np.array_equal(made, wanted) for made in (compute(rows, rest), compute(other, needed))):
                needed = rest
        except Exception:  # noqa: BLE001, S110  without a column that it needs, a function may raise anything
            pass
    return needed


def _changed(values: pl.Series) -> pl.Series:
    """A column with another value in each row, where that is easy to say."""
    if values.dtype.is_numeric():
        return (values.fill_null(0) + 1).cast(values.dtype, wrap_numerical=True)
    if values.dtype == pl.Boolean:
        return ~values.fill_null(value=False)
    if values.dtype == pl.String:
        return values.fill_null("") + "x"
    return values.clear(len(values))


def _of_hidden(compute: Compute, rows: pl.DataFrame, columns: Sequence[str]) -> tuple[str, NDArray[np.float32]]:
    """Why the features of rows without personal values cannot be computed, or an empty text; and the features."""
    try:
        made = compute(rows, columns)
    except Exception as error:  # noqa: BLE001  as above
        return f"the features function fails on made-up values of left-out columns ({_said(error)})", np.empty(
            (0, 0), np.float32
        )
    problem = "" if np.isfinite(made).all() else "there are no features of made-up values of left-out columns"
    return problem, made


def _of_training(made: pl.DataFrame, names: Sequence[str], keys: pl.Series, key: str) -> NDArray[np.float32]:
    """The features of the rows with these keys, in their order, as the model was trained on them."""
    text = pl.col(key).cast(pl.String)
    ordered = keys.cast(pl.String).to_frame().join(made.with_columns(text), on=key, how="left", maintain_order="left")
    return ordered.select(pl.col(list(names)).cast(pl.Float32)).to_numpy()


def _input(name: str, values: pl.Series, told: Declared | None, *, required: bool) -> Input:
    """What a request is told of a column.

    Args:
        name: Its name.
        values: Of the sample rows; the schema takes them.
        told: What the schema says.
        required: Whether the features function needs it.
    """
    dtype = values.dtype
    checks = [] if told is None else told.checks
    counting = [(place, one) for place, one in enumerate(checks) if not one.raise_warning]
    built_in = [place for place, one in counting if _is_built_in(one)]
    custom = tuple(place for place, one in counting if place not in built_in and _is_by_row(one, values))
    return Input(
        name=name,
        dtype=_type_name(dtype),
        categories=tuple(dtype.categories) if isinstance(dtype, pl.Enum) else (),
        unit=dtype.time_unit if isinstance(dtype, pl.Datetime) else "us",
        nullable=told is None or told.nullable,
        required=required,
        checks=tuple(Check(name=str(checks[place].name), statistics=_as_json(checks[place])) for place in built_in),
        custom=bool(custom),
        custom_places=custom,
    )


def _is_built_in(check: pa.Check) -> bool:
    """Whether a check is pandera's own, judges null as those of the server do, and compares with what JSON has."""
    from pandera.api.function_dispatch import Dispatcher

    if check.name not in BUILT_IN or not isinstance(check._check_fn, Dispatcher):  # noqa: SLF001  any may be so named
        return False
    values = [one for value in _as_json(check).values() for one in (value if isinstance(value, list) else [value])]
    plain = all(value is None or isinstance(value, bool | int | float | str) for value in values)
    return check.ignore_na and plain and not any(isinstance(one, float) and not math.isfinite(one) for one in values)


def _as_json(check: pa.Check) -> dict[str, Any]:
    """What a check compares with; sets in an order that is the same in every process."""
    return {
        name: sorted(set(value), key=repr) if name.endswith("_values") and isinstance(value, Collection) else value
        for name, value in (check.statistics or {}).items()
    }


def _is_by_row(check: pa.Check, values: pl.Series) -> bool:
    """Whether a check judges each row for itself: it takes each of some rows alone that it takes together."""
    try:
        for rows in (values, *(values[place : place + 1] for place in range(len(values)))):
            passed = check(rows.to_frame().lazy(), values.name).check_output.collect().to_series()
            if len(passed) != len(rows) or not passed.all():
                return False
    except Exception:  # noqa: BLE001  a user's function may raise anything, on a few rows too
        return False
    return True


def _type_name(dtype: Any) -> str:
    return str(dtype.base_type())


def _hidden(rows: pl.DataFrame, frame: pl.DataFrame, columns: Sequence[Input]) -> pl.DataFrame:
    """Rows whose values in some columns say nothing of anybody."""
    made = {one.name: _made_up(one, frame[one.name]) for one in columns}
    return rows.with_columns(pl.lit(value).cast(rows.schema[name]).alias(name) for name, value in made.items())


def _made_up(column: Input, values: pl.Series) -> Any:
    """A value that the schema's commonest checks take, and that tells no single row's."""
    allowed = [value for one in column.checks if one.name == "isin" for value in one.statistics["allowed_values"]]
    if allowed or column.categories:
        return (allowed or column.categories)[0]
    if values.dtype.is_numeric() or values.dtype.is_temporal():
        return (
            values.to_frame().select(pl.all().mean().round(0) if values.dtype.is_integer() else pl.all().mean()).item()
        )
    return None if column.nullable else False if column.dtype == "Boolean" else ""


def _as_records(rows: pl.DataFrame) -> list[dict[str, Any]]:
    """Rows as JSON has them."""
    return rows.with_columns(cs.temporal().cast(pl.String)).to_dicts()


def _said(error: Exception) -> str:
    """An error in one line: the first of its own, since that of Polars goes on."""
    return ": ".join([type(error).__name__, *str(error).splitlines()[:1]])
