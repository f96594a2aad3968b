"""The serving contract: all that answering with a model version takes beside its ONNX file.

Belongs here: what it says, its JSON, and how it is made when a version is trained: what raw rows look like, the code of
the features function as it was then, and sample rows with the answers that they must have. Not here: loading it
(`slot.py`). A contract is never changed: another answer is another version.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from mlops_assets.data.config import ImagesConfig
from mlops_assets.errors import MlopsError
from mlops_assets.fingerprint import sources

if TYPE_CHECKING:
    import polars as pl
    from numpy.typing import NDArray
    from pandera.api.polars.components import Column
    from pandera.polars import DataFrameSchema

FORMAT: Final = 1
SOURCE: Final = "source"
"""Folder of the features code beside an unpacked contract."""

SAMPLE_ROWS: Final = 5
SAMPLE_BYTES: Final = 1 << 20
"""Of sample images; there are at least two."""

BUILT_IN: Final = frozenset(
    {
        *("equal_to", "not_equal_to", "greater_than", "greater_than_or_equal_to", "less_than", "less_than_or_equal_to"),
        *("in_range", "isin", "notin", "str_matches", "str_contains", "str_startswith", "str_endswith", "str_length"),
    }
)
"""Checks of pandera that a server makes without pandera, which takes 0.7 s and 80 MB to load."""

TYPES: Final = frozenset(
    {
        *("Int8", "Int16", "Int32", "Int64", "UInt8", "UInt16", "UInt32", "UInt64", "Float32", "Float64"),
        *("String", "Boolean", "Date", "Datetime", "Time", "Categorical", "Enum"),
    }
)


class ContractError(MlopsError):
    """A version that cannot be served, or a contract that cannot be read."""


class Check(BaseModel):
    """One of pandera's built-in checks, by its name and what it compares with."""

    model_config = ConfigDict(frozen=True)

    name: str
    statistics: dict[str, Any]


