"""A pipeline's serving contract, made when its features are.

Belongs here: what is said of columns and images, and the code and sample rows that are kept. Not here: whether rows
that come alone get the features of training (`contract_probe.py`), what a contract says (`contract.py`), and what
training adds to it (`assets/contract.py`).
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
from mlops_assets.serving.contract_probe import (
    ALONE,
    SAMPLE_ROWS,
    can_be_sent,
    compositions,
    needed_columns,
    probe_rows,
    said,
    why_not_by_row,
)
from mlops_assets.serving.features import image_features, table_features

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pandera import polars as pa
    from pandera.polars import DataFrameSchema

SAMPLE_BYTES: Final = 1 << 20
"""Of sample images; there are at least two."""

PROBE_BYTES: Final = 1 << 24
"""Of images that are tried; there are at least as many as a sample has."""


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
    text = pl.col(key).cast(pl.String)
    kept = frame.join(made.select(text), left_on=text, right_on=key, how="semi", maintain_order="left")
    rows, count = probe_rows(kept, target, columns)
    sample, wanted = rows.head(count), _of_training(made, names, rows[key], key)
    unservable = why_not_by_row(compute, rows, columns, wanted, private=bool(left_out))
    told = declared(schema, frame)
    offered = {name for name in columns if name in told and can_be_sent(frame.schema[name])}
    needed = columns if unservable else needed_columns(compute, rows, columns, wanted, kept=kept, offered=offered)
    strange = [name for name in needed if not can_be_sent(frame.schema[name])]
    if strange and not unservable:
        unservable = f"column '{strange[0]}' is of a type that no request can carry"
    inputs = [
        _input(name, sample[name], told.get(name), required=name in needed)
        for name in columns
        if name in offered or (name in needed and name not in strange)
    ]
    sample, wanted = _hidden(sample, frame, [one for one in inputs if one.name in left_out]), wanted[:count]
    if left_out and not unservable:
        unservable, wanted = _of_hidden(compute, sample, [one.name for one in inputs])
    contract = RawContract(
        kind="table",
        inputs=tuple(inputs),
        key=key,
        key_type=key_type,
        target=target,
        sample=() if unservable else tuple(_as_records(sample.select([one.name for one in inputs]))),
        hidden=tuple(sorted(left_out)),
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
    unservable = _why_not_by_image(features, pixels, made, _some_images(table, chosen, pixels[0].nbytes))
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


def _some_images(table: pl.DataFrame, sample: NDArray[Any], size: int) -> NDArray[Any]:
    """The sample, the brightest and the darkest image, and some at random, within a number of bytes."""
    count = min(table.height, ALONE, max(SAMPLE_ROWS, PROBE_BYTES // size))
    chance = np.random.default_rng(0).choice(table.height, count, replace=False)
    ends = [table["mean"].arg_max(), table["mean"].arg_min()]
    return np.array(list(dict.fromkeys([*sample.tolist(), *ends, *chance.tolist()])))


def _why_not_by_image(
    features: Callable[[NDArray[np.uint8]], NDArray[np.uint8]],
    pixels: NDArray[np.uint8],
    made: NDArray[np.uint8],
    places: NDArray[Any],
) -> str:
    """Why an image alone is not to the model what it was in training; empty when it is."""
    for chosen in compositions(len(places)):
        rows = places[chosen]
        try:
            alone = image_features(features, pixels[rows], made.shape[1:])
        except Exception as error:  # noqa: BLE001  a user's function may raise anything, and that is the finding
            return f"the features function fails on a few images ({said(error, private=False)})"
        if not np.array_equal(alone, made[rows]):
            return "the features function makes something else of an image alone than among the others"
    return ""


def _key_type(dtype: Any) -> str:
    return "Int64" if dtype.is_integer() else "Float64" if dtype.is_float() else "String"


def _compute(
    function: Callable[[pl.DataFrame], Any], known: Mapping[str, Any], rows: pl.DataFrame, columns: Sequence[str]
) -> NDArray[np.float32]:
    return table_features(function, rows, columns=list(columns), **known)


def _of_hidden(
    compute: Callable[..., NDArray[np.float32]], rows: pl.DataFrame, columns: Sequence[str]
) -> tuple[str, NDArray[np.float32]]:
    """Why the features of rows without personal values cannot be computed, or an empty text; and the features."""
    try:
        made = compute(rows, columns)
    except Exception as error:  # noqa: BLE001  as above
        return (
            f"the features function fails on made-up values of left-out columns ({said(error, private=True)})",
            np.empty((0, 0), np.float32),
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
