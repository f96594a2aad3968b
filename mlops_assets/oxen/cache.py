"""Verified copies of dataset versions.

Oxen restores damaged content without a word, so what is written out here is hashed on the way. A copy lies at
``<cache>/<digest>/<name>``: equal content is written once, whichever commit or repository it came from.

Belongs here: the layout and the atomicity of the cache. Not here: which versions exist (``tree``).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import xxhash

from mlops_assets.oxen.errors import OxenError, StoreCorrupt
from mlops_assets.oxen.tree import Entry, Tree

_CHUNK = 1 << 20
_ABANDONED_SECONDS = 24 * 3600.0
_ATTEMPTS = 5


def materialize(tree: Tree, entries: Sequence[Entry], *, base: str, digest: str, cache: Path) -> Path:
    """Return a read-only copy of ``entries`` in the cache, made now unless it is there.

    Args:
        tree: Where the content comes from.
        entries: The files, of which there is one, equal to ``base``, if that is a file.
        base: Path of the file or directory in the repository.
        digest: Its digest.
        cache: The cache's directory.

    Raises:
        StoreCorrupt: Stored content is missing or does not have its hash.
        OxenError: The cache cannot be written.
    """
    wanted = {entry.path[len(base) :].lstrip("/"): entry for entry in entries}
    target = cache / digest / (base.rpartition("/")[2] or "root")
    if _intact(target, wanted):
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _clear_abandoned(cache)
        with tempfile.TemporaryDirectory(prefix=".new-", dir=cache) as aside:
            fresh = Path(aside) / "fresh"
            for name, entry in wanted.items():
                _copy(tree.blob(entry.hash), entry, fresh / name if name else fresh)
            if not wanted:
                fresh.mkdir()
            for attempt in range(_ATTEMPTS):
                if _intact(target, wanted):
                    return target  # another process was faster
                with contextlib.suppress(FileNotFoundError):
                    target.rename(Path(aside) / f"damaged-{attempt}")
                with contextlib.suppress(FileExistsError, OSError):
                    fresh.rename(target)
                    return target
    except OSError as error:
        raise OxenError(f"the cache {cache} cannot be written ({error}); free space or choose another one.") from error
    raise OxenError(f"{target} could not be put in its place; delete it and try again.")


def _intact(target: Path, wanted: dict[str, Entry]) -> bool:
    """Tell whether exactly the wanted files are there, each of its size."""
    if "" in wanted:
        return target.is_file() and target.stat().st_size == wanted[""].bytes
    if not target.is_dir():
        return False
    found: dict[str, int] = {}
    waiting = [(str(target), "")]
    while waiting:
        directory, below = waiting.pop()
        with os.scandir(directory) as items:
            for item in items:
                if item.is_dir(follow_symlinks=False):
                    waiting.append((item.path, f"{below}{item.name}/"))
                else:
                    found[below + item.name] = item.stat(follow_symlinks=False).st_size
    return found == {name: entry.bytes for name, entry in wanted.items()}


def _copy(blob: Path, entry: Entry, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    total = xxhash.xxh3_128()
    try:
        source = blob.open("rb")
    except FileNotFoundError:
        raise damaged(blob, entry, "is missing") from None
    with source, target.open("wb") as copy:
        while chunk := source.read(_CHUNK):
            total.update(chunk)
            copy.write(chunk)
        if total.digest() != bytes.fromhex(entry.hash):
            raise damaged(blob, entry, "does not have its hash")
        os.fchmod(copy.fileno(), 0o444)


def damaged(blob: Path, entry: Entry, what: str) -> StoreCorrupt:
    """The error for stored content that is not what it should be."""
    return StoreCorrupt(
        f"the stored content of {entry.path!r} {what} ({blob}); delete that file if it is there, then "
        f"commit the original of {entry.path!r} again or restore it from a backup."
    )


def _clear_abandoned(cache: Path) -> None:
    """Remove what a killed process left; a day is longer than any copy takes."""
    for place in cache.glob(".new-*"):
        with contextlib.suppress(FileNotFoundError):
            if place.stat().st_mtime < time.time() - _ABANDONED_SECONDS:
                shutil.rmtree(place, ignore_errors=True)