class Input(BaseModel):
    """A column of raw rows.

    Attributes:
        dtype: Name of the Polars type.
        categories: Of an Enum.
        nullable: Whether it may be null.
        required: Whether the features function needs it; one that it does not need is checked when it is given.
        checks: Built-in checks.
        custom: Whether the schema has other checks for it too.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    dtype: str
    categories: tuple[str, ...] = ()
    nullable: bool = False
    required: bool = True
    checks: tuple[Check, ...] = ()
    custom: bool = False

    @property
    def polars_type(self) -> Any:
        """The Polars type."""
        import polars as pl

        return pl.Enum(self.categories) if self.dtype == "Enum" else getattr(pl, self.dtype)


class RawContract(BaseModel):
    """What is known of a contract when the features are made.

    Attributes:
        kind: Whether a row is a row of a table or an image.
        inputs: The raw columns; for images those that the schema checks of height, width and mean.
        sources: The features and schema code by path below the folder of all pipelines.
        functions: `features` and `schema` as FILE.py:FUNCTION in the pipeline's folder.
        sample: Raw rows, as JSON has them; of an image its pixels in base64, row by row.
        image_shape: Height, width and channels of a raw image; empty for tables.
        unservable: Why single rows cannot be answered; empty when they can.
    """

    model_config = ConfigDict(frozen=True)

    format: Literal[1] = FORMAT
    pipeline: str
    kind: Literal["table", "images"]
    inputs: tuple[Input, ...]
    images: ImagesConfig | None = None
    image_shape: tuple[int, ...] = ()
    key: str
    key_type: str = "String"
    target: str
    sources: dict[str, str]
    functions: dict[str, str]
    sample: tuple[Any, ...]
    unservable: str = ""

    def to_bytes(self) -> bytes:
        """As JSON; equal contracts give equal bytes."""
        return self.model_dump_json(indent=1).encode()

    def sample_rows(self) -> pl.DataFrame | NDArray[np.uint8]:
        """The sample: a typed table of the raw columns, or images (rows, height, width, channels)."""
        import polars as pl

        if self.kind == "images":
            pixels = [np.frombuffer(base64.b64decode(one), np.uint8).reshape(self.image_shape) for one in self.sample]
            return np.stack(pixels)
        from mlops_assets.data.readers import cast_text

        columns = []
        for one in self.inputs:
            values, dtype = [row.get(one.name) for row in self.sample], one.polars_type
            texts = dtype.is_temporal()
            made = pl.Series(one.name, values, pl.String if texts else dtype)
            columns.append(cast_text(made, dtype) if texts else made)
        return pl.DataFrame(columns)


class Contract(RawContract):
    """The contract of a trained version.

    Attributes:
        classes: In the order of the probabilities.
        features: Names of the feature columns; none for images.
        shape: Of one row of what the ONNX model takes.
        onnx: SHA-256 of the ONNX file.
        answers: Probabilities of the sample rows, (rows, classes).
    """

    classes: tuple[str, ...]
    features: tuple[str, ...]
    shape: tuple[int, ...]
    onnx: str
    answers: tuple[tuple[float, ...], ...]

    @classmethod
    def of(cls, raw: RawContract, **trained: Any) -> Contract:
        """A raw contract with what training adds to it."""
        return cls.model_validate({**raw.model_dump(), **trained})

    @classmethod
    def read(cls, data: bytes, place: str) -> Contract:
        """Read a contract's JSON.

        Args:
            data: The file's content.
            place: Where it is from, for the error.

        Raises:
            ContractError: It is none, or of another release.
        """
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "as a whole"
            raise ContractError(
                f"{place} is no serving contract of this release ({where}: {first['msg']}); train a new version"
            ) from None


def key_of(contract: RawContract) -> str:
    """What names a contract: the first 32 hex digits of the SHA-256 of its bytes."""
    return hashlib.sha256(contract.to_bytes()).hexdigest()[:32]


def collect_sources(files: Sequence[Path], root: Path) -> dict[str, str]:
    """The text of Python files and of what they import from the folder of all pipelines, by path below that.

    Raises:
        ContractError: One imports first-party code from elsewhere: it would not be pinned with the version.
        SourceError: One is missing or does not parse.
    """
    found: dict[str, str] = {}
    base = root.resolve()
    for file in files:
        for path in sources(file, root):
            if not path.is_relative_to(base):
                raise ContractError(
                    f"{file} imports {path}, which is not below {root}: the code that answers is kept with each "
                    "version; move it there"
                )
            found[path.relative_to(base).as_posix()] = path.read_text(encoding="utf-8")
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
    import polars as pl

    rows = _some_rows(frame, key, target)
    raw = rows.drop(target, *ignored, strict=False)
    blind = rows.with_columns(pl.lit(None, frame.schema[target]).alias(target))
    names = [name for name in made.columns if name not in {key, target, *ignored}]
    wanted = _numbers(made, names, rows[key], key)
    unservable = _why_not_by_row(features, blind, wanted, names, key)
    inputs = []
    declared = _declared(schema, frame)
    for name in raw.drop(key).columns:
        needed = bool(unservable) or not _same(features, blind.drop(name), wanted, names, key)
        if needed or name in declared:
            inputs.append(_input(name, frame.schema[name], declared.get(name), required=needed))
    if strange := [one.name for one in inputs if one.dtype not in TYPES]:
        unservable = unservable or f"column '{strange[0]}' is of a type that no request can carry"
    hidden = _hidden(blind, [one for one in inputs if one.name in left_out])
    if left_out and not unservable:
        wanted = _numbers(features(hidden), names, rows[key], key)
    contract = RawContract(
        kind="table",
        inputs=tuple(inputs),
        key=key,
        key_type=_type_name(frame.schema[key]),
        target=target,
        sample=tuple(_as_records(hidden.select([one.name for one in inputs]))),
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
    chosen = table.with_row_index("row").unique(target, keep="first", maintain_order=True)["row"].to_numpy()
    most = max(2, min(SAMPLE_ROWS, SAMPLE_BYTES // max(1, pixels[0].size)))
    chosen = np.unique(np.concatenate([chosen, np.arange(min(2, len(pixels)))]))[:most]
    sample = np.ascontiguousarray(pixels[chosen])
    unservable = ""
    for rows in ([0], list(range(len(sample)))):
        alone = np.asarray(features(sample[rows].copy()))
        if alone.shape != made[chosen[rows]].shape or not np.array_equal(alone, made[chosen[rows]]):
            unservable = "the features function makes something else of an image alone than among the others"
    declared = _declared(schema, table)
    described = [name for name in ("height", "width", "mean") if name in declared]
    contract = RawContract(
        kind="images",
        inputs=tuple(_input(name, table.schema[name], declared[name], required=False) for name in described),
        images=images,
        image_shape=pixels.shape[1:],
        key=key,
        target=target,
        sample=tuple(base64.b64encode(one.tobytes()).decode() for one in sample),
        unservable=unservable,
        **rest,
    )
    return contract, made[chosen]


def _some_rows(frame: pl.DataFrame, key: str, target: str) -> pl.DataFrame:
    """A few rows of different classes, in an order of their own, so that features of neighbours show."""
    first = frame.unique(target, keep="first", maintain_order=True).head(SAMPLE_ROWS)
    rest = frame.join(first.select(key), on=key, how="anti").head(SAMPLE_ROWS - first.height)
    return first.vstack(rest).reverse()


def _why_not_by_row(
    features: Callable[[pl.DataFrame], pl.DataFrame],
    rows: pl.DataFrame,
    wanted: NDArray[np.float32],
    names: Sequence[str],
    key: str,
) -> str:
    """Why features of rows that come alone and without a target are not those of training; empty when they are."""
    try:
        alone = _numbers(features(rows), names, rows[key], key)
        one = _numbers(features(rows.head(1)), names, rows[key].head(1), key)
    except Exception as error:  # noqa: BLE001  a user's function may raise anything, and that is the finding
        return f"the features function fails on a few rows without a target ({type(error).__name__}: {error})"
    if np.array_equal(alone, wanted, equal_nan=True) and np.array_equal(one, wanted[:1], equal_nan=True):
        return ""
    return "the features of a row depend on other rows or on the target, so a row that comes alone has other ones"


def _same(
    features: Callable[[pl.DataFrame], pl.DataFrame],
    rows: pl.DataFrame,
    wanted: NDArray[np.float32],
    names: Sequence[str],
    key: str,
) -> bool:
    try:
        made = _numbers(features(rows), names, rows[key], key)
    except Exception:  # noqa: BLE001  without a column that it needs, a function may raise anything
        return False
    return np.array_equal(made, wanted, equal_nan=True)


def _numbers(made: pl.DataFrame, names: Sequence[str], keys: pl.Series, key: str) -> NDArray[np.float32]:
    """The features of the rows with these keys, in their order, as the model takes them."""
    import polars as pl

    text = pl.col(key).cast(pl.String)
    ordered = keys.cast(pl.String).to_frame().join(made.with_columns(text), on=key, how="left", maintain_order="left")
    return ordered.select(pl.col(list(names)).cast(pl.Float32)).to_numpy()


def _declared(schema: DataFrameSchema, frame: pl.DataFrame) -> dict[str, Column]:
    """The schema's column for each column of the table that it speaks of."""
    from mlops_assets.data.validation import matching

    plain = {name for name, column in schema.columns.items() if not column.regex}
    return {name: column for column in schema.columns.values() for name in matching(frame, column, plain)}


