"""The worker's operation ``commit``, and what it shares with a merge: putting a change on top of a branch.

Belongs here: which calls of Oxen make exactly the wanted tree, and the proof that they did. Not here: checks of the
caller's input (``inputs``).
"""

from __future__ import annotations

import shutil
import tomllib
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import xxhash

from mlops_assets.oxen.blobs import Blobs
from mlops_assets.oxen.errors import InputChanged, OxenError, PathNotFound, RevisionNotFound, UnsafePath
from mlops_assets.oxen.inputs import directories, stamp
from mlops_assets.oxen.salting import Salts, salts
from mlops_assets.oxen.tree import Entry, Tree
from mlops_assets.oxen.work import Request, Work, branches, literally

_OXENS_BUCKET_SIZE = 10_000  # children of a directory in one bucket where config.toml tells no vnode_size


class Source(NamedTuple):
    """One file to put into the tree; ``local`` is where its content lies, None where that is ``content``."""

    path: str
    local: str | None
    content: bytes
    hash: str
    size: int
    stamp: list[int]


class Change(NamedTuple):
    """What is to become of a branch.

    Attributes:
        branch: Its name.
        head: The commit it points to; "" in a repository without commits.
        old: The files it has.
        files: Files to add or replace.
        removed: Files to remove.
    """

    branch: str
    head: str
    old: Mapping[str, Entry]
    files: Mapping[str, Source]
    removed: AbstractSet[str]

    @property
    def wanted(self) -> dict[str, str]:
        """Content hash by path of the tree that is to come of it."""
        kept = {path: entry.hash for path, entry in self.old.items() if path not in self.removed}
        return kept | {path: source.hash for path, source in self.files.items()}

    @property
    def different(self) -> set[str]:
        """Those of ``files`` that the branch has not or has with other content."""
        old = self.old
        return {path for path, source in self.files.items() if path not in old or old[path].hash != source.hash}


def commit(request: Request, payload: bytes) -> str | None:
    """Commit files and removals; returns the commit's id, or None when the branch held all of that."""
    files = _given(request["files"], payload)
    branch: str = request["branch"]
    with Work(request) as work:
        heads = work.open()
        if branch not in heads and (heads or branch != "main"):
            raise RevisionNotFound(
                f"there is no branch {branch!r}; create it first (a new repository begins with 'main')."
            )
        old: dict[str, Entry] = {}
        if heads:
            work.require_history(branch, heads[branch])
            old = {entry.path: entry for entry in Tree(Path(work.store)).entries(heads[branch])}
        change = Change(branch, heads.get(branch, ""), old, files, _removed(request["remove"], old, files))
        _drop_damaged(change, Blobs(Path(work.store)))
        return put(work, change)


def put(work: Work, change: Change, parents: tuple[str, str] | None = None) -> str | None:
    """Commit a change on top of a branch so that no other version changes with it (see ``salting``).

    Args:
        work: The open worktree.
        change: What is to become of the branch.
        parents: The commit's parents when it is a merge; it is made even if it changes nothing then.

    Returns:
        The commit's id, or None when there is nothing to commit; content that the store had lost is stored either way.
    """
    _refuse_clashes(change)
    salted = Salts(set(), set())
    if change.head:
        paths = change.wanted.keys()
        salted = salts(
            change.old.keys(),
            paths,
            change.different,
            size=_bucket_size(work),
            token=work.token,
            clashes=partial(Tree(Path(work.store)).clashes, change.head),
        )
        if parents and not (change.different or change.removed):
            salted.files.update(sorted(paths)[:1])
    if any(salted):
        return _record_aside(work, change, salted, parents or (change.head, change.head))
    if parents:
        work.tell("MERGE_HEAD", parents[0])
        work.tell("ORIG_HEAD", parents[1])
    if change.head:
        work.tell("HEAD", change.branch)
    return _record(work, change)


def _record_aside(work: Work, change: Change, salted: Salts, parents: tuple[str, str]) -> str:
    """Commit a change in two steps on a branch of its own, then move the branch that is meant."""
    tree, blobs = Tree(Path(work.store)), Blobs(Path(work.store))
    files = {path: change.files.get(path) or kept(change.old[path], blobs) for path in salted.files}
    aside = work.aside(change.head)
    salt = {path: _salt(path, work.token) for path in salted.files | salted.extra}
    step = _record(work, change._replace(branch=aside, files={**change.files, **salt}))
    assert step is not None
    old = {entry.path: entry for entry in tree.entries(step)}
    # Oxen reads a merge's parents from here, and here alone can it be told any.
    work.tell("MERGE_HEAD", parents[0])
    work.tell("ORIG_HEAD", parents[1])
    done = _record(work, Change(aside, step, old, files, salted.extra), apart=True)
    assert done is not None
    for place in [Path(work.root, path) for path in change.removed]:
        if place.is_dir():  # Oxen would read it for the file that was there
            shutil.rmtree(place)
    work.publish(aside, change.branch)
    prove(work, tree, change.branch, done, change.wanted)
    work.delete(aside, done)
    shutil.rmtree(f"{work.store}/history/{step}")
    for source in salt.values():
        blobs.remove(source.hash)
    return done


def _salt(path: str, token: str) -> Source:
    content = f"{token} {path}".encode()
    return Source(path, None, content, xxhash.xxh3_128_hexdigest(content), len(content), [])


def kept(entry: Entry, blobs: Blobs) -> Source:
    """Return a file as the store has it.

    Raises:
        StoreCorrupt: Its content is damaged.
    """
    blobs.require(entry)
    local = Path(blobs.path(entry.hash))
    return Source(entry.path, str(local), b"", entry.hash, entry.bytes, [*stamp(local.stat())])


