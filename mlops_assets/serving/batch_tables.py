"""Tables of any size, some rows at a time: what `batch.py` scores.

Belongs here: reading a table in pieces, with the names of its rows, and refusing by file and row what cannot be read.
Not here: reading a whole dataset (`data/readers.py`), whose rules for text and for the names of columns hold here too.
"""

from __future__ import annotations

import csv
import gzip
import io
import re
import zlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mlops_assets.data.readers import ReadError
from mlops_assets.serving.checks import InvalidInput

if TYPE_CHECKING:
    from mlops_assets.serving.slot import Slot

_SEPARATORS: Final = {".csv": ",", ".csv.gz": ",", ".tsv": "\t", ".tsv.gz": "\t"}
_BLOCK: Final = 1 << 20  # bytes that Arrow parses at once, and so the longest row; of 8 MB, memory grows with the file
_PAGES: Final = 1 << 20  # bytes of a Parquet column that are read at once, whatever the size of its row groups
_BOM: Final = b"\xef\xbb\xbf"


class Chunk(NamedTuple):
    """Some rows of a file.

    Attributes:
        names: What identifies the rows: the key column, or for images in files their paths (`key`) and content hashes
            (`file`); None where only the number of a row does.
        rows: Raw rows that the slot has validated.
    """

    names: pl.DataFrame | None
    rows: pl.DataFrame | NDArray[np.uint8]


Chunks = Generator[Chunk, None, None]


def table_chunks(slot: Slot, path: Path, name: str, rows: int) -> Chunks:
    """The rows of a table.

    Args:
        slot: Its contract says which columns are read.
        path: The file.
        name: What the file is called in errors.
        rows: At most, of a chunk.

    Raises:
        ReadError: The file is not the table that its name promises.
        InvalidInput: Names the first row that the version does not answer, counted from 1 under the header.
    """
    key = slot.contract.key
    wanted = {key, *(one.name for one in slot.contract.inputs)}
    start = 0
    for frame in _frames(path, name, wanted, rows):
        names = frame.select(pl.col(key).alias("key")) if key in frame.columns else None
        yield Chunk(names, _valid(slot, frame.drop(key, strict=False), name, start))
        start += frame.height


def _valid(slot: Slot, frame: pl.DataFrame, name: str, start: int) -> pl.DataFrame:
    try:
        return slot.from_frame(frame)
    except InvalidInput as error:
        raise placed(error, name, start) from None


def placed(error: InvalidInput, name: str, start: int) -> InvalidInput:
    """The same refusal with the row's place in its file, from 1, where it told the place in a chunk, from 0."""
    if error.row is None:
        return InvalidInput(f"{name}: {error}", field=error.field)
    row = start + error.row
    return InvalidInput(told(error, f"{name}, row {row + 1}"), field=error.field, row=row)


def told(error: InvalidInput, place: str) -> str:
    """What a refusal says, with the place of its row in words of the caller."""
    reason = re.sub(r"^(row|image) \d+[,:]? ", "", str(error))
    return f"{place}{', ' if reason.startswith('column') else ': '}{reason}"


def _frames(path: Path, name: str, wanted: set[str], rows: int) -> Iterator[pl.DataFrame]:
    """Tables of at most so many rows and of those wanted columns that there are."""
    try:
        if path.name.lower().endswith((".parquet", ".pq")):
            yield from _parquet(path, name, wanted, rows)
        else:
            yield from _text(path, name, wanted, rows)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ReadError(f"{name} is not a gzip file, or a damaged one: {error}.") from None
    except UnicodeDecodeError:
        raise ReadError(f"{name} is not UTF-8 text: save it as UTF-8.") from None
    except OSError as error:
        raise ReadError(f"{name} cannot be read: {error.strerror or error}.") from None


def _parquet(path: Path, name: str, wanted: set[str], rows: int) -> Iterator[pl.DataFrame]:
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    try:
        # Read ahead, or over all row groups in one call, Arrow holds the whole file in the end.
        with pq.ParquetFile(path, buffer_size=_PAGES, pre_buffer=False) as file:
            columns = [column for column in file.schema_arrow.names if column in wanted]
            for group in range(file.num_row_groups):
                for batch in file.iter_batches(rows, row_groups=[group], columns=columns, use_threads=False):
                    yield _polars(batch)
    except (pa.ArrowException, pl.exceptions.PolarsError) as error:
        raise ReadError(f"{name} is not a Parquet file, or a damaged one: {_first_line(error)}.") from None


