"""The answer of a database to a query, as a file.

Belongs here: asking so that neither the database nor this machine's memory is hurt, and types. Does not belong here:
where the database's address comes from, and what the table is for.

A database gives rows in whatever order it likes. They are written in the order of their key, so that the same rows are
the same bytes: an unchanged table makes no new version. Neither the rows nor the sorting need more memory than a batch
and the column of the keys: batches go to disk, and the file is made of them piece by piece.

What a driver says may hold parts of the address, so every error here is made of its first line without them, and has no
other error behind it.
"""

from __future__ import annotations

import gzip
import json
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, date, datetime, timedelta
from datetime import time as time_of_day
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import polars as pl

from mlops_assets.data.tables import PARQUET, ending, separator
from mlops_assets.errors import MlopsError

if TYPE_CHECKING:
    import sqlalchemy as sa

BATCH: Final = 20_000
"""Rows that are in memory as Python's objects at once."""

PIECE: Final = 1 << 19
"""Rows that are sorted and written at once."""

GROUP: Final = 1 << 18
"""Rows of a row group of Parquet; a piece is a whole number of them."""

_READ_ONLY: Final = {"postgresql": "SET TRANSACTION READ ONLY", "sqlite": "PRAGMA query_only = ON"}
_TICKS: Final = 10_000  # of SQLite's virtual machine between two looks at the clock
_SHOWN: Final = 30  # columns
_DIGITS: Final = 38  # of a decimal


class QueryError(MlopsError):
    """A database cannot be asked, or its answer is no table that a pipeline can use."""


def shown(url: str) -> str:
    """The address without user, password and options, which may be secrets.

    Raises:
        QueryError: It is no address.
    """
    parsed = _parsed(url)
    host = f"{parsed.host or ''}{f':{parsed.port}' if parsed.port else ''}"
    return f"{parsed.get_backend_name()}://{host}/{parsed.database or ''}"


