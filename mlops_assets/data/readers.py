"""Tables from files, and the one encoding whose bytes name a table.

Belongs here: reading CSV and Parquet without losing a value, and the canonical Parquet bytes with their digest.
Does not belong here: judging the values (`validation`), or where files and tables are kept.

CSV goes through Arrow, not Polars: Polars fills a line that is too short with nulls and says nothing.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import polars as pl

from mlops_assets.errors import MlopsError

PolarsType = pl.DataType | type[pl.DataType]

_SEPARATORS: Final = {".csv": ",", ".csv.gz": ",", ".tsv": "\t", ".tsv.gz": "\t"}
_PARQUET: Final = (".parquet", ".pq")
SUPPORTED: Final = (*_SEPARATORS, *_PARQUET)
"""File name endings that `read_table` knows."""

_BLOCK: Final = 1 << 24  # bytes that Arrow parses at once, and so the longest row it takes
_EXACT: Final = 2.0**53  # below this, a whole float64 stands for one integer only
_BOOLEANS: Final = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}
_DATETIMES: Final = ("%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M", "%Y-%m-%d")


class ReadError(MlopsError):
    """A file is not the table that its name promises."""


def read_table(path: Path, types: Mapping[str, PolarsType] | None = None) -> pl.DataFrame:
    """Read one table, chosen by the ending of its name (`SUPPORTED`).

    CSV and TSV, gzipped or not, are UTF-8 with a header line. Nothing is inferred: every column is text, blanks around
    values and names are stripped, and empty values are nulls. Then each column that `types` names is cast as
    `cast_text` says; where a single value does not cast, the whole column stays text, so that validation can name the
    rows. Blank lines are skipped. An empty file gives a frame without columns.

    Parquet keeps the types it has; `types` does not touch it.

    Args:
        path: The file.
        types: Column name to Polars type; a name that starts with `^` and ends with `$` is a regular expression for
            all columns that no plain name declares.

    Raises:
        ReadError: The file is missing, damaged, not UTF-8, ragged, repeats a column name, or is of no known kind.
    """
    name = path.name.lower()
    try:
        if name.endswith(_PARQUET):
            return _read_parquet(path)
        for suffix, separator in _SEPARATORS.items():
            if name.endswith(suffix):
                return _cast_columns(_read_text(path, separator, zipped=suffix.endswith(".gz")), types or {})
    except OSError as error:
        raise ReadError(f"{path} cannot be read: {error.strerror or error}.") from error
    raise ReadError(f"{path} is of no kind that can be read: its name must end in {', '.join(SUPPORTED)}.")


def cast_text(values: pl.Series, dtype: PolarsType) -> pl.Series:
    """Cast text to a type, with null for each value that does not stand for one of that type.

    * Integers: digits with a sign; also `3.0`, as pandas writes them beside gaps, and `1e+05`, as R does, below 2**53.
    * Floats: as usual, with `nan` and `inf`, and a point as the decimal mark.
    * Booleans: true, t, 1, false, f, 0 in any case.
    * Dates and times: ISO 8601 (`2011-01-31`, `2011-01-31 10:00:00` with a blank or `T`), without a time zone.
    * Categories: every text, or for `pl.Enum` one of its own.
    * Any other type takes no text at all.
    """
    if dtype.base_type() in {pl.String, pl.Categorical, pl.Enum} or dtype.is_float():
        return values.cast(dtype, strict=False)
    if dtype.is_integer():
        return _cast_integers(values, dtype)
    if dtype == pl.Boolean:
        return values.str.to_lowercase().replace_strict(_BOOLEANS, default=None, return_dtype=pl.Boolean)
    return _cast_times(values, dtype)


def to_parquet_bytes(frame: pl.DataFrame) -> bytes:
    """Encode a table as Parquet so that equal tables give equal bytes.

    Chunks, slices, sort flags, the number of threads and whatever lies hidden under nulls leave no trace; a changed
    value, name, type, column order or row order does. The bytes hold for one release of Polars: another may encode
    the same table differently.
    """
    buffer = io.BytesIO()
    frame.rechunk().write_parquet(
        buffer, compression="zstd", compression_level=3, statistics=False, row_group_size=1 << 18
    )
    return buffer.getvalue()


def from_parquet_bytes(data: bytes) -> pl.DataFrame:
    """Decode what `to_parquet_bytes` gave.

    Raises:
        ReadError: The bytes are not Parquet, or damaged.
    """
    try:
        return pl.read_parquet(io.BytesIO(data))
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        raise ReadError(f"These {len(data)} bytes are not a Parquet table: {_first_line(error)}.") from error


def table_digest(data: bytes) -> str:
    """Name a table by its canonical bytes: the first 32 hex digits of their SHA-256."""
    return hashlib.sha256(data).hexdigest()[:32]


def _read_parquet(path: Path) -> pl.DataFrame:
    if path.is_dir():
        raise ReadError(f"{path} is a directory, not a Parquet file.")
    try:
        return pl.read_parquet(path, glob=False, hive_partitioning=False)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise ReadError(f"{path} is not a Parquet file, or a damaged one: {_first_line(error)}.") from error


def _read_text(path: Path, separator: str, *, zipped: bool) -> pl.DataFrame:
    """Parse separated values into text columns."""
    import pyarrow as pa  # type: ignore[import-untyped]
    from pyarrow import csv as arrow_csv

    data = path.read_bytes()
    if zipped:
        try:
            data = gzip.decompress(data)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ReadError(f"{path} is not a gzip file, or a damaged one: {error}.") from error
    data = data.removeprefix(b"\xef\xbb\xbf").lstrip(b"\r\n")
    _check_text(path, data)
    names = _header(path, data, separator)
    if not names:
        return pl.DataFrame()
    if not data.endswith((b"\n", b"\r")):
        data += b"\n"  # Arrow takes a header without a line end for a row that was cut
    places = [str(place) for place in range(len(names))]  # Polars would rename a column that Arrow gives without a name
    try:
        table = arrow_csv.read_csv(
            pa.BufferReader(data),
            read_options=arrow_csv.ReadOptions(block_size=_BLOCK, column_names=places, skip_rows_after_names=1),
            parse_options=arrow_csv.ParseOptions(delimiter=separator, newlines_in_values=True),
            convert_options=arrow_csv.ConvertOptions(column_types=dict.fromkeys(places, pa.string()), null_values=[]),
        )
    except pa.ArrowInvalid as error:
        raise ReadError(_bad_line(path, data, separator, len(names)) or f"{path}: {_first_line(error)}.") from error
    # Arrow lets an unclosed quotation mark swallow the rest of the file, which leaves an odd number of them
    if data.count(b'"') % 2 and (fault := _bad_line(path, data, separator, len(names))):
        raise ReadError(fault)
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    frame.columns = names
    return frame.select(pl.all().str.strip_chars().replace("", None))


def _check_text(path: Path, data: bytes) -> None:
    try:
        data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ReadError(f"{path} is not UTF-8 text (line {line}): save it as UTF-8.") from error
    if (zero := data.find(b"\0")) >= 0:
        line = data.count(b"\n", 0, zero) + 1
        raise ReadError(f"{path} is not text: it has a zero byte in line {line}.")


def _rows(data: bytes, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Read row by row, slowly, each with the number of its first line."""
    lines = csv.reader(
        io.TextIOWrapper(io.BytesIO(data), encoding="utf-8", newline=""), delimiter=separator, strict=True
    )
    line = 1
    try:
        for row in lines:
            yield line, row
            line = lines.line_num + 1
    except csv.Error as error:
        raise ReadError(f"line {line}: {error}") from error


