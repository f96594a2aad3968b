"""How a dataset or its features lie in the store: a table, and for images their pixels beside it, row by row."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from mlops_assets.assets.stage import Output
from mlops_assets.fingerprint import digest
from mlops_assets.store import Entry

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
    from numpy.typing import NDArray

TABLE: Final = "table.parquet"
PIXELS: Final = "images.safetensors"


def content(frame: pl.DataFrame, pixels: NDArray[np.uint8] | None, info: Mapping[str, Any]) -> Output:
    """A table, and perhaps the images of its rows, as an output whose digest is over both.

    Args:
        frame: One row each.
        pixels: The images, shape (rows, height, width, channels), or None for a table alone.
        info: Facts for metadata.
    """
    from mlops_assets.data import images, readers

    table = readers.to_parquet_bytes(frame)
    if pixels is None:
        return Output(readers.table_digest(table), {TABLE: table}, info)
    data = images.to_bytes(pixels)
    both = digest([readers.table_digest(table), hashlib.sha256(data).hexdigest()])
    return Output(both, {TABLE: table, PIXELS: data}, info)


def table_of(entry: Entry) -> pl.DataFrame:
    """The stored table.

    Raises:
        StoreError: It is gone or damaged.
    """
    from mlops_assets.data.readers import from_parquet_bytes

    return from_parquet_bytes(entry.read(TABLE))


def pixels_of(entry: Entry) -> NDArray[np.uint8]:
    """The stored images, shape (rows, height, width, channels), read-only.

    Raises:
        StoreError: They are gone or damaged.
    """
    from mlops_assets.data.images import from_bytes

    return from_bytes(entry.read(PIXELS))
