"""The content store of a repository: reading, copying and checking contents by their hash.

Contents lie whole and uncompressed under ``versions/files/<first two digits>/<the rest>/data``, named by their xxh3-128
without zero padding; padding is understood too. Oxen hands out damaged content without a word, so nothing leaves here
that does not have its hash.

Plain file descriptors throughout: 10,000 small files are copied as fast as ``cp`` does it only with one open, read and
close for each, one open, write and close for its copy, and nothing on top.
"""

# os.path and os functions on text: building a Path for each of 10,000 files would cost a fifth of the copying.
# ruff: noqa: PTH103, PTH105, PTH106, PTH108, PTH110, PTH116, PTH120, PTH123

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import xxhash

from mlops_assets.oxen.errors import StoreCorrupt
from mlops_assets.oxen.nodes import Entry

TEMPORARY = ".oxentmp."
"""What the names of files have in common that are being written into the content store, Oxen's own and ours."""

_CHUNK = 1 << 20
_READ = os.O_RDONLY | os.O_CLOEXEC
_DIRECTORY = _READ | os.O_DIRECTORY
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


class Blobs:
    """The contents of one repository.

    Args:
        store: The repository's ``.oxen`` directory.
    """

    def __init__(self, store: Path) -> None:
        self._files = f"{store}/versions/files/"

    def path(self, content_hash: str) -> str:
        """Return where content of this hash lies; the unpadded place if there is none."""
        if content_hash[0] == "0":
            padded, content_hash = f"{self._files}{content_hash[:2]}/{content_hash[2:]}/data", content_hash.lstrip("0")
            if os.path.exists(padded):
                return padded
        return f"{self._files}{content_hash[:2]}/{content_hash[2:]}/data"

    def read(self, entry: Entry) -> bytes:
        """Return the content of a file.

        Raises:
            StoreCorrupt: It is missing, cannot be read or does not have its hash.
        """
        try:
            return self._whole(entry) if entry.bytes < _CHUNK else b"".join(self._chunks(entry))
        except _Damaged as damage:
            raise self._corrupt(entry, damage) from None

    def copy(self, files: Iterable[tuple[str, Entry]], directory: str) -> None:
        """Write contents into new, read-only files of one directory, with 1 MiB in memory at most.

        Args:
            files: Name of each new file, and whose content it gets.
            directory: An existing directory.

        Raises:
            StoreCorrupt: A content is missing, cannot be read or does not have its hash; its file is incomplete then.
            OSError: A file cannot be written.
        """
        place = os.open(directory, _DIRECTORY)
        try:
            for name, entry in files:
                if entry.bytes < _CHUNK:
                    content = self._whole(entry)
                    new = os.open(name, _NEW, 0o444, dir_fd=place)
                    try:
                        done = os.write(new, content)
                    finally:
                        os.close(new)
                    if done < len(content):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                else:
                    with open(os.open(name, _NEW, 0o444, dir_fd=place), "wb", buffering=_CHUNK) as stream:
                        stream.writelines(self._chunks(entry))
        except _Damaged as damage:
            raise self._corrupt(entry, damage) from None
        finally:
            os.close(place)

    def damage(self, entry: Entry, *, content: bool = True) -> str:
        """Return what is wrong with the content of a file, "" when it is intact.

        Args:
            entry: The file.
            content: Whether all of it is read and hashed; else its size alone is looked at.
        """
        try:
            size = os.stat(self.path(entry.hash)).st_size
            if size != entry.bytes:
                return f"has {size} bytes instead of {entry.bytes}"
            for _ in self._chunks(entry) if content else ():
                pass
        except OSError as error:
            return _unreadable(error)
        except _Damaged as damage:
            return str(damage)
        return ""

    def require(self, entry: Entry) -> None:
        """Read all of a file's content.

        Raises:
            StoreCorrupt: It is missing, cannot be read or does not have its hash.
        """
        damage = self.damage(entry)
        if damage:
            raise self._corrupt(entry, damage)

    def remove(self, content_hash: str) -> None:
        """Remove a content if it is there."""
        path = self.path(content_hash)
        with contextlib.suppress(OSError):  # it is not there, or something else is beside it
            os.unlink(path)
            os.rmdir(os.path.dirname(path))

    def put_back(self, entry: Entry, content: Path) -> bool:
        """Store what a local file holds, durably, in place of lost or damaged content; False if that is another.

        Raises:
            OSError: The local file cannot be read, or the store cannot be written.
        """
        target = self.path(entry.hash)
        aside = f"{target}{TEMPORARY}{os.getpid()}"
        os.makedirs(os.path.dirname(target), exist_ok=True)
        total = xxhash.xxh3_128()
        try:
            with content.open("rb") as source, open(aside, "wb") as new:
                while chunk := source.read(_CHUNK):
                    total.update(chunk)
                    new.write(chunk)
                new.flush()
                os.fsync(new.fileno())
            if total.hexdigest() != entry.hash:
                return False
            os.replace(aside, target)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(aside)
        return True

    def _whole(self, entry: Entry) -> bytes:
        name = entry.hash
        try:
            source = os.open(f"{self._files}{name[:2]}/{name[2:]}/data" if name[0] != "0" else self.path(name), _READ)
            try:
                content = os.read(source, entry.bytes + 1)  # the byte more shows content that is too long
            finally:
                os.close(source)
        except OSError as error:
            raise _Damaged(_unreadable(error)) from None
        if xxhash.xxh3_128_hexdigest(content) != name:
            raise _Damaged("does not have its hash")
        return content

    def _chunks(self, entry: Entry) -> Iterator[bytes]:
        total = xxhash.xxh3_128()
        try:
            with open(self.path(entry.hash), "rb", buffering=0) as source:
                while chunk := source.read(_CHUNK):
                    total.update(chunk)
                    yield chunk
        except OSError as error:
            raise _Damaged(_unreadable(error)) from None
        if total.hexdigest() != entry.hash:
            raise _Damaged("does not have its hash")

    def _corrupt(self, entry: Entry, damage: _Damaged | str) -> StoreCorrupt:
        return StoreCorrupt(
            f"the stored content of {entry.path!r} {damage} ({self.path(entry.hash)}); `mlops data fsck --heal` puts "
            "it back where a copy is left, else delete that file if it is there, then commit the original of "
            f"{entry.path!r} again or restore it from a backup."
        )


class _Damaged(Exception):
    """What is wrong with a content, in words that follow its name."""


def _unreadable(error: OSError) -> str:
    return "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
