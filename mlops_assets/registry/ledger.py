"""The ledger: one append-only file of JSON lines per pipeline, each chained to the one before by its hash.

Belongs here: the file format, writing an entry so that a kill or a full disk leaves whole ones alone, and proving that
nothing was changed. Not here: what a move of the champion is (`champion.py`), what a look costs (`gate/budget.py`).

An entry's hash is over the bytes of its line, and the next entry holds it, so whoever changes one has to write all that
follow anew. That, and a tail that was cut off, shows by heads kept elsewhere: `NUMBER:HASH`.
"""

from __future__ import annotations

import errno
import getpass
import hashlib
import json
import logging
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal, Self

from filelock import FileLock, Timeout

from mlops_assets.errors import MlopsError

log = logging.getLogger(__name__)

Kind = Literal["look", "outcome", "intent", "moved", "abandoned", "noticed", "barred", "cleared", "anchored"]

LOCK_SECONDS: Final = 600.0
"""A decision is made under the lock, and may have to predict on a test set first; longer than this is a fault."""

TELL_SECONDS: Final = 2.0
"""How long to wait for another process before saying so."""

_HASH_AT_END: Final = re.compile(rb',"hash":"([0-9a-f]{64})"}\Z')
_HEAD: Final = re.compile(r"([1-9][0-9]*):([0-9a-f]{64})")
_OWN: Final = {"number", "at", "kind", "before", "hash"}
_BLOCK: Final = 1 << 16


class LedgerError(MlopsError):
    """The ledger cannot be read or written, or is not what was written."""

    @classmethod
    def reading(cls, path: Path, error: OSError) -> Self:
        """What the operating system said when something was to be read."""
        return cls(f"{path} cannot be read: {error.strerror or error}; mend its rights or its place")

    @classmethod
    def writing(cls, path: Path, error: OSError) -> Self:
        """What the operating system said when something was to be written."""
        full = error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
        remedy = "free space for it, then try again" if full else "mend its rights or its place"
        return cls(f"{path} cannot be written: {error.strerror or error}; {remedy}")


@dataclass(frozen=True)
class Record:
    """One entry.

    Attributes:
        number: 1, 2, 3, ...
        at: When, in UTC; never before the entry before.
        facts: What it tells, by its kind.
        before: Hash of the entry before; empty in the first.
        hash: SHA-256 of its line without the hash.
    """

    number: int
    at: datetime
    kind: Kind
    facts: Mapping[str, Any]
    before: str
    hash: str

    @property
    def head(self) -> str:
        """What is kept elsewhere, to prove this entry and all before it."""
        return f"{self.number}:{self.hash}"


