"""Read-only access to an LMDB file through plain reads.

Oxen keeps its Merkle tree in LMDB. liblmdb maps the file into memory, so a truncated or scribbled file kills the
process that reads it (SIGBUS); here every page is fetched with ``pread`` and checked, and damage is an ordinary error.
It is as fast for the handful of look-ups that a version needs, and takes none of LMDB's locks.

Belongs here: pages, B-tree search, the snapshot rule. Not here: what the values mean (see ``tree``).
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from types import TracebackType
from typing import Self

from mlops_assets.oxen.errors import StoreCorrupt, TreeFormatError

_MAGIC, _DATA_VERSION = 0xBEEFC0DE, 1
_META = struct.Struct(
    "<QHHHH II QQ IHHQQQQQ IHHQQQQQ QQ"
)  # page header, magic, version, map, free and main db, last, txn
_DB = struct.Struct("<IHHQQQQQ")  # pad, flags, depth, branch, leaf and overflow pages, entries, root
_HEADER = struct.Struct("<QHHHH")  # page number, pad, flags, lower, upper
_NODE = struct.Struct("<HHHH")  # size or page number in three parts, key size
_BRANCH, _LEAF, _OVERFLOW, _META_FLAG = 0x01, 0x02, 0x04, 0x08
_BIG, _SUB_DB = 0x01, 0x02
_UNKNOWN_DB_FLAGS = 0x02 | 0x04 | 0x08  # reverse keys, duplicates, integer keys: another order than memcmp
_NOWHERE = 2**64 - 1  # root of an empty tree
_MAX_DEPTH = 32


class Snapshot:
    """One consistent state of an LMDB database, for as long as ``overtaken`` is false.

    Args:
        file: ``data.mdb``.
        database: Name of the sub-database to read.

    Raises:
        StoreCorrupt: The file is damaged.
        TreeFormatError: The file is not LMDB of the known version.
        FileNotFoundError: There is no such file.
    """

    def __init__(self, file: Path, database: bytes) -> None:
        self._file = file
        self._pages: dict[int, bytes] = {}
        self._fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._page_size, main_root, self._last_page, self._transaction = self._meta()
            self._root = self._database(self._search(main_root, database, sub_database=True))
        except BaseException:
            os.close(self._fd)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        os.close(self._fd)

    def get(self, key: bytes) -> bytes | None:
        """Return the value of ``key``, or None."""
        return None if self._root is None else self._search(self._root, key)

    def overtaken(self) -> bool:
        """Whether enough was written since that pages read here may have been reused.

        LMDB copies on write, and transaction n + 3 is the first that may overwrite a page of transaction n; it may be
        under way as soon as n + 2 is visible.
        """
        return self._meta()[3] > self._transaction + 1

    def _database(self, record: bytes | None) -> int | None:
        if record is None:
            return None
        if len(record) != _DB.size:
            raise self._damaged("its directory of databases is malformed")
        _, flags, _, _, _, _, _, root = _DB.unpack(record)
        if flags & _UNKNOWN_DB_FLAGS:
            raise TreeFormatError(
                f"{self._file} orders its keys in an unknown way (flags {flags:#x}); "
                "use the oxenai version that this package was tested with."
            )
        return None if root == _NOWHERE else int(root)

    def _meta(self) -> tuple[int, int | None, int, int]:
        """Return (page size, root of the main database, last page, transaction) of the newer meta page."""
        best: tuple[int, int | None, int, int] | None = None
        page_size = 0
        for number in (0, 1):
            raw = os.pread(self._fd, _META.size, number * page_size)
            if len(raw) < _META.size:
                raise self._damaged("it ends within its first pages")
            page, _, flags, _, _, magic, version, _, _, *rest = _META.unpack(raw)
            free_pad, root, last_page, transaction = rest[0], rest[15], rest[16], rest[17]
            if magic != _MAGIC or not flags & _META_FLAG or page != number:
                raise self._damaged("it does not begin like an LMDB file")
            if version != _DATA_VERSION:
                raise TreeFormatError(
                    f"{self._file} is LMDB data version {version}, and only version {_DATA_VERSION} is known; "
                    "use the oxenai version that this package was tested with."
                )
            if free_pad not in {1 << n for n in range(9, 17)}:
                raise self._damaged(f"its page size is given as {free_pad}")
            page_size = free_pad
            if best is None or transaction > best[3]:
                best = (page_size, None if root == _NOWHERE else root, last_page, transaction)
        assert best is not None
        return best

    def _page(self, number: int) -> bytes:
        page = self._pages.get(number)
        if page is None:
            page = self._read(number, 1)
            self._pages[number] = page
        return page

    def _read(self, number: int, count: int) -> bytes:
        if not 2 <= number <= self._last_page or count > self._last_page - number + 1:
            raise self._damaged(f"it refers to page {number}, which it does not have")
        if (number + count) * self._page_size > os.fstat(self._fd).st_size:  # before memory is taken for it
            raise self._damaged(f"it ends before page {number + count - 1}")
        raw = os.pread(self._fd, count * self._page_size, number * self._page_size)
        if _HEADER.unpack_from(raw)[0] != number:
            raise self._damaged(f"page {number} is overwritten")
        return raw

    def _search(self, root: int | None, key: bytes, *, sub_database: bool = False) -> bytes | None:
        if root is None:
            return None
        try:
            number = root
            for _ in range(_MAX_DEPTH):
                page = self._page(number)
                _, _, flags, lower, _ = _HEADER.unpack_from(page)
                count = (lower - _HEADER.size) // 2
                if flags & _BRANCH:
                    # the first key of a branch page stands for "everything below" and is empty
                    index = self._position(page, key, 1, count, after_equal=True) - 1
                    low, high, top, _ = _NODE.unpack_from(page, self._offset(page, index))
                    number = low | high << 16 | top << 32
                elif flags & _LEAF:
                    index = self._position(page, key, 0, count, after_equal=False)
                    if index == count or self._key(page, index) != key:
                        return None
                    return self._value(page, index, sub_database=sub_database)
                else:
                    raise self._damaged(f"page {number} is of no known kind")
        except (struct.error, IndexError) as error:
            raise self._damaged("a page points outside itself") from error
        raise self._damaged("its pages form a circle")

    def _position(self, page: bytes, key: bytes, low: int, high: int, *, after_equal: bool) -> int:
        while low < high:
            middle = (low + high) // 2
            found = self._key(page, middle)
            if found < key or (after_equal and found == key):
                low = middle + 1
            else:
                high = middle
        return low

    @staticmethod
    def _offset(page: bytes, index: int) -> int:
        return page[_HEADER.size + 2 * index] | page[_HEADER.size + 2 * index + 1] << 8

    def _key(self, page: bytes, index: int) -> bytes:
        offset = self._offset(page, index)
        size = _NODE.unpack_from(page, offset)[3]
        return page[offset + _NODE.size : offset + _NODE.size + size]

    def _value(self, page: bytes, index: int, *, sub_database: bool) -> bytes:
        offset = self._offset(page, index)
        low, high, flags, key_size = _NODE.unpack_from(page, offset)
        if bool(flags & _SUB_DB) != sub_database:
            raise self._damaged("a record is of the wrong kind")
        size, start = low | high << 16, offset + _NODE.size + key_size
        if not flags & _BIG:
            value = page[start : start + size]
        else:
            number = int.from_bytes(page[start : start + 8], "little")
            count = (_HEADER.size + size + self._page_size - 1) // self._page_size
            pages = self._read(number, count)
            if not _HEADER.unpack_from(pages)[2] & _OVERFLOW:
                raise self._damaged(f"page {number} is of the wrong kind")
            value = pages[_HEADER.size : _HEADER.size + size]
        if len(value) != size:
            raise self._damaged("a record reaches beyond its page")
        return value

    def _damaged(self, what: str) -> StoreCorrupt:
        return StoreCorrupt(f"{self._file} is damaged ({what}); restore the repository's .oxen folder from a backup.")
