"""Looking after the store: what is there, what is damaged, what may go.

Belongs here: listing, hashing again, setting aside and removing. Does not: which entries are still needed
(`doctor/references.py` tells), and writing entries (`store.py`).
"""

from __future__ import annotations

import errno
import hashlib
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

from mlops_assets.fingerprint import DIGEST_LENGTH
from mlops_assets.store import LOCK, MANIFEST, Entry, EntryCorrupt, Store, StoreError

ASIDE: Final = "damaged-manifest.json"
"""What the manifest of a damaged entry is renamed to: without one there is no entry, and no byte is lost."""

_KEY: Final = re.compile(rf"[0-9a-f]{{{DIGEST_LENGTH}}}")
_CHUNK: Final = 1 << 20


@dataclass(frozen=True)
class Leftover:
    """Something in a slot that belongs to no entry: a half-written or replaced attempt, or a manifest set aside."""

    url: str
    bytes: int
    made: float


@dataclass(frozen=True)
class Slot:
    """What lies under one recipe's key, whole or not.

    Attributes:
        bytes: Size of all files in it.
        made: When the entry was completed, or without one the newest leftover, in seconds since the epoch; now, where
            the file system does not tell.
        entry: The output; None while there is none, or when its manifest cannot be read.
        flaw: What is wrong with the entry, in a few words; empty when nothing is, or when there is no entry.
    """

    asset: str
    key: str
    url: str
    bytes: int
    made: float
    entry: Entry | None
    flaw: str
    leftovers: tuple[Leftover, ...]

    @property
    def place(self) -> tuple[str, str]:
        """Asset and key."""
        return self.asset, self.key

    @property
    def pipeline(self) -> str:
        """The pipeline that made what is there."""
        return self.asset.partition("/")[0]

    @property
    def exists(self) -> bool:
        """Whether there is an entry, whole or damaged."""
        return self.entry is not None or bool(self.flaw)


@dataclass(frozen=True)
class Garbage:
    """Something that `collect` removed, or would remove: an entry, a leftover, or a lock without anything beside it."""

    asset: str
    key: str
    kind: Literal["entry", "leftover", "lock"]
    url: str
    bytes: int


def entries(store: Store, asset: str | None = None) -> Iterator[Slot]:
    """What is there, by asset and key, whole or not; files are compared by size, not hashed.

    Args:
        store: The store.
        asset: An asset, or a folder of assets (`iris/model`, `iris`); None is everything.

    Raises:
        StoreError: The store cannot be read.
    """
    for found, key in _keys(store, (asset or "").strip("/")):
        slot = _slot(store, found, key)
        if slot:
            yield slot


def verify(
    store: Store, slots: Iterable[Slot] | None = None, *, on_read: Callable[[int], None] = lambda _: None
) -> Iterator[Slot]:
    """Hash every file again; yields the damaged slots, with what is wrong as their `flaw`.

    Args:
        store: The store.
        slots: What to look at; None is everything.
        on_read: Is told how many bytes were just read.

    Raises:
        StoreError: Something cannot be read for another reason than damage.
    """
    for slot in entries(store) if slots is None else slots:
        flaw = slot.flaw or (_flaw(store, slot.entry, on_read) if slot.entry else "")
        now = _slot(store, slot.asset, slot.key) if flaw else None  # it may have been removed or replaced meanwhile
        if now and (now.flaw or now.entry == slot.entry):
            yield replace(now, flaw=now.flaw or flaw)


def set_aside(store: Store, slot: Slot) -> bool:
    """Take a damaged entry out of use, so that it is made again; its files stay until `collect` removes them.

    Returns:
        False when somebody is making the entry right now.

    Raises:
        StoreError: The place cannot be written.
    """
    with store.unless_made(slot.asset, slot.key) as free:
        if free:
            try:
                with suppress(FileNotFoundError):
                    store.move(f"{slot.url}/{MANIFEST}", f"{slot.url}/{ASIDE}")
            except OSError as error:
                raise StoreError.writing(slot.url, error) from None
        return free


def collect(
    store: Store,
    keep: Callable[[Slot], bool],
    *,
    older_than: float,
    dry_run: bool,
    slots: Iterable[Slot] | None = None,
) -> list[Garbage]:
    """Remove entries that nothing needs, what killed writers left, and locks without anything beside them.

    What is being made at the moment is left alone. Whoever found an entry before it was removed gets `EntryMissing` on
    reading it, so keep what a run may be reading.

    Args:
        store: The store.
        keep: Whether an entry is needed; asked again right before it is removed.
        older_than: Seconds; what is younger stays, needed or not.
        dry_run: Only tell.
        slots: What to look at; None is everything.

    Returns:
        What was removed, or would be.

    Raises:
        StoreError: Something cannot be removed.
    """
    before = time.time() - older_than
    collected: list[Garbage] = []
    for slot in entries(store) if slots is None else slots:
        found = _garbage(slot, keep, before)
        if found and not dry_run:
            with store.unless_made(slot.asset, slot.key) as free:
                now = _slot(store, slot.asset, slot.key) if free else None
                found = _garbage(now, keep, before) if now else []
                for garbage in found:
                    _remove(store, garbage, slot.url)
        collected += found
    return collected