class Ledger:
    """The ledger of one pipeline; making a handle costs nothing and touches nothing.

    Attributes:
        folder: Where the ledgers of all pipelines lie.
        pipeline: Whose this one is.
        path: The file, which its first entry makes.
    """

    def __init__(self, folder: Path, pipeline: str) -> None:
        self.folder = folder
        self.pipeline = pipeline
        self.path = folder / f"{pipeline}.jsonl"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the sole right to append; whoever holds it may take it again.

        Whatever is decided from entries and then appended belongs under one lock. The kernel takes the right from a
        process that ends, however it ends; what it has left half-written is moved aside here.

        Raises:
            LedgerError: Another process has held it too long, or the place cannot be written.
        """
        place = self.folder / f".{self.pipeline}.lock"
        lock = FileLock(place, is_singleton=True)  # one per path in a process, or a second handle would wait for us
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=TELL_SECONDS)
            except Timeout:
                log.info("%s: another process is writing its ledger; going on when it is done or gone", self.pipeline)
                lock.acquire(timeout=LOCK_SECONDS)
        except Timeout:
            raise LedgerError(f"another process has held {place} for {LOCK_SECONDS:g} s: end it, then retry") from None
        except OSError as error:
            raise LedgerError.writing(place, error) from None
        try:
            self._mend()
            yield
        finally:
            lock.release()

    def append(self, kind: Kind, facts: Mapping[str, Any]) -> Record:
        """Write an entry, and return when it is on the disk.

        Args:
            kind: What happened.
            facts: What JSON can hold; numbers that it cannot become text.

        Raises:
            LedgerError: The last entry was changed, or the file cannot be written; then nothing was appended.
        """
        assert not _OWN & set(facts)
        with self.lock():
            last = self._last()
            now = datetime.now(UTC)
            entry = {
                "number": last.number + 1 if last else 1,
                "at": (max(now, last.at) if last else now).isoformat(timespec="microseconds"),
                "kind": kind,
                **{key: _standard(value) for key, value in sorted(facts.items())},
                "before": last.hash if last else "",
            }
            text = json.dumps(entry, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
            body = text.encode(errors="surrogatepass")  # what a shell passes on may be no text
            line = b'%s,"hash":"%s"}' % (body[:-1], hashlib.sha256(body).hexdigest().encode())
            self._write(line + b"\n")
        record = _record(line)
        assert record is not None
        return record

    def records(self) -> list[Record]:
        """All entries, the oldest first.

        Raises:
            LedgerError: One was changed, removed, inserted or moved; names it and its line.
        """
        found = []
        for record, problem in _read(self._lines()):
            if record is None or problem:
                raise LedgerError(
                    f"{self.path}: {problem}; `mlops ledger verify {self.pipeline}` tells all, and a copy of the file "
                    "from a backup mends it"
                )
            found.append(record)
        return found

    @property
    def head(self) -> str:
        """`NUMBER:HASH` of the last entry; empty when there is none.

        Raises:
            LedgerError: The last entry was changed.
        """
        last = self._last()
        return last.head if last else ""

    def verify(self, anchors: Mapping[str, str]) -> list[str]:
        """What is wrong with the ledger, a sentence each; empty when it is as it was written.

        Args:
            anchors: By the place where it was kept: a head, as it was at some time.

        Raises:
            LedgerError: The file cannot be read.
        """
        with self.lock():
            read = list(_read(self._lines()))
        problems = [f"{self.path}: {problem}" for _, problem in read if problem]
        return problems + self.contradictions([record for record, _ in read if record], anchors)

    def contradictions(self, records: Sequence[Record], anchors: Mapping[str, str]) -> list[str]:
        """How entries differ from heads that were kept elsewhere, a sentence each."""
        hashes = {record.number: record.hash for record in records}
        last = max(hashes, default=0)
        problems = []
        for place, head in anchors.items():
            match = _HEAD.fullmatch(head)
            number = int(match[1]) if match else 0
            if match is None:
                problems.append(f"{place} keeps '{head}', which is no head of a ledger")
            elif number > last:
                left = f"ends with entry {last}" if last else "is not there" if not self.path.exists() else "is empty"
                problems.append(f"{self.path} {left}, though {place} has seen entry {number}: its end was cut off")
            elif hashes.get(number) != match[2]:
                problems.append(f"{self.path}: entry {number} is not the one that {place} has seen: it was rewritten")
        return problems

    def _lines(self) -> list[bytes]:
        """The lines that have an end; what follows the last one is being written, or was left by a killed writer."""
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise LedgerError.reading(self.path, error) from None
        lines = data.split(b"\n")
        return lines if _is_changed(lines[-1]) else lines[:-1]

    def _last(self) -> Record | None:
        """The last entry, without reading all.

        Raises:
            LedgerError: It was changed.
        """
        tail = self._tail()
        lines = tail if _is_changed(tail[-1]) else tail[:-1]
        if not lines:
            return None
        last = _record(lines[-1])
        if last is None:
            raise LedgerError(
                f"{self.path}: the last entry was changed, so none is appended; `mlops ledger verify {self.pipeline}` "
                "tells more, and a copy of the file from a backup mends it"
            )
        return last

    def _tail(self) -> list[bytes]:
        """The file's last two lines, or all; the last is what follows the last end of a line."""
        data = b""
        try:
            with self.path.open("rb") as file:
                start = file.seek(0, os.SEEK_END)
                while start and data.count(b"\n") < 2:
                    size = min(_BLOCK, start)
                    start = file.seek(start - size)
                    data = file.read(size) + data
        except FileNotFoundError:
            return [b""]
        except OSError as error:
            raise LedgerError.reading(self.path, error) from None
        return data.split(b"\n")[-2:]

    def _mend(self) -> None:
        """Move aside what a killed writer has left half-written; an entry that lacks only the line's end gets that."""
        torn = self._tail()[-1]
        if not torn or _is_changed(torn):
            return
        aside = self.path.with_name(f"{self.path.name}.torn")
        try:
            if _record(torn):
                self._write(b"\n")
                return
            with aside.open("ab") as kept:
                kept.write(torn + b"\n")
                kept.flush()
                os.fsync(kept.fileno())
            with self.path.open("rb+") as file:
                file.truncate(file.seek(0, os.SEEK_END) - len(torn))
                os.fsync(file.fileno())
        except OSError as error:
            raise LedgerError.writing(aside, error) from None
        log.warning("%s: moved %d bytes of an entry that was cut off in the writing to %s", self.path, len(torn), aside)

    def _write(self, data: bytes) -> None:
        """Append bytes durably, or not at all."""
        made = not self.path.exists()
        try:
            with self.path.open("ab", buffering=0) as file:
                size = file.seek(0, os.SEEK_END)
                try:
                    left = memoryview(data)
                    while left:
                        left = left[file.write(left) :]
                    os.fsync(file.fileno())
                except OSError:
                    with suppress(OSError):  # what then stays is moved aside by the next writer
                        file.truncate(size)
                    raise
            if made:
                sync_folder(self.folder)
        except OSError as error:
            raise LedgerError.writing(self.path, error) from None


