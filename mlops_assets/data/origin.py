"""Where data come from before they are in Oxen: archives and local paths.

Belongs here: unpacking an archive that nobody vouches for. Does not belong here: getting it (`download`), what the
files mean (`images`, `readers`), and committing them.
"""

from __future__ import annotations

import shutil
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Final, NamedTuple, Self

from mlops_assets.data.download import SPARE, OriginError

ARCHIVES: Final = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
"""File name endings, in lower case, that `is_archive` takes for archives."""

_CHUNK: Final = 1 << 20
_BLOCK: Final = 4096  # bytes that the smallest file takes on a disk
_FILTER: Final[dict[str, Any]] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
"""A second look at what is unpacked, which Python has from 3.11.4 on; Debian 12's is 3.11.2."""

_LONGEST_HEADER: Final = 1 << 20  # bytes
_CARRIERS: Final = frozenset(
    {tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK}
)


def is_archive(path: Path) -> bool:
    """Tell by its name whether a file is an archive that `unpacked` takes; a single gzipped file is none."""
    return path.name.lower().endswith(ARCHIVES)


def local(path: Path) -> Path:
    """Give the directory or archive that a path stands for: itself, or the one archive that lies in a directory.

    A directory that holds directories stands for itself, whatever lies beside them.

    Raises:
        OriginError: It does not exist, is empty, or is a file of another kind; or it holds several archives.
    """
    expected = f"a directory with the files, or an archive ({', '.join(ARCHIVES)})"
    try:
        if not path.is_dir():
            if path.is_file() and is_archive(path):
                return path
            what = "is something else" if path.exists() else "does not exist"
            raise OriginError(f"{path} {what}: give {expected}.")
        items = sorted(path.iterdir())
    except OSError as error:
        raise OriginError(f"{path} cannot be read ({error.strerror}): make it readable.") from None
    if not items:
        raise OriginError(f"{path} is empty: give {expected}.")
    archives = [item for item in items if item.is_file() and is_archive(item)]
    if any(item.is_dir() for item in items):
        return path  # of images in directories; an archive beside them is none of them
    if len(archives) > 1:
        names = ", ".join(item.name for item in archives)
        raise OriginError(f"{path} holds {len(archives)} archives ({names}): give one of them.")
    return archives[0] if archives else path


def unpacked(archive: Path, into: Path) -> Path:
    """Unpack a tar file (plain, gzip, bzip2, xz) or zip file into a new directory, which appears when it is whole.

    Nothing is written outside of it, and no more than the disk has room for.

    Raises:
        OriginError: The archive is damaged, holds anything but files and directories with plain names below its root,
            is encrypted or too large; or `into` exists.
    """
    if into.exists():
        raise OriginError(f"{into} exists: remove it, or unpack {archive.name} somewhere else.")
    try:
        into.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{into.name}-", dir=into.parent) as aside:
            fresh = Path(aside) / "fresh"
            fresh.mkdir()
            _unpack(archive, fresh)
            fresh.rename(into)
    except OriginError:
        raise
    except Exception as error:  # noqa: BLE001 - the parsers raise anything on damaged archives, and that is the finding
        if isinstance(error, OSError) and error.errno is not None:
            raise OriginError(f"{archive} cannot be unpacked into {into} ({_line(error)}): mend that.") from None
        raise OriginError(f"{archive} is damaged, or no archive ({_line(error)}): get it again.") from None
    return into


class _Member(NamedTuple):
    """One entry of an archive; `plain` if it is a file or a directory, and `extract` writes it."""

    name: str
    plain: bool
    size: int
    extract: Callable[[], object]


def _unpack(archive: Path, into: Path) -> None:
    room, used = shutil.disk_usage(into).free - SPARE, 0
    for member in (_zip_members if archive.name.lower().endswith(".zip") else _tar_members)(archive, into):
        path = PurePosixPath(member.name)
        if path.is_absolute() or ".." in path.parts or "\\" in member.name or not member.plain:
            what = "leaves the archive" if member.plain else "is a link, a device or encrypted"
            raise OriginError(f"{archive} is refused, because its entry {member.name!r} {what}: get another archive.")
        used += max(member.size, _BLOCK)
        if used > room:
            raise OriginError(f"{into.parent.parent} has no room for what {archive} holds: free space.")
        member.extract()
    if not any(into.iterdir()):
        raise OriginError(f"{archive} holds no files: give another archive.")


def _zip_members(archive: Path, into: Path) -> Iterator[_Member]:
    with zipfile.ZipFile(archive) as opened:
        for info in opened.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            plain = kind in {0, stat.S_IFREG, stat.S_IFDIR} and not info.flag_bits & 1  # 1: encrypted
            yield _Member(info.filename, plain, info.file_size, partial(opened.extract, info, into))


def _tar_members(archive: Path, into: Path) -> Iterator[_Member]:
    with tarfile.open(archive, tarinfo=_StrictHeader) as opened:
        for info in opened:
            extract = partial(opened.extract, info, into, set_attrs=False, **_FILTER)
            yield _Member(info.name, info.isreg() or info.isdir(), info.size, extract)
        assert opened.fileobj is not None
        opened.fileobj.read(_CHUNK)  # what fills the last block, and the compressor's checksum behind it


class _StrictHeader(tarfile.TarInfo):
    """A tar header that must be whole: `tarfile` takes a damaged one for the end of the archive."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        """Read the next header, or the end of the archive."""
        start = archive.offset
        try:
            header = super().fromtarfile(archive)
        except tarfile.HeaderError as error:
            if type(error).__name__ == "EOFHeaderError":
                raise
            raise tarfile.ReadError(str(error)) from None
        if archive.offset <= start:  # a negative size leads back, and round for ever
            raise tarfile.ReadError(f"a size of {header.size} bytes")
        return header

    @classmethod
    def frombuf(cls, block: bytes | bytearray, encoding: str, errors: str) -> Self:
        """Parse one header; one that carries a name or attributes is read as a whole, and so must be short."""
        header = super().frombuf(block, encoding, errors)
        if header.type in _CARRIERS and not 0 <= header.size <= _LONGEST_HEADER:
            raise tarfile.ReadError(f"a header of {header.size} bytes")
        return header


def _line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__).rstrip(".:")
