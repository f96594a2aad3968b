"""The serving contract: all that answering with a model version takes beside its ONNX file.

Belongs here: what it says and its JSON: what raw rows look like, the code of the features function as it was when the
version was trained, and sample rows with the answers that they must have. Not here: making one (`contract_making.py`)
and loading it (`slot.py`). A contract is never changed: another answer is another version.
"""

from __future__ import annotations

import base64
import hashlib
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from mlops_assets.data.config import ImagesConfig
from mlops_assets.errors import MlopsError

if TYPE_CHECKING:
    import polars as pl
    from numpy.typing import NDArray

FORMAT: Final = 1
SOURCE: Final = "source"
"""Folder of the features code beside an unpacked contract."""

BUILT_IN: Final = frozenset(
    {
        *("equal_to", "not_equal_to", "greater_than", "greater_than_or_equal_to", "less_than", "less_than_or_equal_to"),
        *("in_range", "isin", "notin", "str_matches", "str_contains", "str_startswith", "str_endswith", "str_length"),
    }
)
"""Checks of pandera that a server makes without pandera, which takes 0.7 s and 80 MB to load."""


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
        unit: Of a Datetime: ms, us or ns.
        nullable: Whether it may be null.
        required: Whether the features function needs it. It is given the others too, checked, and null where they lack.
        checks: Built-in checks.
        custom: Whether the schema has other checks of it that judge each row for itself.
        custom_places: Which of the schema's checks of this column those are, from 0.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    dtype: str
    categories: tuple[str, ...] = ()
    unit: Literal["ms", "us", "ns"] = "us"
    nullable: bool = False
    required: bool = True
    checks: tuple[Check, ...] = ()
    custom: bool = False
    custom_places: tuple[int, ...] = ()

    @property
    def polars_type(self) -> Any:
        """The Polars type."""
        import polars as pl

        if self.dtype == "Enum":
            return pl.Enum(self.categories)
        return pl.Datetime(self.unit) if self.dtype == "Datetime" else getattr(pl, self.dtype)


class RawContract(BaseModel):
    """What is known of a contract when the features are made.

    Attributes:
        kind: Whether a row is a row of a table or an image.
        inputs: The raw columns; for images those that the schema checks of height, width and mean.
        key_type: Polars type of the numbers that stand for keys in service: Int64, Float64 or String.
        sources: The features and schema code by path below the folder of all pipelines.
        functions: `features` and `schema` as FILE.py:FUNCTION in the pipeline's folder.
        sample: Raw rows, as JSON has them; of an image its pixels in base64, row by row. None where `unservable`.
        image_shape: Height, width and channels of a raw image; empty for tables.
        hidden: Columns whose values in the sample say nothing of anybody.
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
    hidden: tuple[str, ...] = ()
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
