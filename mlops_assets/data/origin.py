"""Where data come from before they are in Oxen: downloads, archives and local paths.

Belongs here: fetching a file and proving it, and unpacking an archive that nobody vouches for. Does not belong here:
what the files mean (`images`, `readers`), and committing them.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from mlops_assets.errors import MlopsError

if TYPE_CHECKING:
    import httpx

Progress = Callable[[int, int], None]

ARCHIVES: Final = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
"""File name endings, in lower case, that `is_archive` takes for archives."""

_WAITS: Final = (0.5, 1.0, 2.0, 4.0)  # seconds before each new attempt that follows one without progress
_TRANSIENT: Final = frozenset({408, 429, 500, 502, 503, 504})
_CHUNK: Final = 1 << 20
_SPARE: Final = 1 << 27  # bytes of a disk that a download or an archive must leave free
_BLOCK: Final = 4096  # bytes that the smallest file takes on a disk
_LONGEST_HEADER: Final = 1 << 20  # bytes
_CARRIERS: Final = frozenset(
    {tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK}
)


class OriginError(MlopsError):
    """Data cannot be had from where they are said to be."""


class _Interrupted(Exception):
    """An attempt failed in a way that the next may not."""


def fetch(url: str, sha256: str, target: Path, *, on_progress: Progress | None = None, timeout: float = 30.0) -> Path:
    """Download a file, unless it is there, and return `target`, whose content has that SHA-256.

    What has arrived waits in `NAME.part` beside the target: after a lost connection or a kill, the next attempt goes
    on from there if the server supports it and its file is still the same (`Range` with `If-Range`), else from the
    start. Several processes may fetch the same file at once: one does, the others wait.

    Args:
        url: Where it is.
        sha256: What its SHA-256 must be, in lower-case hexadecimal.
        target: Where it goes; its directory is made.
        on_progress: Called with the bytes that are there, and those of the whole file (0 if the server does not say).
        timeout: Seconds to wait for the server to answer or to send more.

    Raises:
        OriginError: The server has no such file, or another one; it cannot be reached; or the disk is full.
    """
    from filelock import FileLock

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(f".{target.name}.lock")):
            if not target.is_file() or _sha256(target) != sha256:
                _Download(url, sha256, target, on_progress or (lambda _done, _total: None), timeout).run()
    except OSError as error:
        raise OriginError(f"{target} cannot be written ({error.strerror or error}): mend its place.") from None
    return target


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


@dataclass(frozen=True)
class _Download:
    """One file on its way; its directory is locked."""

    url: str
    sha256: str
    target: Path
    on_progress: Progress
    timeout: float

    @property
    def part(self) -> Path:
        """What has arrived so far."""
        return self.target.with_name(f"{self.target.name}.part")

    @property
    def mark(self) -> Path:
        """The server's ETag or date of what has arrived; without it, nothing can be resumed."""
        return self.target.with_name(f"{self.target.name}.part.etag")

    @property
    def shown(self) -> str:
        """The address without user, password and query, which may be secrets.

        Raises:
            OriginError: It is no address.
        """
        import httpx

        try:
            address = httpx.URL(self.url)
        except httpx.InvalidURL as error:
            raise OriginError(f"the origin's url is no address to fetch data from ({error}): correct it.") from None
        return f"{address.scheme}://{address.netloc.decode()}{address.path}"

    def run(self) -> None:
        """Attempt it until it is whole, or until some attempts in a row gain nothing."""
        import httpx

        shown, failures, most = self.shown, 0, 0
        with httpx.Client(follow_redirects=True, timeout=self.timeout) as client:
            while True:
                try:
                    whole = self._attempt(client)
                except _Interrupted as error:
                    size = self.part.stat().st_size if self.part.exists() else 0
                    failures, most = (1 if size > most else failures + 1), max(most, size)
                    if failures > len(_WAITS):
                        kept = f"; the first {size} bytes are kept" if size else ""
                        raise OriginError(f"{shown} cannot be fetched ({error}){kept}: try again later.") from None
                    time.sleep(_WAITS[failures - 1])
                else:
                    if whole:
                        break
        with self.part.open("rb+") as stream:
            os.fsync(stream.fileno())
        self.part.replace(self.target)
        self.mark.unlink(missing_ok=True)

    def _attempt(self, client: httpx.Client) -> bool:
        """Go on from what is there; returns whether it is the right file now, and if not, it is deleted.

        Raises:
            OriginError: It was fetched in one go, and is another file.
        """
        import httpx

        digest, start = hashlib.sha256(), 0
        if self.part.exists():
            start = _hash_into(digest, self.part)
            if digest.hexdigest() == self.sha256:
                return True  # killed just before it got its name
        asked = {"Accept-Encoding": "identity"}
        if start and (version := self._version()):
            asked |= {"Range": f"bytes={start}-", "If-Range": version}
        try:
            with client.stream("GET", self.url, headers=asked) as response:
                resumed = self._resumes(response, start)
                if not resumed:
                    digest = hashlib.sha256()
                self._receive(response, digest)
        except (httpx.UnsupportedProtocol, httpx.TooManyRedirects) as error:
            raise OriginError(f"{self.shown} cannot be fetched ({error}): correct the address.") from None
        except httpx.TransportError as error:
            raise _Interrupted(str(error) or type(error).__name__) from None
        if digest.hexdigest() == self.sha256:
            return True
        self._discard()
        if resumed:
            return False
        raise OriginError(
            f"{self.shown} is another file than expected (its SHA-256 is {digest.hexdigest()}, not {self.sha256}) and "
            "was deleted: correct the address or the SHA-256, or get the file elsewhere."
        )

    def _resumes(self, response: httpx.Response, start: int) -> bool:
        """Tell whether an answer continues what is there, and make room for one that does not.

        Raises:
            OriginError: There is nothing at this address.
            _Interrupted: The server may think better of it.
        """
        status = response.status_code
        asked = "Range" in response.request.headers
        if status == 206 and asked and response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            return True
        if status in {206, 416}:  # another range than was asked for, or none
            self._discard()
            raise _Interrupted(f"it cannot be resumed: status {status}")
        if status in _TRANSIENT:
            raise _Interrupted(f"status {status} {response.reason_phrase}")
        if status != 200:
            raise OriginError(
                f"{self.shown} cannot be fetched (status {status} {response.reason_phrase}): correct the address."
            )
        self.part.write_bytes(b"")
        self.mark.unlink(missing_ok=True)
        etag = response.headers.get("ETag", "")
        if version := response.headers.get("Last-Modified", "") if etag.startswith("W/") or not etag else etag:
            self.mark.write_text(version, encoding="utf-8")
        return False

    def _version(self) -> str:
        """The mark of what is there; empty if there is none, or if a power cut left it in tatters."""
        text = self.mark.read_text(encoding="ascii", errors="replace") if self.mark.exists() else ""
        return text if text.isascii() and text.isprintable() else ""

    def _receive(self, response: httpx.Response, digest: hashlib._Hash) -> None:
        """Append an answer's content to what is there.

        Raises:
            OriginError: The disk has no room for it.
        """
        done = self.part.stat().st_size
        length = int(response.headers.get("Content-Length", 0))
        room = shutil.disk_usage(self.part.parent).free - _SPARE
        received = 0
        with self.part.open("ab") as stream:
            for chunk in response.iter_raw():
                received += len(chunk)
                if max(received, length) > room:
                    break
                stream.write(chunk)
                digest.update(chunk)
                self.on_progress(done + received, done + length if length else 0)
        if max(received, length) > room:
            self._discard()
            raise OriginError(f"{self.part.parent} has no room for {self.shown}: free space, or choose another place.")

    def _discard(self) -> None:
        self.mark.unlink(missing_ok=True)
        self.part.unlink(missing_ok=True)


def _hash_into(digest: hashlib._Hash, path: Path) -> int:
    size = 0
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return size


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    _hash_into(digest, path)
    return digest.hexdigest()


class _Member(NamedTuple):
    """One entry of an archive; `plain` if it is a file or a directory, and `extract` writes it."""

    name: str
    plain: bool
    size: int
    extract: Callable[[], object]


def _unpack(archive: Path, into: Path) -> None:
    room, used = shutil.disk_usage(into).free - _SPARE, 0
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
            extract = partial(opened.extract, info, into, set_attrs=False, filter="data")
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
