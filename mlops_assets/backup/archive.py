"""The archive: a tar file that begins with what it is, and ends with the hash of every file in it.

Belongs here: writing one, reading one, compression. Not here: which files there are, and where they go.

Whoever has read it to its end knows that it is whole: an archive without its last member was cut off, and every file is
hashed on its way (XXH3 with 128 bits, against damage; the ledgers in it prove themselves against malice). Nothing but
plain files with plain relative names is taken from one.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from datetime import datetime
from pathlib import Path
from typing import IO, Final, Literal

import xxhash
from pydantic import BaseModel

from mlops_assets.backup.errors import ArchiveDamaged, BackupError

FORMAT: Final = 1
"""Raised when an older release could not read what is written."""

ABOUT: Final = "mlops-backup.json"
MANIFEST: Final = "manifest.json"

CODECS: Final[Mapping[str, str]] = {".gz": "gzip", ".tgz": "gzip", ".zst": "zstd"}
_MAGIC: Final[Mapping[bytes, str]] = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_CHUNK: Final = 1 << 20
_MOST_ABOUT: Final = 16 << 20
_LINE: Final = 128  # what the manifest has of a file beside its name, and more
_MODE: Final = 0o644

Kind = Literal["sqlite", "postgresql", "elsewhere"]
Told = Callable[[int, int], None]
"""Is told how many bytes are done, and of how many."""


class About(BaseModel, frozen=True):
    """What an archive is.

    Attributes:
        format: Of the archive itself.
        made: When everything was held still.
        python: Version of the interpreter.
        versions: Of the packages that wrote what is in it.
        dagster: Where Dagster's database was.
        mlflow: Where MLflow's database was.
        revisions: Of the databases' schemas.
        settings: Variables that were not at their defaults, without secrets.
        outside: What belongs to the set-up and is not in the archive.
        heads: `NUMBER:HASH` of each ledger's last entry.
        files: How many there are.
        bytes: How many they have.
    """

    format: int
    made: datetime
    python: str
    versions: dict[str, str]
    dagster: Kind
    mlflow: Kind
    revisions: dict[str, str]
    settings: dict[str, str]
    outside: list[str]
    heads: dict[str, str]
    files: int
    bytes: int


class Member(BaseModel, frozen=True):
    """A file of an archive: its size, and its XXH3-128 in hexadecimal digits."""

    bytes: int
    hash: str


class Manifest(BaseModel, frozen=True):
    """All files of an archive by their names, and the hash of what it says about itself."""

    about: str
    files: dict[str, Member]


def write(stream: IO[bytes], about: About, files: Mapping[str, str], told: Told) -> None:
    """Write an archive.

    Args:
        stream: What takes it.
        about: What it is.
        files: By name in the archive, where each lies; the files must not change.
        told: Is told how far it is.

    Raises:
        BackupError: Something cannot be read or written.
    """
    text = about.model_dump_json(indent=1).encode()
    made, members, counted = about.made.timestamp(), dict[str, Member](), _Counted(told, about.bytes)
    try:
        _write_bytes(stream, ABOUT, text, made)
        for name, path in files.items():
            members[name] = _write_file(stream, name, path, counted)
        manifest = Manifest(about=xxhash.xxh3_128_hexdigest(text), files=members)
        _write_bytes(stream, MANIFEST, manifest.model_dump_json().encode(), made)
        stream.write(bytes(2 * tarfile.BLOCKSIZE))
        stream.flush()
    except OSError as error:
        raise BackupError.of("writing", error) from None
    except UnicodeEncodeError as error:
        raise BackupError(f"a file has the name {error.object!r}, which is no text; rename it") from None


def read(
    stream: IO[bytes], begin: Callable[[About], None], target: Callable[[str], Path | None], told: Told
) -> Manifest:
    """Read an archive to its end, and verify it.

    Args:
        stream: The archive, compressed or not.
        begin: Is told what it is before anything is taken from it; may refuse it.
        target: Where a file is to be written; None: it is only verified.
        told: Is told how far it is.

    Returns:
        All that is in it.

    Raises:
        ArchiveDamaged: It is not as it was written, or something else.
        BackupError: A file cannot be written.
    """
    try:
        with _plain(stream) as plain, tarfile.open(fileobj=plain, mode="r|", encoding="utf-8") as tar:
            return _read(tar, begin, target, told)
    except (tarfile.TarError, EOFError, ValueError) as error:  # also what pydantic and the codecs do not understand
        raise ArchiveDamaged(next(iter(str(error).splitlines()), "it ends early")) from None
    except OSError as error:
        if error.errno is None:  # of the codecs, which quote no system
            raise ArchiveDamaged(str(error)) from None
        raise BackupError.of("unpacking", error) from None


@contextmanager
def compressed(stream: IO[bytes], name: str) -> Iterator[IO[bytes]]:
    """What writes into a stream, compressed as the archive's name says; the stream is closed with it."""
    codec = CODECS.get(Path(name).suffix)
    if codec is None:
        with stream:
            yield stream
        return
    import pyarrow as pa  # type: ignore[import-untyped]

    with pa.CompressedOutputStream(pa.PythonFile(stream, "w"), codec) as packed:
        yield packed


@contextmanager
def _plain(stream: IO[bytes]) -> Iterator[IO[bytes]]:
    """A stream's content, whatever it is compressed with."""
    first = stream.read(4)
    again = _Again(first, stream)
    codec = next((codec for magic, codec in _MAGIC.items() if first.startswith(magic)), None)
    if codec is None:
        yield again  # type: ignore[misc]  # tarfile asks for nothing but `read`
        return
    import pyarrow as pa

    with pa.CompressedInputStream(pa.PythonFile(again, "r"), codec) as plain:
        yield plain


