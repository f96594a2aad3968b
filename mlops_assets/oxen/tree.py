"""Versions of a repository, read from its Merkle tree without Oxen: commits, files, digests, differences.

Oxen (format ``V0_25_0``, oxenai 0.53 to 0.65) keeps one LMDB record pair per node: key = hash, little-endian, and a tag
byte; tag 0 holds the node, tag 1 its children as MessagePack. A commit's child is the root directory, a directory's
children are vnodes (buckets), a vnode's children are files and directories. File contents lie whole and uncompressed
under ``versions/files/<first two digits>/<the rest>/data``, named by their xxh3-128 hash without zero padding.

Belongs here: reading that. Not here: writing, which only Oxen itself does (``worker``), and where branches point, which
is in RocksDB (``Repository.heads``).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import msgpack  # type: ignore[import-untyped]

from mlops_assets.oxen.errors import OxenError, PathNotFound, RevisionNotFound, StoreCorrupt, TreeFormatError
from mlops_assets.oxen.pages import Snapshot

FORMAT: Final = "V0_25_0"
TESTED_OXENAI: Final = "0.65.1"
_NODE, _CHILDREN = 0, 1
_COMMIT = 0
_ID = re.compile(r"[0-9a-f]{28,32}")  # Oxen prints hashes without zero padding
_TOKEN = re.compile(r" \[mlops [0-9a-f]{16}\]\Z")
_ATTEMPTS = 20  # readings that writers overtook before giving up; each needs two commits within milliseconds
_MEMO_SIZE = 100_000

T = TypeVar("T")


class Commit(NamedTuple):
    """One commit; ``timestamp`` is aware, ``parents`` are commit ids."""

    id: str
    message: str
    author: str
    email: str
    timestamp: datetime
    parents: tuple[str, ...]


class Entry(NamedTuple):
    """One file of a commit: path from the root, xxh3-128 of its content (32 hexadecimal digits), size in bytes."""

    path: str
    hash: str
    bytes: int


class TableInfo(NamedTuple):
    """What Oxen found in a tabular file when it was added: (name, Polars-like dtype) of each column, number of rows."""

    columns: tuple[tuple[str, str], ...]
    rows: int


class FileDiff(NamedTuple):
    """Paths of files that differ between two commits, each sorted."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]


class _Lists(NamedTuple):
    added: list[str]
    removed: list[str]
    changed: list[str]


class _File(NamedTuple):
    hash: str
    bytes: int
    kind: str
    metadata: Any


class _Dir(NamedTuple):
    node: int


_Item = _File | _Dir
_digests: dict[int, str | None] = {}  # directory node -> digest; node hashes are unique per content, process-wide


def commit_id(text: str) -> str | None:
    """Return the commit id that ``text`` is, as Oxen prints it (no zero padding), or None if it is not a full id."""
    return format(int(text, 16), "x") if _ID.fullmatch(text) else None


def signed(message: str, token: str) -> str:
    """Append a token of 16 hexadecimal digits to a message, as Oxen derives ids from message and second alone."""
    return f"{message} [mlops {token}]"


class Tree:
    """The committed versions of one repository.

    Every method takes full commit ids and reads one consistent state, beside any writer.

    Args:
        store: The repository's ``.oxen`` directory.
    """

    def __init__(self, store: Path) -> None:
        self._store = store

    def has_commit(self, commit: str) -> bool:
        """Return whether a commit of this full id exists."""
        name = commit_id(commit)
        if name is None or not self._file().exists():
            return False
        return self._read(lambda reader: reader.record(int(name, 16), _NODE) is not None)

    def log(self, commit: str, limit: int | None = None) -> list[Commit]:
        """Return a commit and its ancestors, newest first (every commit before its parents on a linear history)."""
        return self._read(lambda reader: reader.log(commit, limit))

    def digest(self, commit: str, path: str) -> str:
        """Return a digest of the content at ``path``: the same for equal names and bytes in any repository.

        A file's is ``file-`` and its xxh3-128; a directory's is ``dir-`` and half of the SHA-256 over its children,
        sorted by name, each as name, NUL, digest and line feed. Directories without files do not count: Oxen cannot add
        them. Both forms are valid Dagster tag values and file names.
        """
        return self._read(lambda reader: reader.digest(commit, path))

    def entries(self, commit: str, path: str = "") -> list[Entry]:
        """Return the files at or below ``path``, sorted by path."""
        return self._read(lambda reader: reader.entries(commit, path))

    def table(self, commit: str, path: str) -> TableInfo | None:
        """Return the columns and row count of a tabular file, None for any other file or a directory."""
        return self._read(lambda reader: reader.table(commit, path))

    def diff(self, left: str, right: str, path: str = "") -> FileDiff:
        """Compare two commits at or below ``path``; in a commit without that path, it counts as empty."""
        return self._read(lambda reader: reader.diff(left, right, path))

    def blob(self, content_hash: str) -> Path:
        """Return where the content of this hash lies, padded or not; the unpadded place if there is none."""
        places = [
            self._store / "versions" / "files" / name[:2] / name[2:] / "data"
            for name in (content_hash.lstrip("0") or "0", content_hash)
        ]
        return next((place for place in places if place.exists()), places[0])

    def _file(self) -> Path:
        return self._store / "tree" / "nodes_lmdb" / "data.mdb"

    def _read(self, question: Callable[[_Reader], T]) -> T:
        for _ in range(_ATTEMPTS):
            try:
                with Snapshot(self._file(), b"nodes") as snapshot:
                    reader = _Reader(snapshot, self._store)
                    try:
                        answer = question(reader)
                    except OxenError:
                        if snapshot.overtaken():
                            continue
                        raise
                    if not snapshot.overtaken():
                        if len(_digests) > _MEMO_SIZE:
                            _digests.clear()
                        _digests.update(reader.fresh)
                        return answer
            except FileNotFoundError:
                if any(self._store.glob("history/*")):
                    raise StoreCorrupt(
                        f"{self._file()} is missing although there are commits; restore {self._store} from a backup."
                    ) from None
                raise RevisionNotFound(f"{self._store.parent} has no commits yet; commit a file first.") from None
        raise OxenError(f"{self._store.parent} is written to faster than it can be read; try again.")