def _bucket_size(work: Work) -> int:
    size = tomllib.loads(Path(work.store, "config.toml").read_text()).get("vnode_size", _OXENS_BUCKET_SIZE)
    return int(size)


def _record(work: Work, change: Change, *, apart: bool = False) -> str | None:
    """Commit a change on top of the worktree's HEAD and hold the result against what was wanted.

    All that lies in the worktree is added in one call, or, ``apart``, the change's files alone, one by one. Oxen adds
    without a HEAD: else it reads the whole directory anew for each file, takes a file of the old size and time for
    unchanged, removes what the worktree lacks, and now and then loses a change. For that its own sums of a directory's
    bytes count a changed file twice; nothing here uses them.
    """
    blobs, tree = Blobs(Path(work.store)), Tree(Path(work.store))
    files, different = change.files, change.different
    lost = {source.path for source in files.values() if not _stored(blobs, source)}
    if not (different or lost or change.removed):
        return None
    for path in _removals(change):
        work.repo.rm(path, True, True, True)
    work.forget("HEAD")
    given = sorted(different | lost)
    for path in given:
        _place(work, files[path])
    if apart:
        for path in given:
            work.repo.add(literally(f"{work.root}/{path}"))
    elif given:
        work.repo.add(literally(f"{work.root}/"))
    if change.head:  # without a HEAD, the first commit creates "main"
        work.tell("HEAD", change.branch)
    for source in files.values():
        if source.local is not None and _stamp(source.local) != source.stamp:
            raise InputChanged(
                f"{source.local} was modified while it was being committed; nothing was committed, "
                "so commit again when its writer is done."
            )
    if not all(_stored(blobs, source) for source in files.values()):
        raise OxenError("Oxen did not store all content; nothing was committed, so check the disk and commit again.")
    if not (different or change.removed):
        return None  # adding restored lost content; the version is the same
    done = work.commit()
    prove(work, tree, change.branch, done, change.wanted)
    return done


def prove(work: Work, tree: Tree, branch: str, commit: str, wanted: Mapping[str, str]) -> None:
    """Hold a branch against the commit and the files it is to have.

    Raises:
        OxenError: It has others.
    """
    found = {entry.path: entry.hash for entry in tree.entries(commit)}
    if branches(work.repo).get(branch) != commit or found != wanted:
        odd = sorted(path for path in found.keys() | wanted.keys() if found.get(path) != wanted.get(path))
        raise OxenError(f"Oxen's commit {commit} on {branch!r} is not what was asked ({odd[:3]}); commit again.")


def _removed(remove: list[str], old: Mapping[str, Entry], files: Mapping[str, Source]) -> set[str]:
    """Return the files that go, those given anew excepted."""
    if "" in remove:
        return old.keys() - files.keys()
    found: dict[str, set[str]] = {path: set() for path in remove}
    for path in old:
        for place in (path, *directories(path)):
            if place in found:
                found[place].add(path)
    for path, below in found.items():
        if not below:
            raise PathNotFound(f"{path!r} is to be removed but is not there; check its spelling.")
    return set().union(*found.values()) - files.keys()


def _removals(change: Change) -> list[str]:
    """Return the calls to make: for a directory of which nothing stays, one for all of it."""
    occupied = {parent for path in change.old.keys() - change.removed for parent in directories(path)}
    calls = set()
    for path in change.removed:
        top = path
        for parent in directories(path):
            if parent in occupied:
                break
            top = parent
        calls.add(top)
    for path in calls:
        if set(path) & set("*?[]"):
            raise UnsafePath(f"{path!r} cannot be removed alone, as Oxen takes it for a pattern; remove its directory.")
    return sorted(calls)


def _refuse_clashes(change: Change) -> None:
    remaining = change.old.keys() - change.removed
    occupied = {parent for path in change.old for parent in directories(path)}
    for path in change.files:
        if path in occupied:  # Oxen drops a file that takes the place of a directory in the same commit
            raise UnsafePath(f"{path!r} is a directory there; remove it in a commit of its own, then add the file.")
        if clash := remaining.intersection(directories(path)):
            raise UnsafePath(f"{min(clash)!r} is a file there; remove it in the same commit to add {path!r}.")


def _place(work: Work, source: Source) -> None:
    target = Path(work.root, source.path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    if source.local is None:
        target.write_bytes(source.content)
    else:
        target.symlink_to(source.local)


def _drop_damaged(change: Change, blobs: Blobs) -> None:
    """Remove damaged content that new files would share: Oxen keeps what is there, whatever it is."""
    for source in change.files.values():
        known = change.old.get(source.path)
        if (known is None or known.hash != source.hash) and blobs.damage(_entry(source)):
            blobs.remove(source.hash)


def _stored(blobs: Blobs, source: Source) -> bool:
    """Tell whether content of the right size is in the store; content of another size is removed as damaged."""
    damaged = blobs.damage(_entry(source), content=False)
    if damaged:
        blobs.remove(source.hash)
    return not damaged


def _entry(source: Source) -> Entry:
    return Entry(source.path, source.hash, source.size)


def _given(listed: list[list[Any]], payload: bytes) -> dict[str, Source]:
    found: dict[str, Source] = {}
    start = 0
    for path, local, content_hash, size, stamped in listed:
        end = start if local is not None else start + size
        found[path] = Source(path, local, payload[start:end], content_hash, size, stamped)
        start = end
    return found


def _stamp(local: str) -> list[int] | None:
    try:
        return list(stamp(Path(local).stat()))
    except OSError:
        return None