class _Counted:
    """How far the work is."""

    def __init__(self, told: Told, total: int) -> None:
        self._told, self._done, self._total = told, 0, total

    def add(self, count: int) -> None:
        """Count what was just done."""
        self._done += count
        self._told(self._done, self._total)


class _Again:
    """A stream whose first bytes were read already: standard input cannot go back."""

    closed = False

    def __init__(self, first: bytes, stream: IO[bytes]) -> None:
        self._first, self._stream = first, stream

    def read(self, size: int = -1) -> bytes:
        """As of any stream."""
        if not self._first:
            return self._stream.read(size)
        first, self._first = self._first, b""
        return first + self._stream.read(size - len(first) if size >= 0 else -1)

    def close(self) -> None:
        """The stream belongs to whoever opened it."""


def _read(
    tar: tarfile.TarFile, begin: Callable[[About], None], target: Callable[[str], Path | None], told: Told
) -> Manifest:
    members = iter(tar)
    first = next(members, None)
    if first is None or first.name != ABOUT or first.size > _MOST_ABOUT:
        raise ArchiveDamaged("it was not made by `mlops backup`")
    text = _content(tar, first)
    about = About.model_validate_json(text)
    begin(about)
    found, counted = dict[str, Member](), _Counted(told, about.bytes)
    for member in members:
        _require_plain(member)
        if member.name == MANIFEST:
            if member.size > _MOST_ABOUT + sum(len(name.encode()) + _LINE for name in found):
                raise ArchiveDamaged("its manifest has more in it than all of its files")
            manifest = Manifest.model_validate_json(_content(tar, member))
            _compare(manifest, found, xxhash.xxh3_128_hexdigest(text))
            return manifest
        if member.name in found:
            raise ArchiveDamaged(f"it has {member.name} twice")
        found[member.name] = _take(tar, member, target(member.name), counted)
    raise ArchiveDamaged("it was cut off: its manifest is missing")


def _require_plain(member: tarfile.TarInfo) -> None:
    """Refuse what is no plain file, and what would lie elsewhere than below the place where it is unpacked."""
    if not member.isreg():
        raise ArchiveDamaged(f"{member.name!r} in it is no plain file, which `mlops backup` never writes")
    if "\0" in member.name or any(part in {"", ".", ".."} for part in member.name.split("/")):
        raise ArchiveDamaged(f"{member.name!r} in it is no plain relative name, as `mlops backup` writes them")


def _compare(manifest: Manifest, found: Mapping[str, Member], about: str) -> None:
    if manifest.about != about:
        raise ArchiveDamaged(f"{ABOUT} is not as it was written")
    for name in sorted(manifest.files.keys() | found.keys()):
        if name not in found:
            raise ArchiveDamaged(f"{name} is missing")
        if name not in manifest.files:
            raise ArchiveDamaged(f"{name} was added to it")
        if manifest.files[name] != found[name]:
            raise ArchiveDamaged(f"{name} is not as it was written")


def _take(tar: tarfile.TarFile, member: tarfile.TarInfo, target: Path | None, counted: _Counted) -> Member:
    """Hash a file, and write it where there is a place for it."""
    if target is not None:
        target.parent.mkdir(parents=True, exist_ok=True)
    total, left = xxhash.xxh3_128(), member.size
    source = tar.extractfile(member)
    assert source is not None
    with source, target.open("xb") if target else nullcontext() as new:
        while left:
            chunk = source.read(min(_CHUNK, left))
            if not chunk:
                raise ArchiveDamaged(f"it was cut off in the middle of {member.name}")
            total.update(chunk)
            if new is not None:
                new.write(chunk)
            left -= len(chunk)
            counted.add(len(chunk))
    if target is not None:
        os.utime(target, (member.mtime, member.mtime))  # `mlops store gc` goes by age
    return Member(bytes=member.size, hash=total.hexdigest())


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    source = tar.extractfile(member)
    if source is None:
        raise ArchiveDamaged(f"{member.name} in it is no file")
    with source:
        return source.read()


def _write_bytes(stream: IO[bytes], name: str, data: bytes, mtime: float) -> None:
    stream.write(_header(name, len(data), mtime))
    stream.write(data)
    stream.write(_padding(len(data)))


def _write_file(stream: IO[bytes], name: str, path: str, counted: _Counted) -> Member:
    """Write a file as long as it was when it was opened: what runs print may still be growing."""
    with open(path, "rb", buffering=0) as source:  # noqa: PTH123  a Path for each of many files costs more than it reads
        status = os.fstat(source.fileno())
        stream.write(_header(name, status.st_size, status.st_mtime))
        total, left = xxhash.xxh3_128(), status.st_size
        while left:
            chunk = source.read(min(_CHUNK, left))
            if not chunk:
                raise BackupError(f"{name} was shortened while it was read; try again")
            total.update(chunk)
            stream.write(chunk)
            left -= len(chunk)
            counted.add(len(chunk))
    stream.write(_padding(status.st_size))
    return Member(bytes=status.st_size, hash=total.hexdigest())


def _header(name: str, size: int, mtime: float) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = size, int(mtime), _MODE
    return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "strict")


def _padding(size: int) -> bytes:
    return bytes(-size % tarfile.BLOCKSIZE)
