"""Which buckets of a tree Oxen would give a name that another one may have, and how each gets a name of its own.

Oxen keeps a directory in buckets of ``vnode_size`` children, each under a name in one database that all versions share.
A bucket that has something new in a directory that existed gets a random name. Every other bucket is named by the
directory's path and the hashes of its children: without their names, and with the same hash for every directory that is
new itself. So the buckets ``{x: c}`` and ``{y: c}`` of ``d``, each in a commit that makes ``d`` anew or that only
removes something from it, have one name, and the later commit silently changes what the earlier one holds, on whatever
branch (measured with oxenai 0.65.1).

So a change with such buckets is committed aside in two steps. In the first, one file of each of them, its *salt*, has
random content; where there is no file, one is added. The second gives the salts their right content, or removes them.
In the first step no bucket can be named as another is, and in the second all of them exist and have something new.

Belongs here: finding the buckets. Not here: the steps (``staging``).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from math import ceil
from typing import NamedTuple

import xxhash

from mlops_assets.oxen.inputs import directories


class Salts(NamedTuple):
    """Files of the new tree to be salted, and files to be added that are not in it."""

    files: set[str]
    extra: set[str]


def salts(old: AbstractSet[str], new: AbstractSet[str], changed: AbstractSet[str], *, size: int, token: str) -> Salts:
    """Return what must be salted for a change to give every bucket it writes a name of its own.

    Args:
        old: The paths of all files before.
        new: The paths of all files after.
        changed: Those of ``new`` that are not in ``old`` or have other content there.
        size: Children per bucket.
        token: A text that is in no path.
    """
    touched = {parent for path in changed | (old - new) for parent in above(path)}
    before, after = _children(old, touched), _children(new, touched)
    before.setdefault("", set())  # a commit has a root even when it has no files
    found = Salts(set(), set())
    for directory, children in after.items():
        if directory not in before:
            here = _salt_new(directory, children, new, size, token)
            found.files.update(here.files)
            found.extra.update(here.extra)
            continue
        count = _count(len(children), size)
        lost = before[directory] - children
        moved = children if count != _count(len(before[directory]), size) else lost
        rewritten = {bucket(child, count) for child in moved}
        renewed = {bucket(child, count) for child in children if child in changed or child in touched}
        found.files.update(_files(children & new, count, rewritten - renewed).values())
    return found


def bucket(path: str, count: int) -> int:
    """Return in which of ``count`` buckets of its directory a file or directory lies."""
    return xxhash.xxh3_128_intdigest(path.encode()) % count if count > 1 else 0


def above(path: str) -> Iterable[str]:
    """Yield the directories above a path, the nearest first, the root ("") last."""
    yield from directories(path)
    yield ""


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


def _files(files: Iterable[str], count: int, wanted: AbstractSet[int]) -> dict[int, str]:
    """Return a file of each of the wanted buckets that has one."""
    found: dict[int, str] = {}
    for path in sorted(files, reverse=True):
        number = bucket(path, count)
        if number in wanted:
            found[number] = path
    return found


def _salt_new(directory: str, children: set[str], new: AbstractSet[str], size: int, token: str) -> Salts:
    """Salt every bucket of a new directory."""
    count = _count(len(children), size)
    files = _files(children & new, count, set(range(count)))
    extra = {_extra(directory, number, count, token) for number in range(count) if number not in files}
    if _count(len(children) + len(extra), size) > count:  # in the first step it has a bucket more than in the second
        extra |= {_extra(directory, number, count + 1, token) for number in range(count + 1)}
    return Salts(set(files.values()), extra)


def _extra(directory: str, number: int, count: int, token: str) -> str:
    return next(path for n in itertools.count() if bucket(path := f"{directory}/{token}-{n}", count) == number)