def run_query(
    sql: str,
    url: str,
    target: Path,
    *,
    key: str,
    needed: Mapping[str, str],
    timeout: float,
    on_progress: Callable[[int], None] = lambda _rows: None,
) -> int:
    """Write what a query gives, in the order of its key, as the ending of the target's name says.

    Decimals keep their digits where the database says how many there are, and are floats elsewhere; times with a zone
    become UTC; intervals become seconds, JSON and UUIDs text.

    Args:
        sql: One statement that gives rows.
        url: SQLAlchemy's address of the database.
        target: The file, ending in .csv, .csv.gz, .tsv, .tsv.gz, .parquet or .pq.
        key: Column that identifies a row.
        needed: Columns that must be there, by what they are.
        timeout: Seconds that the database may take for a statement.
        on_progress: Called with the rows that have arrived.

    Returns:
        How many rows there are.

    Raises:
        QueryError: The database cannot be reached or refuses the query; the answer is empty, lacks a column, repeats
            one, has a key that is missing or there twice, or a type that cannot be kept.
    """
    with TemporaryDirectory(prefix=".query-", dir=target.parent) as place:
        keys: list[pl.Series] = []
        batches: list[Path] = []
        types: dict[str, pl.DataType] = {}
        with (
            _plainly(url, timeout) as parsed,
            closing(_batches(sql, parsed, timeout, {"key": key, **needed})) as frames,
        ):
            for frame in frames:
                types = {name: _common(name, types.get(name), frame[name].dtype) for name in frame.columns}
                batches.append(Path(place) / f"{len(batches)}.parquet")
                frame.sort(key).write_parquet(batches[-1], row_group_size=BATCH // 8)
                keys.append(frame[key])
                on_progress(sum(map(len, keys)))
        if not keys:
            raise QueryError(f"the query gives no rows from {shown(url)}; correct it, or leave the data as they are")
        types = {name: pl.String() if dtype == pl.Null else dtype for name, dtype in types.items()}
        ordered = pl.concat([one.cast(types[key]) for one in keys]).sort()
        _require_a_key(ordered)
        with _writer(target) as write:
            for start, end in pairwise([*ordered.gather_every(PIECE), None]):
                write(_piece(batches, types, key, start, end))
        return len(ordered)


@contextmanager
def _plainly(url: str, timeout: float) -> Iterator[sa.URL]:
    """Turn whatever goes wrong between the database and here into one sentence without a secret."""
    parsed = _parsed(url)
    try:
        yield parsed
    except MlopsError:
        raise
    except Exception as error:  # noqa: BLE001 - drivers raise what they like, and its traceback may show the address
        raise QueryError(_sentence(error, parsed, url, timeout)) from None


def _parsed(url: str) -> sa.URL:
    import sqlalchemy as sa

    try:
        parsed = sa.make_url(url)
        # The driver that the platform brings; which one SQLAlchemy takes by itself depends on its release.
        plain = parsed.drivername in {"postgres", "postgresql"}
        return parsed.set(drivername="postgresql+psycopg2") if plain else parsed
    except Exception:  # noqa: BLE001 - SQLAlchemy's own words show the address
        raise QueryError(
            "the database's address is none that SQLAlchemy knows; it looks like postgresql://user:password@host/name"
        ) from None


def _sentence(error: Exception, parsed: sa.URL, url: str, timeout: float) -> str:
    import sqlalchemy as sa

    place = shown(url)
    if isinstance(error, ModuleNotFoundError):
        return f"{place} needs the Python package '{error.name}'; install the database's driver"
    if isinstance(error, sa.exc.NoSuchModuleError):
        return f"there is no SQLAlchemy driver for {parsed.drivername}://; correct the address, or install one"
    told = str(getattr(error, "orig", None) or error)
    line = next((line.strip() for line in told.splitlines() if line.strip()), type(error).__name__)
    options = [each for value in parsed.query.values() for each in ([value] if isinstance(value, str) else value)]
    raw = url.partition("://")[2].rpartition("@")[0].partition(":")[2]
    for secret in (url, parsed.password, raw, *options):
        line = line.replace(secret, "***") if secret else line
    mend = f"make it faster, or raise `timeout` ({timeout:g} s)" if _timed_out(line) else "correct it"
    return f"the query fails on {place} ({line.rstrip('.')}); {mend}"


def _timed_out(line: str) -> bool:
    return "timeout" in line or line == "interrupted"


def _batches(
    sql: str, parsed: sa.URL, timeout: float, needed: Mapping[str, str]
) -> Generator[pl.DataFrame, None, None]:
    """The rows, some at a time."""
    import sqlalchemy as sa

    backend = parsed.get_backend_name()
    file = parsed.database if backend == "sqlite" else None
    if file and not file.startswith((":", "file:")) and not Path(file).is_file():  # SQLite would make it
        raise QueryError(f"there is no SQLite database {file}; correct the address")
    engine = sa.create_engine(parsed, poolclass=sa.NullPool)
    with engine.connect() as connection:
        if backend in _READ_ONLY:
            connection.exec_driver_sql(_READ_ONLY[backend])
        if backend == "postgresql":
            connection.exec_driver_sql(f"SET LOCAL statement_timeout = {round(timeout * 1000)}")
        elif backend == "sqlite":
            deadline = time.monotonic() + timeout
            driver: Any = connection.connection.driver_connection
            driver.set_progress_handler(lambda: time.monotonic() > deadline, _TICKS)
        # No parameters: a percent sign and a colon in the query are what they are.
        options = {"stream_results": True, "yield_per": BATCH, "no_parameters": True}
        # Closed also where it is refused: an open cursor would keep SQLite's file locked as long as the error lives.
        with closing(connection.exec_driver_sql(sql, execution_options=options)) as result:
            if not result.returns_rows:
                raise QueryError("the statement gives no rows; give one that does, such as SELECT")
            names = list(result.keys())
            _check_names(names, needed)
            scales = {column[0]: column[5] for column in result.cursor.description or ()} if result.cursor else {}
            for rows in result.partitions(BATCH):
                columns = zip(names, zip(*rows, strict=True), strict=True)
                yield pl.DataFrame([_series(name, values, scales.get(name)) for name, values in columns])


def _check_names(names: Sequence[str], needed: Mapping[str, str]) -> None:
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise QueryError(f"the query gives the column '{repeated[0]}' more than once; name each with AS")
    if not all(names):
        raise QueryError(f"column {[*names].index('') + 1} of the query has no name; give it one with AS")
    for role, column in needed.items():
        if column not in names:
            found = ", ".join(names[:_SHOWN])
            raise QueryError(f"the query gives no column '{column}' to be the {role}, but {found}; add it")


def _series(name: str, values: Sequence[Any], scale: int | None) -> pl.Series:
    """A column of one type.

    Raises:
        QueryError: Its values are of several types, or of one that a table cannot keep.
    """
    kinds = {type(value) for value in values if value is not None}
    try:
        convert, dtype = _kept(kinds, values, scale)
        if convert:
            values = [None if value is None else convert(value) for value in values]
        return pl.Series(name, values, dtype=dtype, strict=True)
    except (KeyError, OverflowError, TypeError, ValueError, pl.exceptions.PolarsError):
        found = " and ".join(sorted(kind.__name__ for kind in kinds))
        raise QueryError(
            f"column '{name}' holds {found}, which no table keeps as it is; CAST it in the query"
        ) from None


def _kept(
    kinds: set[type], values: Sequence[Any], scale: int | None
) -> tuple[Callable[[Any], Any] | None, pl.DataType]:
    """How values of these kinds become those of one type, and which.

    Raises:
        KeyError: They do not.
    """
    if kinds == {int, float}:
        return float, pl.Float64()
    if Decimal in kinds and kinds <= {Decimal, int}:
        if scale is None or not 0 <= scale <= _DIGITS:
            return float, pl.Float64()  # one more row could have more digits, and the column another type
        return _exact, pl.Decimal(_DIGITS, scale)
    if kinds == {datetime} and any(value.tzinfo for value in values if value is not None):
        return _in_utc, pl.Datetime("us", "UTC")
    (kind,) = kinds or {type(None)}
    return _KEPT[kind]


def _exact(value: Decimal | int) -> Decimal:
    exact = Decimal(value)
    if not exact.is_finite():
        raise ValueError(value)
    return exact


def _in_utc(value: datetime) -> datetime:
    if value.tzinfo is None:
        raise ValueError(value)
    return value.astimezone(UTC)


def _as_json(value: object) -> str:
    return json.dumps(value, sort_keys=True, default=str)


_KEPT: Final[Mapping[type, tuple[Callable[[Any], Any] | None, pl.DataType]]] = {
    type(None): (None, pl.Null()),
    bool: (None, pl.Boolean()),
    int: (None, pl.Int64()),
    float: (None, pl.Float64()),
    str: (None, pl.String()),
    date: (None, pl.Date()),
    datetime: (None, pl.Datetime("us")),
    time_of_day: (None, pl.Time()),
    timedelta: (timedelta.total_seconds, pl.Float64()),
    UUID: (str, pl.String()),
    dict: (_as_json, pl.String()),
    list: (_as_json, pl.String()),
}


def _common(name: str, one: pl.DataType | None, other: pl.DataType) -> pl.DataType:
    """The type of a column whose batches are of these: what it would be had they been one."""
    if one is None or one in {pl.Null, other}:
        return other
    if other == pl.Null:
        return one
    if {one, other} == {pl.Int64(), pl.Float64()}:
        return pl.Float64()
    raise QueryError(f"column '{name}' holds {one} and {other}, which no table keeps as they are; CAST it in the query")


def _require_a_key(keys: pl.Series) -> None:
    if missing := keys.null_count():
        raise QueryError(f"{missing} rows have no value in '{keys.name}', the key; leave them out, or name another key")
    if len(repeated := keys.filter(keys.is_duplicated())):
        raise QueryError(f"'{keys.name}' is the key, and {repeated[0]!r} is there more than once; name another key")


def _piece(batches: Sequence[Path], types: Mapping[str, pl.DataType], key: str, start: Any, end: Any) -> pl.DataFrame:
    """The rows from one key up to another, in order."""
    column = pl.col(key).cast(types[key])
    within = column >= start if end is None else (column >= start) & (column < end)
    scans = [
        pl.scan_parquet(batch).filter(within).select(pl.col(name).cast(dtype) for name, dtype in types.items())
        for batch in batches
    ]
    return pl.concat(scans).collect().sort(key)


@contextmanager
def _writer(target: Path) -> Iterator[Callable[[pl.DataFrame], None]]:
    """What appends pieces of one table to a file."""
    kind = ending(target.name)
    with ExitStack() as stack:
        if kind in PARQUET:
            from pyarrow import parquet  # type: ignore[import-untyped]

            opened: list[Any] = []

            def write_parquet(piece: pl.DataFrame) -> None:
                table = piece.to_arrow()
                if not opened:
                    opened.append(stack.enter_context(parquet.ParquetWriter(target, table.schema, compression="zstd")))
                opened[0].write_table(table, row_group_size=GROUP)

            yield write_parquet
            return
        stream: Any = stack.enter_context(target.open("wb"))
        if kind.endswith(".gz"):
            stream = stack.enter_context(gzip.GzipFile(fileobj=stream, mode="wb", filename="", mtime=0))

        def write_text(piece: pl.DataFrame) -> None:
            text = piece.write_csv(separator=separator(kind), include_header=stream.tell() == 0)
            stream.write(text.encode())

        yield write_text
