"""Decoding the nodes of Oxen's Merkle tree from one snapshot of its database.

Oxen (format ``V0_25_0``, oxenai 0.53 to 0.65) keeps one LMDB record pair per node: key = hash, little-endian, and a tag
byte; tag 0 holds the node, tag 1 its children as MessagePack. A commit's child is the root directory, a directory's
children are vnodes (buckets), a vnode's children are files and directories. A node never changes under its hash.

Belongs here: records and what they say. Not here: questions about versions (``tree``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgpack  # type: ignore[import-untyped]

from mlops_assets.oxen.errors import RevisionNotFound, StoreCorrupt, TreeFormatError
from mlops_assets.oxen.pages import Snapshot

FORMAT: Final = "V0_25_0"
TESTED_OXENAI: Final = "0.65.1"
_NODE, _CHILDREN = 0, 1
_COMMIT = b"\0"
_NOWHERE = (".", "..")  # a name becomes part of a path on disk
_ID = re.compile(r"[0-9a-f]{28,32}")  # Oxen prints hashes without zero padding
_TOKEN = re.compile(r" \[mlops [0-9a-f]{16}\]\Z")


class Entry(NamedTuple):
    """One file of a commit: path from the root, xxh3-128 of its content (32 hexadecimal digits), size in bytes."""

    path: str
    hash: str
    bytes: int


class File(NamedTuple):
    """A file node: xxh3-128 of its content (32 hexadecimal digits), size in bytes, kind, Oxen's metadata, node hash."""

    hash: str
    size: int
    kind: str
    metadata: Any
    node: bytes


class Dir(NamedTuple):
    """A directory, by its node hash."""

    node: bytes


class Commit(NamedTuple):
    """One commit; ``timestamp`` is aware, ``parents`` are commit ids."""

    id: str
    message: str
    author: str
    email: str
    timestamp: datetime
    parents: tuple[str, ...]


Item = File | Dir


def signed(message: str, token: str) -> str:
    """Append a token of 16 hexadecimal digits to a message, as Oxen derives ids from message and second alone."""
    return f"{message} [mlops {token}]"


def commit_id(text: str) -> str | None:
    """Return the commit id that ``text`` is, as Oxen prints it (no zero padding), or None if it is not a full id."""
    return format(int(text, 16), "x") if _ID.fullmatch(text) else None