class _Reader:
    """Answers questions from one snapshot."""

    def __init__(self, snapshot: Snapshot, store: Path) -> None:
        self._snapshot = snapshot
        self._store = store
        self.fresh: dict[int, str | None] = {}

    def record(self, node: int, tag: int) -> bytes | None:
        return self._snapshot.get(node.to_bytes(16, "little") + bytes([tag]))

    def log(self, commit: str, limit: int | None) -> list[Commit]:
        found: list[Commit] = []
        waiting = [self._commit(commit)]
        known = {waiting[0].id}
        while waiting and (limit is None or len(found) < limit):
            waiting.sort(key=lambda each: each.timestamp)
            newest = waiting.pop()
            found.append(newest)
            waiting += [self._commit(parent) for parent in newest.parents if parent not in known]
            known.update(newest.parents)
        return found

    def find(self, commit: str, path: str) -> _Item:
        root = self._children(int(self._commit(commit).id, 16)).get("")
        if root is None:
            raise self._unknown("the root directory")
        item = root
        for part in filter(None, path.split("/")):
            child = self._children_of_dir(item).get(part) if isinstance(item, _Dir) else None
            if child is None:
                raise self._no_path(commit, path)
            item = child
        return item

    def digest(self, commit: str, path: str) -> str:
        digest = self._digest(self.find(commit, path))
        if digest is None and path.strip("/"):
            raise self._no_path(commit, path)
        return digest or f"dir-{hashlib.sha256().hexdigest()[:32]}"

    def entries(self, commit: str, path: str) -> list[Entry]:
        found = sorted(self.walk(path.strip("/"), self.find(commit, path)))
        if not found and path.strip("/"):
            raise self._no_path(commit, path)
        return found

    def _no_path(self, commit: str, path: str) -> PathNotFound:
        return PathNotFound(f"commit {commit} of {self._store.parent} holds no {path!r}; check its spelling.")

    def walk(self, path: str, item: _Item) -> Iterator[Entry]:
        if isinstance(item, _File):
            yield Entry(path.strip("/"), item.hash, item.bytes)
            return
        for name, child in self._children_of_dir(item).items():
            yield from self.walk(f"{path}/{name}", child)

    def table(self, commit: str, path: str) -> TableInfo | None:
        item = self.find(commit, path)
        if isinstance(item, _Dir) or item.kind != "tabular" or not item.metadata:
            return None
        try:
            ((_, rows, (_, columns, *_)),) = item.metadata
            return TableInfo(tuple((str(name), str(dtype)) for name, dtype, *_ in columns), int(rows))
        except (TypeError, ValueError) as error:
            raise self._unknown("the metadata of a table") from error

    def diff(self, left: str, right: str, path: str) -> FileDiff:
        sides: list[dict[str, _Item]] = []
        for commit in (left, right):
            try:
                sides.append({"": self.find(commit, path)})
            except PathNotFound:
                sides.append({})
        found = _Lists([], [], [])
        self._compare(path, sides[0], sides[1], found)
        return FileDiff(*(tuple(sorted(names)) for names in found))

    def _compare(self, path: str, left: dict[str, _Item], right: dict[str, _Item], found: _Lists) -> None:
        for name in left.keys() | right.keys():
            below = f"{path}/{name}".strip("/")
            one, two = left.get(name), right.get(name)
            if isinstance(one, _Dir) and isinstance(two, _Dir):
                if one.node != two.node:
                    self._compare(below, *self._differing(one, two), found)
            elif isinstance(one, _File) and isinstance(two, _File):
                if one.hash != two.hash:
                    found.changed.append(below)
            else:
                found.removed.extend(entry.path for entry in (self.walk(below, one) if one else ()))
                found.added.extend(entry.path for entry in (self.walk(below, two) if two else ()))

    def _differing(self, one: _Dir, two: _Dir) -> tuple[dict[str, _Item], dict[str, _Item]]:
        """Return the children of both directories that are not in a bucket common to both."""
        left, right = self._buckets(one), self._buckets(two)
        common = set(left) & set(right)
        return (
            self._merged(bucket for bucket in left if bucket not in common),
            self._merged(bucket for bucket in right if bucket not in common),
        )

    def _digest(self, item: _Item) -> str | None:
        if isinstance(item, _File):
            return f"file-{item.hash}"
        known = _digests.get(item.node, self.fresh.get(item.node, ""))
        if known != "":
            return known
        total = hashlib.sha256()
        empty = True
        for name, child in sorted(self._children_of_dir(item).items()):
            digest = self._digest(child)
            if digest is not None:
                total.update(f"{name}\0{digest}\n".encode())
                empty = False
        self.fresh[item.node] = None if empty else f"dir-{total.hexdigest()[:32]}"
        return self.fresh[item.node]

    def _commit(self, text: str) -> Commit:
        name = commit_id(text)
        record = None if name is None else self.record(int(name, 16), _NODE)
        if name is None or record is None:
            raise RevisionNotFound(
                f"{self._store.parent} has no commit {text!r}; give the full id of a commit, or resolve a branch first."
            )
        if record[0] != _COMMIT:
            raise RevisionNotFound(f"{text} is no commit of {self._store.parent}; give the full id of a commit.")
        fields = self._payloads(record[21 : 21 + int.from_bytes(record[17:21], "little")])[0]
        try:
            _, _, parents, message, author, email, time = fields
            year, day, hour, minute, second, nanosecond, *offset = time
            zone = timezone(timedelta(hours=offset[0], minutes=offset[1], seconds=offset[2]))
            moment = datetime(year, 1, 1, hour, minute, second, nanosecond // 1000, zone) + timedelta(days=day - 1)
            ids = tuple(format(int.from_bytes(parent, "big"), "x") for parent in parents)
        except (TypeError, ValueError, IndexError, OverflowError) as error:
            raise self._unknown("a commit") from error
        return Commit(name, _TOKEN.sub("", message), author, email, moment, ids)

    def _children_of_dir(self, item: _Dir) -> dict[str, _Item]:
        return self._merged(self._buckets(item))

    def _buckets(self, item: _Dir) -> list[int]:
        found = self._payloads(self._required(item.node))
        if any(fields[1] != "VNode" for fields in found):
            raise self._unknown("a directory")
        return [int.from_bytes(fields[0], "big") for fields in found]

    def _merged(self, buckets: Iterator[int] | list[int]) -> dict[str, _Item]:
        found: dict[str, _Item] = {}
        for bucket in buckets:
            found.update(self._children(bucket))
        return found

    def _children(self, node: int) -> dict[str, _Item]:
        found: dict[str, _Item] = {}
        for fields in self._payloads(self._required(node)):
            try:
                kind, name = fields[0], fields[1]
                if name in (".", "..") or "/" in name or "\0" in name:  # it will become part of a path on disk
                    raise self._unreadable()
                if kind == "File":
                    found[name] = _File(fields[3].hex(), fields[5], fields[9], fields[10])
                elif kind == "Dir":
                    found[name] = _Dir(int.from_bytes(fields[2], "big"))
                else:
                    raise self._unknown(f"a node of kind {kind!r}")
            except (TypeError, IndexError, AttributeError) as error:
                raise self._unknown("a file or directory") from error
        return found

    def _required(self, node: int) -> bytes:
        record = self.record(node, _CHILDREN)
        if record is None:
            raise StoreCorrupt(
                f"the tree of {self._store.parent} lacks node {node:032x}; restore {self._store} from a backup."
            )
        return record

    def _payloads(self, raw: bytes) -> list[list[Any]]:
        """Unpack the concatenated ``[{tag: fields}]`` of a record."""
        unpacker = msgpack.Unpacker(raw=False, strict_map_key=False)
        unpacker.feed(raw)
        found: list[list[Any]] = []
        try:
            for ((tag, fields),) in (each[0].items() for each in unpacker):
                if tag != FORMAT:
                    raise self._unknown(f"the tag {tag!r}")
                found.append(fields)
            complete = unpacker.tell() == len(raw)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, msgpack.UnpackException) as error:
            raise self._unreadable() from error
        if not complete:
            raise self._unreadable()
        return found

    def _unreadable(self) -> StoreCorrupt:
        return StoreCorrupt(f"the tree of {self._store.parent} is damaged; restore {self._store} from a backup.")

    def _unknown(self, what: str) -> TreeFormatError:
        return TreeFormatError(
            f"the tree of {self._store.parent} has {what} in a form that is not known here (known: {FORMAT}, tested "
            f"with oxenai {TESTED_OXENAI}); use that version of oxenai."
        )