def _header(path: Path, data: bytes, separator: str) -> list[str]:
    try:
        _, header = next(_rows(data, separator), (1, []))
    except ReadError as error:
        raise ReadError(f"{path}: the header cannot be read: {error}.") from error
    names = [name.strip() for name in header]
    if repeated := [repr(name) for name, count in Counter(names).items() if count > 1]:
        raise ReadError(
            f"{path}: the header repeats {', '.join(repeated)}: the first line must give each column a name of its own."
        )
    return names


def _bad_line(path: Path, data: bytes, separator: str, width: int) -> str | None:
    """Say which line is at fault; Arrow itself counts rows, and only in a slower mode."""
    rows = _rows(data, separator)
    try:
        for line, row in rows:
            if row and len(row) != width:
                return f"{path}, line {line}: {len(row)} of {width} values: a line must have as many as the header."
    except ReadError as error:
        # the csv module also refuses what Arrow takes (long fields), so only this one of its errors counts
        if "unexpected end of data" in str(error):
            return f"{path}, {str(error).partition(':')[0]}: a quotation mark opens here and is never closed."
    return None


def _cast_columns(frame: pl.DataFrame, types: Mapping[str, PolarsType]) -> pl.DataFrame:
    patterns = {name: dtype for name, dtype in types.items() if name.startswith("^") and name.endswith("$")}
    cast = []
    for column in frame:
        dtype = types.get(column.name)
        if dtype is None:
            dtype = next((kind for form, kind in patterns.items() if re.match(form, column.name)), None)
        if dtype is not None and dtype != pl.String:
            typed = cast_text(column, dtype)
            if typed.null_count() == column.null_count():
                cast.append(typed)
    return frame.with_columns(cast)


def _cast_integers(values: pl.Series, dtype: PolarsType) -> pl.Series:
    plain = values.cast(dtype, strict=False)
    if plain.null_count() == values.null_count():
        return plain
    real = values.cast(pl.Float64, strict=False)
    whole = (real == real.floor()) & (real.abs() < _EXACT)
    return plain.fill_null(real.set(~whole, None).cast(dtype, strict=False))


def _cast_times(values: pl.Series, dtype: PolarsType) -> pl.Series:
    if dtype == pl.Date:
        return values.str.to_date("%Y-%m-%d", strict=False)
    if dtype == pl.Time:
        return values.str.to_time("%H:%M:%S%.f", strict=False)
    if dtype == pl.Datetime and getattr(dtype, "time_zone", None) is None:
        spaced = values.str.replace(r"^(\S+)T", "$1 ")
        full, short, day = (spaced.str.to_datetime(form, strict=False) for form in _DATETIMES)
        return full.fill_null(short).fill_null(day).cast(dtype)
    return pl.Series(values.name, [None], dtype=dtype).new_from_index(0, len(values))


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")
