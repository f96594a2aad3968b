"""Merging two branches: the three-way result computed from the trees, and the worker's operation that commits it.

Oxen's own three-way merge, in a worktree that holds the changed files alone, keeps the files that the merged branch had
removed (measured with oxenai 0.65.1), and it words the commit itself. So the result is computed here, from the trees,
committed like any other change with both heads as parents, and read back. Only a fast-forward is Oxen's own: its result
is a commit that exists.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mlops_assets.oxen.blobs import Blobs
from mlops_assets.oxen.errors import OxenError, RevisionNotFound
from mlops_assets.oxen.inputs import directories
from mlops_assets.oxen.staging import Change, kept, prove, put
from mlops_assets.oxen.tree import Commit, Tree
from mlops_assets.oxen.work import Request, Work


class Merged(NamedTuple):
    """Content hash by path of the result, and the paths over which the two sides disagree."""

    result: dict[str, str]
    conflicts: list[str]


def merged(bases: Sequence[Mapping[str, str]], ours: Mapping[str, str], theirs: Mapping[str, str]) -> Merged:
    """Merge two trees that have one or, after merges in both directions, several last common ancestors.

    A path takes the side that changed it; both sides may make the same change. Where the ancestors differ, they must
    not speak for different sides. A file on one side below a path that is a file on the other is a conflict as well.

    Args:
        bases: Content hash by path of each last common ancestor; none stands for an empty one.
        ours: The branch that is merged into.
        theirs: The branch that is merged.
    """
    result = dict(ours)
    conflicts = set()
    for path in ours.keys() | theirs.keys():
        mine, other = ours.get(path), theirs.get(path)
        if mine == other:
            continue
        before = {base.get(path) for base in bases or ({},)}
        if mine in before and other not in before:
            result.pop(path, None)
            if other is not None:
                result[path] = other
        elif other not in before or mine in before:
            conflicts.add(path)
    occupied = {parent for path in result for parent in directories(path)}
    return Merged(result, sorted(conflicts | (occupied & result.keys())))


def last_common(ours: Iterable[Commit], theirs: Iterable[Commit]) -> list[str]:
    """Return the common commits of two histories of which no other common one descends."""
    common = {commit.id: commit for commit in theirs}
    common = {commit.id: commit for commit in ours if commit.id in common}
    return sorted(common.keys() - {parent for commit in common.values() for parent in commit.parents})


def merge(request: Request, _: bytes) -> dict[str, Any]:
    """Merge the branch ``source`` into ``into``.

    Returns:
        ``commit``: the new head, None when nothing was to merge; ``conflicts``: paths, for which nothing was merged.
    """
    source, into = request["source"], request["into"]
    with Work(request) as work:
        heads = work.open()
        for name in (source, into):
            if name not in heads:
                raise RevisionNotFound(f"there is no branch {name!r}; there are: {', '.join(sorted(heads))}.")
        ours, theirs = heads[into], heads[source]
        tree = Tree(Path(work.store))
        histories = tree.log(ours), tree.log(theirs)
        if theirs in {commit.id for commit in histories[0]}:
            return {"commit": None, "conflicts": []}
        work.require_history(into, ours)
        work.tell("HEAD", into)
        if ours in {commit.id for commit in histories[1]}:
            return {"commit": _forward(work, tree, request, (ours, theirs)), "conflicts": []}
        bases = [_contents(tree, base) for base in last_common(*histories)]
        result, conflicts = merged(bases, _contents(tree, ours), _contents(tree, theirs))
        if conflicts:
            return {"commit": None, "conflicts": conflicts}
        return {"commit": _join(work, tree, into, (ours, theirs), result), "conflicts": []}


def _contents(tree: Tree, commit: str) -> dict[str, str]:
    return {entry.path: entry.hash for entry in tree.entries(commit)}


def _forward(work: Work, tree: Tree, request: Request, heads: tuple[str, str]) -> str:
    """Let Oxen move the branch; what it restores on the way nobody looks at, and so it comes from empty contents."""
    empty, contents = Path(work.root, ".oxen", "empty"), Path(work.root, ".oxen", "versions")
    empty.mkdir()
    (empty / "data").touch()
    contents.unlink()
    different = set(tree.entries(heads[1])) - set(tree.entries(heads[0]))
    for name in {form for entry in different for form in (entry.hash, entry.hash.lstrip("0"))}:
        place = contents / "files" / name[:2] / name[2:]
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(empty)
    work.repo.merge(request["source"])
    prove(work, tree, request["into"], heads[1], _contents(tree, heads[1]))
    return heads[1]


def _join(work: Work, tree: Tree, into: str, heads: tuple[str, str], result: dict[str, str]) -> str | None:
    """Commit the result of a three-way merge with both heads as parents; None when all is gone on both sides."""
    old = {entry.path: entry for entry in tree.entries(heads[0])}
    blobs = Blobs(Path(work.store))
    files = {
        entry.path: kept(entry, blobs)
        for entry in tree.entries(heads[1])
        if result.get(entry.path) == entry.hash and (entry.path not in old or old[entry.path].hash != entry.hash)
    }
    done = put(work, Change(into, heads[0], old, files, old.keys() - result.keys()), heads)
    if done and tree.commit(done).parents != heads:
        raise OxenError(f"Oxen's commit {done} on {into!r} does not join both branches; merge again.")
    return done
