"""Which buckets of a tree Oxen would give a name that another one has, and how each gets a name of its own.

Oxen keeps a directory in buckets of ``vnode_size`` children, each under a name in one database that all versions share.
A commit writes anew all buckets of every directory that it changes something in or below. A bucket that has something
new in a directory that existed gets a random name. Any other is named by the directory's path and the hashes of its
children: without their names, and with one hash for all directories that are new themselves. So ``{x: c}`` and
``{y: c}``, if each is all of ``d`` after a commit that made ``d`` or only removed something from it, have one name, and
the later commit silently changes what the earlier one holds, on whatever branch (measured with oxenai 0.65.1).

So a change that would write such a bucket is committed aside, in two steps. In the first, one file of the bucket, its
*salt*, has random content; where there is no file, one is added. The second gives the salts their right content, or
removes them. In the first step the salt makes the bucket's name its own, and in the second the directory exists and its
bucket has something new.

Belongs here: finding the salts. Not here: the steps (``staging``), and the names in the database (``tree``).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from math import ceil
from typing import NamedTuple

import xxhash

from mlops_assets.oxen.inputs import directories

Clashes = Callable[[str, Sequence[AbstractSet[str]]], Sequence[bool]]
"""Tells of buckets of a directory, as paths of unchanged children, whether another bucket has the name of each."""


class Salts(NamedTuple):
    """Files of the new tree to be salted, and files to be added that are not in it."""

    files: set[str]
    extra: set[str]


def salts(
    old: AbstractSet[str],
    new: AbstractSet[str],
    changed: AbstractSet[str],
    *,
    size: int,
    token: str,
    clashes: Clashes,
) -> Salts:
    """Return what must be salted so that a change gives no bucket a name that another one has; mostly nothing.

    Args:
        old: The paths of all files before.
        new: The paths of all files after.
        changed: Those of ``new`` that are not in ``old`` or have other content there.
        size: Children per bucket.
        token: A text that is in no path.
        clashes: What is known of the names in use.
    """
    touched = {parent for path in changed | (old - new) for parent in above(path)}
    before, after = _children(old, touched), _children(new, touched)
    before.setdefault("", set())  # a commit has a root even when it has no files
    needed = Salts(set(), set())
    renewed: set[str] = set()
    for directory, children in after.items():
        if directory not in before:
            here = _salt_new(directory, children, new, size, token)
            needed.files.update(here.files)
            needed.extra.update(here.extra)
            continue
        buckets = _buckets(children, size)
        fresh = [not each.isdisjoint(changed | touched) for each in buckets]
        same = [each for each, is_fresh in zip(buckets, fresh, strict=True) if not is_fresh and each & new]
        clashing = clashes(directory, same) if same else ()
        needed.files.update(min(each & new) for each, clash in zip(same, clashing, strict=True) if clash)
        renewed.update(
            min(each & new) for each, is_fresh in zip(buckets, fresh, strict=True) if is_fresh and each & new
        )
    # The second step would name those by their contents that the first step has given random names.
    return Salts(needed.files | renewed, needed.extra) if any(needed) else needed


def above(path: str) -> Iterable[str]:
    """Yield the directories above a path, the nearest first, the root ("") last."""
    yield from directories(path)
    yield ""


def bucket(path: str, count: int) -> int:
    """Return in which of ``count`` buckets of its directory a file or directory lies."""
    return xxhash.xxh3_128_intdigest(path.encode()) % count if count > 1 else 0


def _buckets(children: AbstractSet[str], size: int) -> list[set[str]]:
    count = _count(len(children), size)
    found: list[set[str]] = [set() for _ in range(count)]
    for path in children:
        found[bucket(path, count)].add(path)
    return found


def _count(children: int, size: int) -> int:
    return max(ceil(children / size), 1)


def _children(paths: Iterable[str], wanted: AbstractSet[str]) -> dict[str, set[str]]:
    """Return the full paths of what lies directly in each of some directories."""
    found: dict[str, set[str]] = {}
    for path in paths:
        child = path
        for directory in above(path):
            if directory in wanted:
                found.setdefault(directory, set()).add(child)
            child = directory
    return found


def _salt_new(directory: str, children: AbstractSet[str], new: AbstractSet[str], size: int, token: str) -> Salts:
    """Salt every bucket of a new directory, also as it is with the files that are added to it."""
    files = {min(each & new) for each in _buckets(children, size) if each & new}
    extra: set[str] = set()
    while True:
        buckets = _buckets(children | extra, size)
        bare = [number for number, each in enumerate(buckets) if each and each.isdisjoint(files | extra)]
        if not bare:
            return Salts(files, extra)
        names = (path for n in itertools.count() if (path := f"{directory}/{token}-{n}") not in extra)
        extra |= {next(path for path in names if bucket(path, len(buckets)) == number) for number in bare}
