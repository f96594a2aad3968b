"""What is asked to be committed, checked before Oxen sees it.

Oxen drops directory symlinks, broken links, empty directories and names that are not UTF-8 without a word, hangs on a
FIFO, takes ``*``, ``?`` and ``[]`` in a path for a pattern (removing ``*.csv`` removes every CSV file), and follows
``.oxenignore``. All of these are refused here.

Belongs here: the rules for paths and branch names, and the listing and hashing of local files.
"""

from __future__ import annotations

import os
import re
import stat
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import xxhash

from mlops_assets.oxen.errors import InputChanged, UnsafePath
from mlops_assets.oxen.work import ASIDE

_BRANCH = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*")
_LIKE_AN_ID = re.compile(r"[0-9a-f]{7,32}")
_RESERVED = frozenset({".oxen", ".oxenignore"})
_LONGEST_NAME = 255
_CHUNK = 1 << 20


class Source(NamedTuple):
    """One file to commit: where it goes, its content or where that is, its xxh3-128 and what its inode looked like."""

    path: str
    content: bytes | str
    hash: str
    size: int
    stamp: tuple[int, ...]


def checked_path(path: str, *, new: bool = False) -> str:
    """Return a path of the repository in its normal form, without slashes at its ends ("" is the root).

    Args:
        path: Relative to the root, with forward slashes.
        new: Whether it is to be given to Oxen, which reads some characters as a pattern.

    Raises:
        UnsafePath: It is absolute, leaves the repository, or cannot be stored faithfully.
    """
    if path.startswith("/"):
        raise UnsafePath(f"the path {path!r} is absolute; give it relative to the repository's root.")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise UnsafePath(f"the path {path!r} contains '..'; give it relative to the repository's root.")
    if reserved := _RESERVED.intersection(parts):
        raise UnsafePath(f"the path {path!r} contains {min(reserved)!r}, which Oxen itself uses; choose another name.")
    if "\\" in path or any(unicodedata.category(letter) in ("Cc", "Cs") for letter in path):
        raise UnsafePath(
            f"the path {path!r} contains a backslash, a control character or bytes that are not UTF-8; rename it."
        )
    if any(len(part.encode()) > _LONGEST_NAME for part in parts):
        raise UnsafePath(f"the path {path!r} contains a name of more than {_LONGEST_NAME} bytes; shorten it.")
    if new and (pattern := set(path) & set("*?[]")):
        raise UnsafePath(f"the path {path!r} contains {min(pattern)!r}, which Oxen takes for a pattern; rename it.")
    return "/".join(parts)


def checked_branch(name: str) -> str:
    """Return a name for a branch as it is.

    Raises:
        UnsafePath: It could be taken for a commit id or for nothing at all.
    """
    if not _BRANCH.fullmatch(name) or ".." in name or len(name) > 200 or name == "HEAD":
        raise UnsafePath(
            f"{name!r} is no valid branch name; use letters, digits, '.', '_', '-' and '/', beginning with a letter."
        )
    if name.startswith(ASIDE):
        raise UnsafePath(f"the branch name {name!r} begins with {ASIDE!r}, which is not for use; choose another one.")
    if _LIKE_AN_ID.fullmatch(name):
        raise UnsafePath(f"the branch name {name!r} looks like a commit id; choose another one.")
    return name


def sources(files: Mapping[str, Path | bytes]) -> list[Source]:
    """Return every file that ``files`` stands for, hashed; a local directory stands for all files below it.

    Raises:
        UnsafePath: A path or a local file that Oxen would drop, misread or hang on.
    """
    found: dict[str, Source] = {}
    for target, value in files.items():
        path = checked_path(target, new=True)
        if isinstance(value, bytes):
            if not path:
                raise UnsafePath("bytes cannot be committed as the root of the repository; give them a file's path.")
            listed: Iterable[Source] = [Source(path, value, xxhash.xxh3_128_hexdigest(value), len(value), ())]
        else:
            listed = _local(path, value)
        for source in listed:
            if source.path in found:
                raise UnsafePath(f"the path {source.path!r} is given twice; give it once.")
            found[source.path] = source
    for path in found:
        for parent in directories(path):
            if parent in found:
                raise UnsafePath(f"{parent!r} is given as a file and, by {path!r}, as a directory; rename one of them.")
    return list(found.values())


def directories(path: str) -> Iterator[str]:
    """Yield the directories above a path, the nearest first, without the root."""
    while "/" in path:
        path = path.rpartition("/")[0]
        yield path


def _local(path: str, local: Path) -> Iterator[Source]:
    if local.is_dir():  # a link to a directory is fine as the starting point: the caller names it
        yield from _directory(path, local)
    elif not path:
        raise UnsafePath(f"{local} cannot be committed as the root of the repository; give it a file's path.")
    else:
        yield _file(path, local)


def _directory(path: str, local: Path) -> Iterator[Source]:
    try:
        items = sorted(local.iterdir())
    except OSError as error:
        raise UnsafePath(f"{local} cannot be read ({error.strerror}); make it readable.") from error
    if not items:
        raise UnsafePath(
            f"the directory {local} is empty, and Oxen keeps files only; put a file into it or leave it out."
        )
    for item in items:
        below = checked_path(f"{path}/{item.name}".lstrip("/"), new=True)
        if item.is_dir():
            if item.is_symlink():
                raise UnsafePath(f"{item} is a link to a directory, which Oxen drops; copy the directory in its place.")
            yield from _directory(below, item)
        else:
            yield _file(below, item)


def _file(path: str, local: Path) -> Source:
    try:
        # O_NONBLOCK: opening a FIFO would wait for a writer
        descriptor = os.open(local, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        what = "is a broken link" if local.is_symlink() and not local.exists() else f"cannot be read ({error.strerror})"
        raise UnsafePath(f"{local} {what}; mend it or leave it out.") from error
    with os.fdopen(descriptor, "rb", buffering=0) as stream:
        before = os.fstat(descriptor)
        if not stat.S_ISREG(before.st_mode):
            raise UnsafePath(f"{local} is neither a file nor a directory; leave it out.")
        total = xxhash.xxh3_128()
        while chunk := stream.read(_CHUNK):
            total.update(chunk)
        if stamp(os.fstat(descriptor)) != stamp(before):
            raise InputChanged(f"{local} was modified while it was read; commit it again when its writer is done.")
    return Source(path, str(local.resolve()), total.hexdigest(), before.st_size, stamp(before))


def stamp(status: os.stat_result) -> tuple[int, ...]:
    """Return what changes whenever a file's content does."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