def sync_folder(folder: Path) -> None:
    """Make what was created in a folder, or moved into it, survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.ENOTSUP}:  # some network file systems sync files only
            raise
    finally:
        os.close(handle)


def user() -> str:
    """Who acts when a person does: the user of the operating system."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's bare user id has no name
        return "unknown"


def _read(lines: Sequence[bytes]) -> Iterator[tuple[Record | None, str]]:
    """Per line its entry, None when its bytes are not what was hashed, and what is wrong with it, or nothing."""
    number, before = 0, ""
    for place, line in enumerate(lines, 1):
        record = _record(line)
        if record is None:
            number += 1
            yield None, f"entry {number} (line {place}) was changed after it was written"
            before = ""  # of a changed entry nobody knows the hash
            continue
        follows = record.number == number + 1 and (record.before == before or (before == "" and place > 1))
        problem = "" if follows else f"entry {record.number} (line {place}) does not follow entry {number}: "
        yield record, problem and f"{problem}entries were removed, inserted or put in another order"
        number, before = record.number, record.hash


def _record(line: bytes) -> Record | None:
    """The entry of a line; None when its bytes are not those that were written."""
    end = _HASH_AT_END.search(line)
    if end is None or hashlib.sha256(line[: end.start()] + b"}").hexdigest().encode() != end[1]:
        return None
    try:
        facts = json.loads(line)
        number, at, kind, before = (facts.pop(key) for key in ("number", "at", "kind", "before"))
        return Record(number, datetime.fromisoformat(at), kind, facts, before, facts.pop("hash"))
    except (AttributeError, KeyError, TypeError, ValueError):  # somebody has hashed something else
        return None


def _is_changed(tail: bytes) -> bool:
    """Whether a line without an end cannot be what a killed writer leaves: a whole entry with something behind it."""
    ends = (match.end() for match in re.finditer(rb',"hash":"[0-9a-f]{64}"}', tail))
    return any(end < len(tail) and _record(tail[:end]) for end in ends)


def _standard(value: Any) -> Any:
    """A value as JSON can hold it: it knows no infinity, which a bound may be, and no NaN."""
    if isinstance(value, Mapping):
        return {str(key): _standard(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_standard(one) for one in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
