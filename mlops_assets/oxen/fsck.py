"""Whether all that is committed can still be read, and putting back what was lost.

Belongs here: reading everything, without Oxen, with damage as the result instead of an error. Not here: removing what
nobody needs (``cleaning``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import NamedTuple

from mlops_assets.oxen.blobs import Blobs
from mlops_assets.oxen.cache import place
from mlops_assets.oxen.errors import NotWritable, OxenError
from mlops_assets.oxen.inputs import directories
from mlops_assets.oxen.tree import Entry, Survey, Tree

Progress = Callable[[int, int], None]
"""Called with the bytes read so far and the bytes in all."""


class Loss(NamedTuple):
    """A content that cannot be read as it was committed.

    Attributes:
        entry: Its hash and size, and the first of its paths.
        what: What is wrong, in words that follow its name.
        places: (commit, path) of every file that has it, among the commits that were looked at.
    """

    entry: Entry
    what: str
    places: tuple[tuple[str, str], ...]


class Hole(NamedTuple):
    """A part of the tree that cannot be read: the commit, the directory ("" is all of it) and a sentence."""

    commit: str
    path: str
    what: str


class Fsck(NamedTuple):
    """The state of a repository.

    Attributes:
        commits: How many commits were looked at.
        contents: How many contents were read.
        bytes: How many bytes they have.
        losses: Contents that are missing, damaged or of another size.
        holes: Parts of the tree that cannot be read; what lies below them was not looked at.
        lost_branches: Branches that point to no commit, each with the id it has.
    """

    commits: int
    contents: int
    bytes: int
    losses: tuple[Loss, ...]
    holes: tuple[Hole, ...]
    lost_branches: tuple[tuple[str, str], ...]

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong."""
        return not (self.losses or self.holes or self.lost_branches)

    @property
    def remedies(self) -> tuple[str, ...]:
        """One sentence for each kind of damage."""
        found = []
        if self.losses:
            found.append(
                f"{len(self.losses)} content(s) are lost: `mlops data fsck --heal` puts back what a copy in the cache "
                "or a file that you give still has; else restore .oxen/versions from a backup."
            )
        if self.holes:
            found.append(
                f"{len(self.holes)} part(s) of the tree are lost: restore .oxen/tree and .oxen/history from one backup."
            )
        if self.lost_branches:
            found.append("a branch points to no commit: restore .oxen/refs and .oxen/tree from one backup.")
        return tuple(found)


def check(
    store: Path,
    heads: Mapping[str, str],
    *,
    history: bool = False,
    progress: Progress = lambda _done, _total: None,
) -> Fsck:
    """Read and hash all contents of some commits.

    Args:
        store: The repository's ``.oxen`` directory.
        heads: The full id of each commit to read, by the name of the branch that has it.
        history: Whether all commits before them are read too.
        progress: Called after each content.
    """
    tree, blobs = Tree(store), Blobs(store)
    commits, holes, lost = _commits(tree, heads.values(), history=history)
    for head in heads.values():
        if head in commits and not (store / "history" / head).is_dir():
            holes.append(Hole(head, "", f"{store / 'history' / head} is missing, so nothing can be committed on it."))
    contents: dict[str, Entry] = {}
    seen: set[int] = set()
    for commit in commits:
        survey = _survey(tree, commit, seen)
        seen |= survey.nodes
        holes += [Hole(commit, path, what) for path, what in survey.damage]
        contents.update({entry.hash: entry for entry in survey.entries})
    damaged = {}
    total, done = sum(entry.bytes for entry in contents.values()), 0
    for entry in contents.values():
        if what := blobs.damage(entry):
            damaged[entry.hash] = what
        done += entry.bytes
        progress(done, total)
    places: dict[str, list[tuple[str, str]]] = {content: [] for content in damaged}
    for commit in commits if damaged else ():
        for entry in _survey(tree, commit, frozenset()).entries:
            if entry.hash in damaged:
                places[entry.hash].append((commit, entry.path))
    losses = [Loss(contents[each], what, tuple(places[each])) for each, what in damaged.items()]
    return Fsck(
        commits=len(commits),
        contents=len(contents),
        bytes=total,
        losses=tuple(sorted(losses)),
        holes=tuple(holes),
        lost_branches=tuple(sorted((name, head) for name, head in heads.items() if head in lost)),
    )


def heal(store: Path, found: Fsck, cache: Path, given: Iterable[Path] = ()) -> Fsck:
    """Put lost contents back from whatever still has them.

    Args:
        store: The repository's ``.oxen`` directory.
        found: What ``check`` has found.
        cache: Where verified copies of versions lie.
        given: Files, and directories of files, that may hold lost contents, under whatever names.

    Returns:
        What is still wrong.

    Raises:
        NotWritable: The content store cannot be written.
    """
    tree, blobs = Tree(store), Blobs(store)
    by_size: dict[int, list[Path]] = {}
    for top in given:
        for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
            if path.is_file():
                by_size.setdefault(path.stat().st_size, []).append(path)
    left = []
    for loss in found.losses:
        copies = [*by_size.get(loss.entry.bytes, ()), *_copies(tree, loss, cache)]
        try:
            healed = any(blobs.put_back(loss.entry, copy) for copy in copies)
        except OSError as error:
            raise NotWritable(
                f"the content of {loss.entry.path!r} cannot be put back ({error}); free space or mend the rights."
            ) from error
        if not healed:
            left.append(loss)
    return found._replace(losses=tuple(left))


def _commits(tree: Tree, starts: Iterable[str], *, history: bool) -> tuple[list[str], list[Hole], set[str]]:
    """Return the commits that can be read, holes for those that cannot, and the ids of those that are not there."""
    found: list[str] = []
    holes: list[Hole] = []
    lost: set[str] = set()
    waiting = list(dict.fromkeys(starts))
    known = set(waiting)
    while waiting:
        commit = waiting.pop(0)
        try:
            if not tree.has_commit(commit):
                lost.add(commit)
            node = tree.commit(commit)
        except OxenError as error:
            holes.append(Hole(commit, "", str(error)))
            continue
        found.append(commit)
        new = [parent for parent in node.parents if history and parent not in known]
        waiting += new
        known.update(new)
    return found, holes, lost


def _survey(tree: Tree, commit: str, seen: AbstractSet[int]) -> Survey:
    try:
        return tree.survey(commit, seen)
    except OxenError as error:
        return Survey([], set(), [("", str(error))])


def _copies(tree: Tree, loss: Loss, cache: Path) -> Iterator[Path]:
    """Yield the copies in the cache that should hold a content: of its file, and of every directory above that."""
    known = set()
    for commit, path in loss.places:
        for base in (path, *directories(path), ""):
            try:
                copy = place(cache, tree.digest(commit, base), base)
            except OxenError:
                continue  # a hole is in it
            copy = copy / path[len(base) :].lstrip("/") if base != path else copy
            if copy not in known and copy.is_file() and copy.stat().st_size == loss.entry.bytes:
                yield copy
            known.add(copy)