def _keys(store: Store, below: str) -> Iterator[tuple[str, str]]:
    """Asset and key of each slot, looking no deeper than the slots."""
    url = f"{store.root}/{below}".rstrip("/")
    store.fs.invalidate_cache(url)
    try:
        items = sorted(store.fs.ls(url, detail=True), key=lambda item: str(item["name"]))
    except FileNotFoundError:
        return
    except OSError as error:
        raise StoreError.reading(url, error) from None
    for item in items:
        name = item["name"].rstrip("/").rpartition("/")[2]
        if item["type"] == "directory" and _KEY.fullmatch(name):
            yield below, name
        elif item["type"] == "directory":
            yield from _keys(store, f"{below}/{name}".lstrip("/"))


def _slot(store: Store, asset: str, key: str) -> Slot | None:
    url = store.url(asset, key)
    store.fs.invalidate_cache(url)
    try:
        found = {path[len(url) + 1 :]: info for path, info in store.fs.find(url, detail=True, withdirs=True).items()}
    except OSError as error:
        raise StoreError.reading(url, error) from None
    sizes = {path: int(info["size"]) for path, info in found.items() if info["type"] == "file"}
    entry, flaw = None, ""
    try:
        entry = store.find(asset, key)
    except EntryCorrupt as error:
        flaw = f"{MANIFEST}: {error.flaw}"
    for name, file in entry.files.items() if entry else ():
        if sizes.get(file.path) != file.bytes:
            flaw = f"{name}: {'its size is wrong' if file.path in sizes else 'it is gone'}"
    own = {file.path.partition("/")[0] for file in entry.files.values()} if entry else set()
    leftovers = []
    for top in sorted({path.partition("/")[0] for path in found} - own - {"", LOCK, MANIFEST}):
        files = [path for path in sizes if path == top or path.startswith(f"{top}/")]
        newest = _newest(store, [f"{url}/{path}" for path in files or [top]])
        leftovers.append(Leftover(f"{url}/{top}", sum(sizes[path] for path in files), newest))
    if entry or flaw:
        made = _newest(store, [f"{url}/{MANIFEST}"])
    else:
        made = max((one.made for one in leftovers), default=_newest(store, [url]))
    return Slot(asset, key, url, sum(sizes.values()), made, entry, flaw, tuple(leftovers)) if found else None


def _newest(store: Store, urls: Iterable[str]) -> float:
    """When the newest was changed, in seconds since the epoch; now where nothing tells, so that none looks old."""
    times = []
    for url in urls:
        # some stores keep no times; others remove files meanwhile
        with suppress(NotImplementedError, FileNotFoundError):
            times.append(store.fs.modified(url).timestamp())
    return max(times, default=time.time())


def _flaw(store: Store, entry: Entry, on_read: Callable[[int], None]) -> str:
    """What is wrong with the content of an entry's files; empty when nothing is."""
    for name, file in entry.files.items():
        url, total = f"{entry.url}/{file.path}", hashlib.sha256()
        try:
            with store.fs.open(url, "rb") as stream:
                while chunk := stream.read(_CHUNK):
                    total.update(chunk)
                    on_read(len(chunk))
        except FileNotFoundError:
            return f"{name}: it is gone"
        except OSError as error:
            if error.errno != errno.EIO:
                raise StoreError.reading(url, error) from None
            return f"{name}: the disk cannot read it"
        if total.hexdigest() != file.sha256:
            return f"{name}: its hash is wrong"
    return ""


def _garbage(slot: Slot, keep: Callable[[Slot], bool], before: float) -> list[Garbage]:
    """What may go from a slot: all of it, or leftovers that lie beside what stays."""
    old = [one for one in slot.leftovers if one.made < before]
    if len(old) == len(slot.leftovers) and slot.made < before and not (slot.exists and keep(slot)):
        kind: Literal["entry", "leftover", "lock"] = "entry" if slot.exists else "leftover" if old else "lock"
        return [Garbage(slot.asset, slot.key, kind, slot.url, slot.bytes)]
    return [Garbage(slot.asset, slot.key, "leftover", one.url, one.bytes) for one in old]


def _remove(store: Store, garbage: Garbage, slot: str) -> None:
    """Remove a leftover, or a slot with all that is in it, whose lock is ours."""
    try:
        if garbage.kind == "entry":
            store.fs.rm_file(f"{slot}/{MANIFEST}")  # first, so that the entry is not there from here on
        if garbage.url != slot or not store.is_local:
            store.fs.rm(garbage.url, recursive=True)
            return
        for path in Path(slot).iterdir():
            if path.name != LOCK:
                store.fs.rm(str(path), recursive=True)
        Path(slot, LOCK).unlink()  # whoever waits for it finds it gone, and takes a new one
        with suppress(OSError):
            Path(slot).rmdir()  # unless somebody has begun there anew
    except OSError as error:
        raise StoreError(f"{slot} cannot be removed: {error.strerror or error}; mend its rights") from None
