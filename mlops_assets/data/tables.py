"""Tables as files: which kind a name tells, several of them as one, and one written as its name says.

Belongs here: what a folder, a download and a command have in common. Does not belong here: parsing CSV and Parquet
(`readers`), and judging the values (`validation`).
"""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Final

import polars as pl

from mlops_assets.data.readers import SUPPORTED, ReadError, read_table, to_parquet_bytes
from mlops_assets.errors import MlopsError

PARQUET: Final = frozenset({".parquet", ".pq"})
TEXT: Final = frozenset(SUPPORTED) - PARQUET
JSON_LINES: Final = frozenset({".jsonl", ".ndjson"})


class TablesDiffer(MlopsError):
    """Tables that cannot be one."""


def ending(name: str) -> str:
    """The part of a file's name that tells its kind, in lower case: `.csv`, `.csv.gz`, `.parquet`."""
    path = PurePath(name.lower())
    return "".join(path.suffixes[-2:]) if path.suffix == ".gz" else path.suffix


def convertible(path: str) -> frozenset[str]:
    """The endings of files that can become the table of this name; text has no types to make Parquet of."""
    return (PARQUET if ending(path) in PARQUET else TEXT) | JSON_LINES


def read_any(file: Path) -> pl.DataFrame:
    """Read a table as `read_table` does, or JSON lines, which have types of their own.

    Raises:
        ReadError: It is not the table that its name promises.
    """
    if ending(file.name) not in JSON_LINES:
        return read_table(file)
    try:
        frame = pl.read_ndjson(file, infer_schema_length=None)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")
        raise ReadError(f"{file} is no text of one JSON object a line ({reason}): correct it.") from None
    except OSError as error:
        raise ReadError(f"{file} cannot be read: {error.strerror or error}.") from None
    for name, dtype in frame.schema.items():
        if dtype.is_nested():
            raise ReadError(f"{file}: '{name}' holds lists or objects: write a column for each of their values.")
    return frame


def together(files: Mapping[str, Path]) -> pl.DataFrame:
    """One table of several with the same columns, whose order is the first one's, in the given order.

    Args:
        files: File by the name that a person knows it by.

    Raises:
        ReadError: One of them cannot be read.
        TablesDiffer: One has other columns than the first, or a column of another type.
    """
    frames: dict[str, pl.DataFrame] = {}
    for name, file in files.items():
        frames[name] = frame = read_any(file)
        first, model = next(iter(frames.items()))
        for column in [*model.columns, *frame.columns]:
            if column not in frame.columns:
                raise TablesDiffer(
                    f"{name} has no column '{column}', which {first} has; give tables of the same columns"
                )
            if column not in model.columns:
                raise TablesDiffer(
                    f"{name} has a column '{column}', which {first} has not; give tables of the same columns"
                )
            if model[column].dtype != frame[column].dtype:
                raise TablesDiffer(
                    f"{name} has column '{column}' as {frame[column].dtype} and {first} as {model[column].dtype}; "
                    "write both with one type"
                )
        frames[name] = frame.select(model.columns)
    return pl.concat(frames.values())


def numbered(frame: pl.DataFrame, key: str) -> pl.DataFrame:
    """A table with its row numbers, from 1 on, as first column."""
    return frame.insert_column(0, pl.int_range(1, frame.height + 1, eager=True, dtype=pl.Int64).alias(key))


def encode(frame: pl.DataFrame, path: str) -> bytes:
    """A table as the bytes of a file of that name.

    Raises:
        ReadError: A file of that name cannot be written.
    """
    kind = ending(path)
    if kind not in SUPPORTED:
        raise ReadError(f"'{path}' is of no kind that can be written: its name must end in {', '.join(SUPPORTED)}")
    if kind in PARQUET:
        return to_parquet_bytes(frame)
    text = frame.write_csv(separator=separator(kind)).encode()
    return gzip.compress(text, mtime=0) if kind.endswith(".gz") else text


def separator(kind: str) -> str:
    """What stands between the values of a text file with this ending."""
    return "\t" if kind.startswith(".tsv") else ","
