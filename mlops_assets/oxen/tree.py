"""Versions of a repository, read without Oxen: commits, files, digests, differences.

Belongs here: questions about whole versions, each answered from one consistent state beside any writer. Not here: the
format on disk (``nodes``, ``pages``), writing, which only Oxen itself does (``worker``), the contents (``blobs``), and
where branches point, which is in RocksDB (``refs``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, TypeVar

import xxhash

from mlops_assets.oxen.blobs import Blobs
from mlops_assets.oxen.errors import OxenError, PathNotFound, RevisionNotFound, StoreCorrupt
from mlops_assets.oxen.nodes import Commit, Dir, Entry, File, Item, Nodes, commit_id
from mlops_assets.oxen.pages import Snapshot

__all__ = ["Commit", "Entry", "FileDiff", "Survey", "TableInfo", "Tree"]

_ATTEMPTS = 20  # readings that writers overtook before giving up; each needs two commits within milliseconds
_MEMO_SIZE = 100_000

T = TypeVar("T")


class TableInfo(NamedTuple):
    """What Oxen found in a tabular file when it was added: (name, Polars-like dtype) of each column, number of rows."""

    columns: tuple[tuple[str, str], ...]
    rows: int


class FileDiff(NamedTuple):
    """Paths of files that differ between two commits, each sorted."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]


class Survey(NamedTuple):
    """What a commit holds beyond what was seen before.

    Attributes:
        entries: The files.
        nodes: The nodes that were read.
        damage: Directory and sentence for each part of the tree that cannot be read.
    """

    entries: list[Entry]
    nodes: set[int]
    damage: list[tuple[str, str]]


class _Lists(NamedTuple):
    added: list[str]
    removed: list[str]
    changed: list[str]


_digests: dict[bytes, str | None] = {}  # directory node -> digest; node hashes are unique per content, process-wide


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
        if commit_id(commit) is None or not self._file.exists():
            return False
        return self._read(lambda reader: reader.nodes.known(commit))

    def commit(self, commit: str) -> Commit:
        """Return the commit of a full id."""
        return self._read(lambda reader: reader.nodes.commit(commit))

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

    def version(self, commit: str, path: str) -> tuple[str, list[Entry]]:
        """Return both the digest and the files at ``path``, for little more than the price of one."""
        return self._read(lambda reader: (reader.digest(commit, path), reader.entries(commit, path)))

    def survey(self, commit: str, seen: AbstractSet[int]) -> Survey:
        """Return the files of a commit but those below nodes in ``seen``; damage below the root is told, not raised."""
        return self._read(lambda reader: reader.survey(commit, seen))

    def table(self, commit: str, path: str) -> TableInfo | None:
        """Return the columns and row count of a tabular file, None for any other file or a directory."""
        return self._read(lambda reader: reader.table(commit, path))

    def diff(self, left: str, right: str, path: str = "") -> FileDiff:
        """Compare two commits at or below ``path``; in a commit without that path, it counts as empty."""
        return self._read(lambda reader: reader.diff(left, right, path))

    def clashes(self, commit: str, directory: str, buckets: Sequence[AbstractSet[str]]) -> list[bool]:
        """Return for sets of unchanged children, as paths, whether Oxen would name a bucket of them as another one."""
        return self._read(lambda reader: [reader.clash(commit, directory, bucket) for bucket in buckets])

    def blob(self, content_hash: str) -> Path:
        """Return where the content of this hash lies, padded or not; the unpadded place if there is none."""
        return Path(Blobs(self._store).path(content_hash))

    @cached_property
    def _file(self) -> Path:
        return self._store / "tree" / "nodes_lmdb" / "data.mdb"

    def _read(self, question: Callable[[_Reader], T]) -> T:
        for _ in range(_ATTEMPTS):
            try:
                with Snapshot(self._file, b"nodes") as snapshot:
                    reader = _Reader(Nodes(snapshot, self._store))
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
                        f"{self._file} is missing although there are commits; restore {self._store} from a backup."
                    ) from None
                raise RevisionNotFound(f"{self._store.parent} has no commits yet; commit a file first.") from None
        raise OxenError(f"{self._store.parent} is written to faster than it can be read; try again.")