def _input(name: str, dtype: Any, column: Column | None, *, required: bool) -> Input:
    checks = [] if column is None else [one for one in column.checks if not one.raise_warning]
    # a function of the user's own has no statistics, whatever it is called
    built_in = [one for one in checks if one.name in BUILT_IN and one.statistics and _plain(one.statistics)]
    return Input(
        name=name,
        dtype=_type_name(dtype),
        categories=tuple(getattr(dtype, "categories", ()) or ()) if _type_name(dtype) == "Enum" else (),
        nullable=column is None or column.nullable,
        required=required,
        checks=tuple(Check(name=str(one.name), statistics=_as_json(one.statistics)) for one in built_in),
        custom=len(built_in) < len(checks),
    )


def _plain(statistics: Mapping[str, Any]) -> bool:
    """Whether a check compares with what JSON can carry."""
    values = [one for value in statistics.values() for one in (value if isinstance(value, Sequence | set) else [value])]
    return all(value is None or isinstance(value, bool | int | float | str) for value in values)


def _as_json(statistics: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: list(value) if isinstance(value, Sequence | set | frozenset) and not isinstance(value, str) else value
        for name, value in statistics.items()
    }


def _type_name(dtype: Any) -> str:
    return str(dtype.base_type())


def _hidden(rows: pl.DataFrame, columns: Sequence[Input]) -> pl.DataFrame:
    """Rows whose values in some columns say nothing of anybody."""
    import polars as pl

    values = {
        one.name: None
        if one.nullable or one.polars_type.is_temporal()
        else rows[one.name].median()
        if one.polars_type.is_numeric()
        else one.categories[0]
        if one.categories
        else False
        if one.dtype == "Boolean"
        else ""
        for one in columns
    }
    return rows.with_columns(pl.lit(value).cast(rows.schema[name]).alias(name) for name, value in values.items())


def _as_records(rows: pl.DataFrame) -> list[dict[str, Any]]:
    """Rows as JSON has them."""
    import polars as pl

    temporal = [name for name, dtype in rows.schema.items() if dtype.is_temporal()]
    return rows.with_columns(pl.col(temporal).cast(pl.String)).to_dicts()
