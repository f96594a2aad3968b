"""Verified copies of dataset versions.

What is written out here is hashed on the way. A copy lies at ``<cache>/<digest>/<name>``: equal content is written
once, whichever commit or repository it came from.

A copy is not synced to disk: that would cost more than the copying. After a loss of power it may be incomplete or, on
some file systems, of the right sizes with other bytes. So the sizes of a copy's files are trusted only in the boot of
the machine in which the copy was written, which a file beside it names; in a later one its contents are hashed again
before it is used for the first time, and a copy that is not intact is made anew. Within a boot, changed bytes of
unchanged size are not noticed. Where the kernel does not tell its boot (elsewhere than on Linux), sizes are trusted.

Belongs here: the layout and the atomicity of the cache. Not here: which versions exist (``tree``), and how contents
are verified (``blobs``).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import cache as memoized
from pathlib import Path
from typing import TypeVar

import xxhash

from mlops_assets.oxen.blobs import Blobs
from mlops_assets.oxen.errors import NotWritable, OxenError
from mlops_assets.oxen.tree import Entry

_CHUNK = 1 << 20
_ABANDONED_SECONDS = 24 * 3600.0
_ATTEMPTS = 5
_BOOT = Path("/proc/sys/kernel/random/boot_id")

T = TypeVar("T")


def materialize(blobs: Blobs, entries: Sequence[Entry], *, base: str, digest: str, cache: Path) -> Path:
    """Return a read-only copy of ``entries`` in the cache, made now unless it is there.

    Args:
        blobs: Where the content comes from.
        entries: The files, of which there is one, equal to ``base``, if that is a file.
        base: Path of the file or directory in the repository.
        digest: Its digest.
        cache: The cache's directory.

    Raises:
        StoreCorrupt: Stored content is missing or does not have its hash.
        OxenError: The cache cannot be written.
    """
    start = len(base) + 1 if base else 0
    wanted = {entry.path[start:]: entry for entry in entries}
    target = place(cache, digest, base)
    try:
        if _trusted(target, wanted):
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        _clear_abandoned(cache)
        with tempfile.TemporaryDirectory(prefix=".new-", dir=cache) as aside:
            fresh = Path(aside) / "fresh"
            _write(blobs, wanted, aside)
            for attempt in range(_ATTEMPTS):
                if _trusted(target, wanted):
                    return target  # another process was faster
                with contextlib.suppress(FileNotFoundError):
                    target.rename(Path(aside) / f"damaged-{attempt}")
                with contextlib.suppress(FileExistsError, OSError):
                    fresh.rename(target)
                    _trust(target)
                    return target
    except OSError as error:
        raise NotWritable(
            f"the cache {cache} cannot be written ({error}); free space or choose another one."
        ) from error
    raise OxenError(f"{target} could not be put in its place; delete it and try again.")


def place(cache: Path, digest: str, base: str) -> Path:
    """Return where the copy of the file or directory ``base`` of this digest lies."""
    return cache / digest / (base.rpartition("/")[2] or "root")


def _write(blobs: Blobs, wanted: dict[str, Entry], aside: str) -> None:
    """Write the files below ``aside/fresh``, or the one file there is as ``aside/fresh`` itself."""
    if "" in wanted:
        blobs.copy([("fresh", wanted[""])], aside)
        return
    directories: dict[str, list[tuple[str, Entry]]] = {"": []}
    for path, entry in wanted.items():
        directory, _, name = path.rpartition("/")
        directories.setdefault(directory, []).append((name, entry))
    for directory, files in directories.items():
        os.makedirs(f"{aside}/fresh/{directory}", exist_ok=True)  # noqa: PTH103
        blobs.copy(files, f"{aside}/fresh/{directory}")


def _trusted(target: Path, wanted: dict[str, Entry]) -> bool:
    """Tell whether exactly the wanted files are there, intact as far as it must be looked at in this boot."""
    sizes = _facts(target, _size)
    if sizes is None or sizes != {name: entry.bytes for name, entry in wanted.items()}:
        return False
    with contextlib.suppress(OSError):
        if _note(target).read_bytes() == _boot():
            return True
    if _facts(target, _hash) != {name: entry.hash for name, entry in wanted.items()}:
        return False
    _trust(target)
    return True


def _trust(target: Path) -> None:
    """Note that the copy was written or read in this boot."""
    with contextlib.suppress(OSError):  # it is hashed again next time
        _note(target).write_bytes(_boot())


def _note(target: Path) -> Path:
    # not the name itself, which may be as long as names can be
    return target.parent / f".{xxhash.xxh3_64_hexdigest(target.name.encode())}"


@memoized
def _boot() -> bytes:
    try:
        return _BOOT.read_bytes()
    except OSError:
        return b"unknown"


def _facts(target: Path, fact: Callable[[str], T]) -> dict[str, T] | None:
    """Return what ``fact`` tells of each file by its name below ``target``, None where nothing is."""
    if not target.is_dir():
        return {"": fact(str(target))} if target.exists() else None
    found: dict[str, T] = {}
    waiting = [(str(target), "")]
    while waiting:
        directory, below = waiting.pop()
        with os.scandir(directory) as items:
            for item in items:
                if item.is_dir(follow_symlinks=False):
                    waiting.append((item.path, f"{below}{item.name}/"))
                else:
                    found[below + item.name] = fact(item.path)
    return found


def _size(path: str) -> int:
    status = os.lstat(path)
    return status.st_size if stat.S_ISREG(status.st_mode) else -1


def _hash(path: str) -> str:
    total = xxhash.xxh3_128()
    with open(path, "rb", buffering=0) as stream:  # noqa: PTH123
        while chunk := stream.read(_CHUNK):
            total.update(chunk)
    return total.hexdigest()


def _clear_abandoned(cache: Path) -> None:
    """Remove what a killed process left; a day is longer than any copy takes."""
    for left in cache.glob(".new-*"):
        with contextlib.suppress(FileNotFoundError):
            if left.stat().st_mtime < time.time() - _ABANDONED_SECONDS:
                shutil.rmtree(left, ignore_errors=True)