class Nodes:
    """The nodes in one snapshot.

    Args:
        snapshot: An open snapshot of ``tree/nodes_lmdb``.
        store: The repository's ``.oxen`` directory, for the words of errors.
    """

    def __init__(self, snapshot: Snapshot, store: Path) -> None:
        self._snapshot = snapshot
        self.store = store

    def known(self, commit: str) -> bool:
        """Return whether there is a node of this full id."""
        name = commit_id(commit)
        return name is not None and self._record(int(name, 16), _NODE) is not None

    def commit(self, text: str) -> Commit:
        """Return the commit of a full id, its message without the token of ``signed``.

        Raises:
            RevisionNotFound: There is none.
        """
        name = commit_id(text)
        record = None if name is None else self._record(int(name, 16), _NODE)
        if name is None or record is None:
            raise RevisionNotFound(
                f"{self.store.parent} has no commit {text!r}; give the full id of a commit, or resolve a branch first."
            )
        if record[:1] != _COMMIT:
            raise RevisionNotFound(f"{text} is no commit of {self.store.parent}; give the full id of a commit.")
        found = self._payloads(record[21 : 21 + int.from_bytes(record[17:21], "little")])
        try:
            _, _, parents, message, author, email, time = found[0]
            year, day, hour, minute, second, nanosecond, *offset = time
            zone = timezone(timedelta(hours=offset[0], minutes=offset[1], seconds=offset[2]))
            moment = datetime(year, 1, 1, hour, minute, second, nanosecond // 1000, zone) + timedelta(days=day - 1)
            # a commit that was made aside has one parent, twice (see staging)
            ids = tuple(dict.fromkeys(format(int.from_bytes(parent, "big"), "x") for parent in parents))
            return Commit(name, _TOKEN.sub("", message), author, email, moment, ids)
        except (TypeError, ValueError, IndexError, OverflowError) as error:
            raise self.unknown("a commit") from error

    def root(self, commit: str) -> Item:
        """Return the root directory of a commit."""
        root = self.bucket(int(self.commit(commit).id, 16)).get("")
        if root is None:
            raise self.unknown("the root directory")
        return root

    def buckets(self, directory: Dir) -> list[int]:
        """Return the vnodes of a directory."""
        found = self._payloads(self._children(int.from_bytes(directory.node, "big")))
        try:
            if all(fields[1] == "VNode" for fields in found):
                return [int.from_bytes(fields[0], "big") for fields in found]
        except (TypeError, IndexError) as error:
            raise self.unknown("a directory") from error
        raise self.unknown("a directory")

    def has_bucket(self, node: int) -> bool:
        """Return whether there is a vnode of this name."""
        return self._record(node, _CHILDREN) is not None

    def merged(self, buckets: Iterable[int]) -> dict[str, Item]:
        """Return what several vnodes hold together, by name."""
        found: dict[str, Item] = {}
        for bucket in buckets:
            self._fill(found, bucket)
        return found

    def bucket(self, node: int) -> dict[str, Item]:
        """Return what one vnode (or commit) holds, by name."""
        found: dict[str, Item] = {}
        self._fill(found, node)
        return found

    def _fill(self, found: dict[str, Item], node: int) -> None:
        try:
            for fields in self._payloads(self._children(node)):
                kind, name = fields[0], fields[1]
                if "/" in name or "\0" in name or name in _NOWHERE:
                    raise self._unreadable()
                if kind == "File":
                    found[name] = File(fields[3].hex(), fields[5], fields[9], fields[10], fields[4])
                elif kind == "Dir" and isinstance(fields[2], bytes):
                    found[name] = Dir(fields[2])
                else:
                    raise self.unknown(f"a node of kind {kind!r}")
        except (TypeError, IndexError, AttributeError) as error:
            raise self.unknown("a file or directory") from error

    def unknown(self, what: str) -> TreeFormatError:
        """Return the error for something that is not in the known format."""
        return TreeFormatError(
            f"the tree of {self.store.parent} has {what} in a form that is not known here (known: {FORMAT}, tested "
            f"with oxenai {TESTED_OXENAI}); use that version of oxenai."
        )

    def _record(self, node: int, tag: int) -> bytes | None:
        return self._snapshot.get(node.to_bytes(16, "little") + bytes([tag]))

    def _children(self, node: int) -> bytes:
        record = self._record(node, _CHILDREN)
        if record is None:
            raise StoreCorrupt(
                f"the tree of {self.store.parent} lacks node {node:032x}; restore {self.store} from a backup."
            )
        return record

    def _payloads(self, raw: bytes) -> list[tuple[Any, ...]]:
        """Unpack the concatenated ``[{tag: fields}]`` of a record."""
        unpacker = msgpack.Unpacker(raw=False, strict_map_key=False, use_list=False)
        unpacker.feed(raw)
        found: list[tuple[Any, ...]] = []
        try:
            for (node,) in unpacker:
                if FORMAT not in node:
                    raise self.unknown(f"the tag {next(iter(node))!r}")
                found.append(node[FORMAT])
            complete = unpacker.tell() == len(raw)
        except (ValueError, TypeError, StopIteration, msgpack.UnpackException) as error:
            raise self._unreadable() from error
        if not complete:
            raise self._unreadable()
        return found

    def _unreadable(self) -> StoreCorrupt:
        return StoreCorrupt(f"the tree of {self.store.parent} is damaged; restore {self.store} from a backup.")
