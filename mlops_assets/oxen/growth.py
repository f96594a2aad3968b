"""What a repository takes on disk, and what of it nobody needs any more.

Belongs here: counting, without Oxen and beside any writer. Not here: removing (``cleaning``).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from mlops_assets.oxen.blobs import TEMPORARY
from mlops_assets.oxen.errors import StoreCorrupt
from mlops_assets.oxen.tree import Tree


class Size(NamedTuple):
    """Number of files, and bytes in them."""

    files: int = 0
    bytes: int = 0

    def plus(self, bytes_: int) -> Size:
        """Return the size with one file more."""
        return Size(self.files + 1, self.bytes + bytes_)


class Growth(NamedTuple):
    """What a repository consists of.

    Attributes:
        commits: Number of commits of all branches.
        versions: The contents.
        tree: The database of the commits and their files.
        history: Oxen's index of directories, some files per commit.
        work: The worktrees of writers; of killed ones unless one is at work.
        unreferenced: Of the contents, those that no commit of any branch refers to.
        leftovers: Of the files among the contents, those that are no content: what a killed writer left half-written.
    """

    commits: int
    versions: Size
    tree: Size
    history: Size
    work: Size
    unreferenced: Size
    leftovers: Size

    @property
    def bytes(self) -> int:
        """Bytes in all."""
        return self.versions.bytes + self.tree.bytes + self.history.bytes + self.work.bytes

    @property
    def bytes_per_commit(self) -> float:
        """Bytes in all by number of commits."""
        return self.bytes / max(self.commits, 1)


class Cleaned(NamedTuple):
    """What a clean-up has removed.

    Attributes:
        worktrees: Of killed writers.
        leftovers: Contents that killed writers had half-written.
        contents: Contents that no commit of any branch refers to.
        commits: Oxen's indices of commits that no branch has, each counted as one file.
    """

    worktrees: Size
    leftovers: Size
    contents: Size
    commits: Size


class Stored(NamedTuple):
    """One file in the content store, and the hash, without padding, of the content in whose directory it lies."""

    path: Path
    hash: str
    bytes: int
    modified: float

    @property
    def leftover(self) -> bool:
        """Whether a killed writer did not finish it."""
        return TEMPORARY in self.path.name


def measure(store: Path, heads: Iterable[str]) -> Growth:
    """Count what lies in a repository.

    Args:
        store: The repository's ``.oxen`` directory.
        heads: Full commit ids of the heads of all branches.

    Raises:
        StoreCorrupt: The tree is damaged, so that it is not known which contents are needed.
    """
    commits, needed = referenced(Tree(store), heads)
    versions = unreferenced = leftovers = Size()
    for file in stored(store):
        versions = versions.plus(file.bytes)
        if file.leftover:
            leftovers = leftovers.plus(file.bytes)
        elif file.hash not in needed:
            unreferenced = unreferenced.plus(file.bytes)
    tree, history, work = (_below(store / name) for name in ("tree", "history", "mlops/work"))
    return Growth(len(commits), versions, tree, history, work, unreferenced, leftovers)


def referenced(tree: Tree, heads: Iterable[str]) -> tuple[set[str], set[str]]:
    """Return all commits up to the heads, and the hashes, without padding, of all contents that they refer to.

    Raises:
        StoreCorrupt: A part of the tree cannot be read.
    """
    commits = {commit.id for head in heads for commit in tree.log(head)}
    hashes: set[str] = set()
    seen: set[int] = set()
    for commit in commits:
        survey = tree.survey(commit, seen)
        if survey.damage:
            raise StoreCorrupt(survey.damage[0][1])
        seen |= survey.nodes
        hashes.update(entry.hash.lstrip("0") for entry in survey.entries)
    return commits, hashes


def stored(store: Path) -> Iterator[Stored]:
    """Yield every file of the content store that is still there when it is looked at."""
    top = store / "versions" / "files"
    for directory, _, names in os.walk(top):
        content = "".join(Path(directory).relative_to(top).parts[:2]).lstrip("0")
        for name in names:
            path = Path(directory, name)
            with contextlib.suppress(FileNotFoundError):
                status = path.lstat()
                yield Stored(path, content, status.st_size, status.st_mtime)


def _below(top: Path) -> Size:
    total = Size()
    for directory, _, names in os.walk(top):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total = total.plus(Path(directory, name).lstat().st_size)
    return total
