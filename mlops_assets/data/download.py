"""A file from an HTTP address: resumed where it broke off, proved where its SHA-256 is known, asked for only when new.

Belongs here: what is said to the server, and what is on disk meanwhile. Does not belong here: what the file means
(`origin`, `readers`), and what a pipeline does with it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from mlops_assets.errors import MlopsError

if TYPE_CHECKING:
    import httpx

Progress = Callable[[int, int], None]

SPARE: Final = 1 << 27
"""Bytes of a disk that a download or an archive must leave free."""

_WAITS: Final = (0.5, 1.0, 2.0, 4.0)  # seconds before each new attempt that follows one without progress
_TRANSIENT: Final = frozenset({408, 429, 500, 502, 503, 504})
_CHUNK: Final = 1 << 20


class OriginError(MlopsError):
    """Data cannot be had from where they are said to be."""


class Mark(NamedTuple):
    """What a server calls the version of a file that it sent; empty texts where it does not say."""

    etag: str = ""
    modified: str = ""


class _Interrupted(Exception):
    """An attempt failed in a way that the next may not."""


class _NotModified(Exception):
    """The server still has the version that is known."""


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
    download = _Download(url, sha256, target, on_progress or _silent, timeout)
    with download.locked():
        if not target.is_file() or _sha256(target) != sha256:
            download.run()
    return target


def fetch_new(
    url: str,
    target: Path,
    *,
    known: Mark,
    sha256: str = "",
    token: str = "",
    on_progress: Progress | None = None,
    timeout: float = 30.0,
) -> Mark | None:
    """Download a file whose content may change, resumed like `fetch`; one request where it has not changed.

    Args:
        url: Where it is.
        target: Where it goes; its directory is made.
        known: The version that nobody needs again (`If-None-Match`, `If-Modified-Since`); empty for none.
        sha256: What its SHA-256 must be; empty where nobody knows.
        token: Sent as `Authorization: Bearer TOKEN`, or as it is where it has a blank (`Basic ...`); not to other hosts
            that the server redirects to.
        on_progress: Called with the bytes that are there, and those of the whole file (0 if the server does not say).
        timeout: Seconds to wait for the server to answer or to send more.

    Returns:
        The version that `target` now holds, or None when the server still has the known one.

    Raises:
        OriginError: The server has no such file, or a page for browsers in its place; it cannot be reached; or the disk
            is full.
    """
    headers = {"Authorization": token if " " in token else f"Bearer {token}"} if token else {}
    if not all(value.isascii() and value.isprintable() for value in headers.values()):
        raise OriginError("the token is no text that a header can carry: correct its variable.")
    download = _Download(url, sha256, target, on_progress or _silent, timeout, headers, known)
    with download.locked():
        try:
            download.run()
        except _NotModified:
            return None
        return download.seen


@dataclass
class _Download:
    """One file on its way."""

    url: str
    sha256: str
    target: Path
    on_progress: Progress
    timeout: float
    headers: Mapping[str, str] = field(default_factory=dict)
    known: Mark = field(default_factory=Mark)
    seen: Mark = field(default_factory=Mark)
    """The version that the last answer was of."""

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Be the one process that fetches it.

        Raises:
            OriginError: The target cannot be written.
        """
        from filelock import FileLock

        try:
            self.target.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self.target.with_name(f".{self.target.name}.lock")):
                yield
        except OSError as error:
            raise OriginError(f"{self.target} cannot be written ({error.strerror or error}): mend its place.") from None

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
            if self.sha256 and digest.hexdigest() == self.sha256:
                return True  # killed just before it got its name
        asked = {"Accept-Encoding": "identity", **self.headers}
        if start and (version := self._version()):
            asked |= {"Range": f"bytes={start}-", "If-Range": version}
        elif self.known.etag:
            asked["If-None-Match"] = self.known.etag
        elif self.known.modified:
            asked["If-Modified-Since"] = self.known.modified
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
        if not self.sha256 or digest.hexdigest() == self.sha256:
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
        self.seen = Mark(response.headers.get("ETag", ""), response.headers.get("Last-Modified", ""))
        if status == 304 and any(self.known):
            raise _NotModified
        if status == 206 and asked and response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            return True
        if status in {206, 416}:  # another range than was asked for, or none
            self._discard()
            raise _Interrupted(f"it cannot be resumed: status {status}")
        if status in _TRANSIENT:
            raise _Interrupted(f"status {status} {response.reason_phrase}")
        if status != 200:
            what = "address or the token" if status in {401, 403} else "address"
            raise OriginError(
                f"{self.shown} cannot be fetched (status {status} {response.reason_phrase}): correct the {what}."
            )
        if not self.sha256 and response.headers.get("Content-Type", "").startswith("text/html"):
            raise OriginError(f"{self.shown} is a page for browsers and no data: correct the address, or log in.")
        self.part.write_bytes(b"")
        self.mark.unlink(missing_ok=True)
        etag = self.seen.etag
        if version := self.seen.modified if etag.startswith("W/") or not etag else etag:
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
        room = shutil.disk_usage(self.part.parent).free - SPARE
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


def _silent(_done: int, _total: int) -> None:
    pass