class _Reader:
    """Answers questions from one snapshot."""

    def __init__(self, nodes: Nodes) -> None:
        self.nodes = nodes
        self.fresh: dict[bytes, str | None] = {}
        self._items: dict[bytes, dict[str, Item]] = {}

    def log(self, commit: str, limit: int | None) -> list[Commit]:
        found: list[Commit] = []
        waiting = [self.nodes.commit(commit)]
        known = {waiting[0].id}
        while waiting and (limit is None or len(found) < limit):
            waiting.sort(key=lambda each: each.timestamp)
            newest = waiting.pop()
            found.append(newest)
            waiting += [self.nodes.commit(parent) for parent in newest.parents if parent not in known]
            known.update(newest.parents)
        return found

    def find(self, commit: str, path: str) -> Item:
        item = self.nodes.root(commit)
        for part in filter(None, path.split("/")):
            child = self._children(item).get(part) if isinstance(item, Dir) else None
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
        found = sorted(self._walked(path.strip("/"), self.find(commit, path)))
        if not found and path.strip("/"):
            raise self._no_path(commit, path)
        return found

    def survey(self, commit: str, seen: AbstractSet[int]) -> Survey:
        found = Survey([], set(), [])
        waiting: list[tuple[str, Item]] = [("", self.nodes.root(commit))]
        while waiting:
            path, item = waiting.pop()
            if isinstance(item, File):
                found.entries.append(Entry(path, item.hash, item.size))
                continue
            try:
                new = [node for node in self.nodes.buckets(item) if node not in seen and node not in found.nodes]
                children = self.nodes.merged(new)
            except OxenError as error:
                found.damage.append((path, str(error)))
                continue
            found.nodes.update(new)
            waiting += [(f"{path}/{name}".lstrip("/"), child) for name, child in children.items()]
        return found

    def clash(self, commit: str, directory: str, bucket: AbstractSet[str]) -> bool:
        item = self.find(commit, directory)
        assert isinstance(item, Dir)
        children = self._children(item)
        names = sorted(path.rpartition("/")[2] for path in bucket)
        nodes = {name: children[name].node for name in names}
        total = xxhash.xxh3_128(b"vnode" + directory.encode())
        total.update(b"".join(node[::-1] for node in nodes.values()))  # as little-endian numbers
        name = total.intdigest()
        if not self.nodes.has_bucket(name):
            return False
        return {other: child.node for other, child in self.nodes.bucket(name).items()} != nodes

    def table(self, commit: str, path: str) -> TableInfo | None:
        item = self.find(commit, path)
        if isinstance(item, Dir) or item.kind != "tabular" or not item.metadata:
            return None
        try:
            ((_, rows, (_, columns, *_)),) = item.metadata
            return TableInfo(tuple((str(name), str(dtype)) for name, dtype, *_ in columns), int(rows))
        except (TypeError, ValueError) as error:
            raise self.nodes.unknown("the metadata of a table") from error

    def diff(self, left: str, right: str, path: str) -> FileDiff:
        sides: list[dict[str, Item]] = []
        for commit in (left, right):
            try:
                sides.append({"": self.find(commit, path)})
            except PathNotFound:
                sides.append({})
        found = _Lists([], [], [])
        self._compare(path, sides[0], sides[1], found)
        return FileDiff(*(tuple(sorted(names)) for names in found))

    def _no_path(self, commit: str, path: str) -> PathNotFound:
        return PathNotFound(f"commit {commit} of {self.nodes.store.parent} holds no {path!r}; check its spelling.")

    def _compare(self, path: str, left: dict[str, Item], right: dict[str, Item], found: _Lists) -> None:
        for name in left.keys() | right.keys():
            below = f"{path}/{name}".strip("/")
            one, two = left.get(name), right.get(name)
            if isinstance(one, Dir) and isinstance(two, Dir):
                if one.node != two.node:
                    self._compare(below, *self._differing(one, two), found)
            elif isinstance(one, File) and isinstance(two, File):
                if one.hash != two.hash:
                    found.changed.append(below)
            else:
                found.removed.extend(entry.path for entry in (self._walked(below, one) if one else ()))
                found.added.extend(entry.path for entry in (self._walked(below, two) if two else ()))

    def _differing(self, one: Dir, two: Dir) -> tuple[dict[str, Item], dict[str, Item]]:
        """Return the children of both directories that are not in a bucket common to both."""
        left, right = self.nodes.buckets(one), self.nodes.buckets(two)
        common = set(left) & set(right)
        return (
            self.nodes.merged(bucket for bucket in left if bucket not in common),
            self.nodes.merged(bucket for bucket in right if bucket not in common),
        )

    def _walked(self, path: str, item: Item) -> list[Entry]:
        if isinstance(item, File):
            return [Entry(path, item.hash, item.size)]
        found: list[Entry] = []
        waiting = [(f"{path}/" if path else "", item)]
        while waiting:
            prefix, directory = waiting.pop()
            for name, child in self._children(directory).items():
                if isinstance(child, File):
                    found.append(Entry(prefix + name, child.hash, child.size))
                else:
                    waiting.append((f"{prefix}{name}/", child))
        return found

    def _digest(self, item: Item) -> str | None:
        if isinstance(item, File):
            return f"file-{item.hash}"
        known = _digests.get(item.node, self.fresh.get(item.node, ""))
        if known != "":
            return known
        digests = {
            name: f"file-{child.hash}" if isinstance(child, File) else self._digest(child)
            for name, child in self._children(item).items()
        }
        lines = "".join([f"{name}\0{digests[name]}\n" for name in sorted(digests) if digests[name] is not None])
        self.fresh[item.node] = f"dir-{hashlib.sha256(lines.encode()).hexdigest()[:32]}" if lines else None
        return self.fresh[item.node]

    def _children(self, directory: Dir) -> dict[str, Item]:
        found = self._items.get(directory.node)
        if found is None:
            found = self._items[directory.node] = self.nodes.merged(self.nodes.buckets(directory))
        return found
