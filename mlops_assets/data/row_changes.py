"""Which rows differ between two versions of a table, matched by key.

Belongs here: the comparison, of tables up to `LARGEST`, and its sentences. Does not: reading and keeping tables.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import polars as pl

from mlops_assets.data.readers import read_table
from mlops_assets.errors import MlopsError

if TYPE_CHECKING:
    from mlops_assets.oxen.repository import Repository

LARGEST: Final = 256 << 20
"""Bytes of a version's file up to which rows are compared. Both versions are held in memory as text: two of 128 MB took
1.8 GB at the peak, 14 times the size of one."""


class NotComparable(MlopsError):
    """Rows cannot be matched by the key column, or the tables are too large for it."""


def diff_rows(
    repository: Repository, left: str, right: str, path: str, key: str, *, cache: Path, largest: int = LARGEST
) -> RowChanges:
    """Compare the rows of a table in two versions of a repository.

    Args:
        repository: The repository.
        left: The earlier version: a branch or a full commit id.
        right: The later one.
        path: The table's path in both.
        key: The column whose value tells which row is which.
        cache: Where verified copies of versions are kept.
        largest: Bytes of a version's file beyond which nothing is read.

    Raises:
        NotComparable: A version is larger, or the key column is missing, or has nulls or a value twice.
        PathNotFound: A version has no such file.
        ReadError: A version cannot be read as a table.
        RevisionNotFound: There is no such version.
    """
    versions = [repository.resolve(revision) for revision in (left, right)]
    for version in versions:
        size = sum(entry.bytes for entry in repository.entries(path, version))
        if size > largest:
            raise NotComparable(
                f"{path} has {size >> 20} MB in {version[:12]}, and up to {largest >> 20} MB are compared row by row; "
                "compare parts of it, or allow more where there is memory for 14 times as much"
            )
    before, after = (read_table(repository.materialize(path, version, cache)) for version in versions)
    return RowChanges.between(before, after, key)


@dataclass(frozen=True)
class RowChanges:
    """The difference of two tables.

    Attributes:
        key: Name of the key column.
        added: Keys of the rows that only the later table has, as text.
        removed: Keys of the rows that only the earlier table has, as text.
        changed: One row per changed row: the key as `key`, and `<COLUMN` before and `>COLUMN` after.
        per_column: Column to the number of rows that changed in it, the most first; only columns that changed.
        columns_added: Columns that only the later table has.
        columns_removed: Columns that only the earlier table has.
    """

    key: str
    added: pl.Series
    removed: pl.Series
    changed: pl.DataFrame
    per_column: dict[str, int]
    columns_added: list[str]
    columns_removed: list[str]

    @classmethod
    def between(cls, before: pl.DataFrame, after: pl.DataFrame, key: str) -> RowChanges:
        """Compare two tables.

        Raises:
            NotComparable: The key column is missing in one of them, or its values are null or not unique.
        """
        for frame, which in ((before, "earlier"), (after, "later")):
            _require_key(frame, key, which)
        common = [name for name in after.columns if name in before.columns and name != key]
        other_types = [name for name in common if before[name].dtype != after[name].dtype]
        left, right = (frame.with_columns(pl.col(key, *other_types).cast(pl.String)) for frame in (before, after))
        both = left.select(pl.col(key).alias("key"), *[pl.col(name).alias(f"<{name}") for name in common]).join(
            right.select(pl.col(key).alias("key"), *[pl.col(name).alias(f">{name}") for name in common]),
            on="key",
            how="inner",
            maintain_order="left",
        )
        differs = {name: both[f"<{name}"].ne_missing(both[f">{name}"]) for name in common}
        counts = {name: int(mask.sum()) for name, mask in differs.items()}
        changed = both.clear()
        if common:
            changed = both.filter(pl.any_horizontal(list(differs.values())))
        return cls(
            key=key,
            added=right.join(left, on=key, how="anti", maintain_order="left")[key],
            removed=left.join(right, on=key, how="anti", maintain_order="left")[key],
            changed=changed,
            per_column={name: count for name, count in sorted(counts.items(), key=lambda item: -item[1]) if count},
            columns_added=[name for name in after.columns if name not in before.columns],
            columns_removed=[name for name in before.columns if name not in after.columns],
        )

    def lines(self, *, rows: int, columns: int, length: int) -> Iterator[str]:
        """Tell the difference to a person.

        Args:
            rows: Changed rows, and keys of added and removed rows, that are shown at most.
            columns: Columns that are shown at most, of the table and of a row.
            length: Characters of a value that are shown at most.
        """
        for verb, names in (("added", self.columns_added), ("removed", self.columns_removed)):
            if names:
                yield f"columns {verb}: {_some(names, columns)}"
        for verb, keys in (("added", self.added), ("removed", self.removed)):
            if len(keys):
                yield f"rows {verb}: {len(keys)} ({self.key} {_some(keys.head(rows).to_list(), rows, len(keys))})"
        if self.changed.is_empty():
            if not (self.columns_added or self.columns_removed or len(self.added) or len(self.removed)):
                yield "the same rows, in another order or written differently"
            return
        where = [f"{name} in {count}" for name, count in self.per_column.items()]
        yield f"rows changed: {self.changed.height} ({_some(where, columns)})"
        for row in self.changed.head(rows).iter_rows(named=True):
            pairs = {name: (_cell(row[f"<{name}"], length), _cell(row[f">{name}"], length)) for name in self.per_column}
            told = [
                f"{name}: {old} -> {new}"
                for name, (old, new) in pairs.items()
                if repr(row[f"<{name}"]) != repr(row[f">{name}"])  # nan differs from itself
            ]
            yield f"  {self.key} {_cell(row['key'], length)}  {_some(told, columns)}"
        if self.changed.height > rows:
            yield f"  ... and {self.changed.height - rows} more"


def _require_key(frame: pl.DataFrame, key: str, which: str) -> None:
    if key not in frame.columns:
        raise NotComparable(f"the {which} version has no key column '{key}' (its columns: {_some(frame.columns, 12)})")
    if frame[key].has_nulls():
        raise NotComparable(f"the {which} version has rows without a value in the key column '{key}'")
    if frame[key].is_duplicated().any():
        raise NotComparable(f"the {which} version has several rows of one key in column '{key}'")


def _some(names: list[str], limit: int, total: int | None = None) -> str:
    total = len(names) if total is None else total
    shown = ", ".join(names[:limit])
    return shown if total <= limit else f"{shown}, and {total - limit} more"


def _cell(value: object, length: int) -> str:
    text = "(empty)" if value is None else str(value)
    return text if len(text) <= length else f"{text[: length - 3]}..."