def _text(path: Path, name: str, wanted: set[str], rows: int) -> Iterator[pl.DataFrame]:
    """Separated values as text, by the rules of `readers.read_table`: stripped, and empty values are nulls."""
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    separator = next(separator for suffix, separator in _SEPARATORS.items() if path.name.lower().endswith(suffix))
    header = _header(path, name, separator)
    places = [str(place) for place in range(len(header))]
    kept = {place: column for place, column in zip(places, header, strict=True) if column in wanted}
    with opened(path) as stream:
        text = _Text(stream, name)
        try:
            reader = arrow_csv.open_csv(
                text,
                read_options=arrow_csv.ReadOptions(block_size=_BLOCK, column_names=places, skip_rows_after_names=1),
                parse_options=arrow_csv.ParseOptions(delimiter=separator, newlines_in_values=True),
                convert_options=arrow_csv.ConvertOptions(
                    column_types=dict.fromkeys(places, pa.string()), null_values=[], include_columns=[*kept]
                ),
            )
            for batch in reader:
                frame = _polars(batch).rename(kept)
                yield from frame.select(pl.all().str.strip_chars().replace("", None)).iter_slices(rows)
        except pa.ArrowInvalid as error:
            if "UTF8" in str(error):
                raise ReadError(f"{name} is not UTF-8 text: save it as UTF-8.") from None
            fault = _bad_line(path, name, separator, len(header))
            raise ReadError(fault or f"{name}: {_first_line(error)}.") from None
    # Arrow lets an unclosed quotation mark swallow the rest of the file, which leaves an odd number of them
    if text.quotes % 2 and (fault := _bad_line(path, name, separator, len(header))):
        raise ReadError(fault)


def _header(path: Path, name: str, separator: str) -> list[str]:
    with opened(path) as stream:
        lines = csv.reader(_decoded_text(stream, name), delimiter=separator, strict=True)
        try:
            names = [one.strip() for one in next(lines, [])]
        except csv.Error as error:
            raise ReadError(f"{name}: the header cannot be read: {error}.") from None
    if not names:
        raise ReadError(f"{name} is empty: its first line must name the columns.")
    if repeated := sorted({one for one in names if names.count(one) > 1}):
        raise ReadError(f"{name}: the header repeats {', '.join(map(repr, repeated))}: each column needs its own name.")
    return names


def _bad_line(path: Path, name: str, separator: str, width: int) -> str:
    """Say which line is at fault, slowly; empty: none is."""
    with opened(path) as stream:
        lines = csv.reader(_decoded_text(stream, name), delimiter=separator, strict=True)
        line = 1
        try:
            for row in lines:
                if row and len(row) != width:
                    return f"{name}, line {line}: {len(row)} of {width} values: a line must have as many as the header."
                line = lines.line_num + 1
        except csv.Error as error:
            # the csv module also refuses what Arrow takes (long fields), so only this one of its errors counts
            if "unexpected end of data" in str(error):
                return f"{name}, line {line}: a quotation mark opens here and is never closed."
    return ""


def _decoded_text(stream: IO[bytes], name: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BufferedReader(_Text(stream, name)), encoding="utf-8", newline="")


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """A file, unpacked if its name says that it is gzipped."""
    with path.open("rb") as file:
        if path.name.lower().endswith(".gz"):
            with gzip.GzipFile(fileobj=file) as unpacked:
                yield unpacked  # type: ignore[misc]  # it reads as files do
        else:
            yield file


class _Text(io.RawIOBase):
    """A text file from its header on, whose last line ends.

    Attributes:
        quotes: How many quotation marks were read.
    """

    def __init__(self, stream: IO[bytes], name: str) -> None:
        super().__init__()
        self._stream, self._name = stream, name
        self._begun = False
        self._last = b"\n"
        self.quotes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        room = len(buffer)
        data = self._stream.read(room)
        if not self._begun:
            data = data.removeprefix(_BOM)
            while data and not (data := data.lstrip(b"\r\n")):
                data = self._stream.read(room)
            self._begun = True
        if not data and self._last not in b"\r\n":
            data = b"\n"  # Arrow takes a header without a line end for a row that was cut
        if b"\0" in data:
            raise ReadError(f"{self._name} is not text: it has a zero byte.")
        self.quotes += data.count(b'"')
        self._last = data[-1:] or b"\n"
        buffer[: len(data)] = data
        return len(data)


def _polars(batch: Any) -> pl.DataFrame:
    frame = pl.from_arrow(batch)
    assert isinstance(frame, pl.DataFrame)
    return frame


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")
