"""The ledger's file: whole entries whatever happens, and no change that goes unseen."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import secrets
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from mlops_assets.registry import ledger as module
from mlops_assets.registry.ledger import Ledger, LedgerError
from mlops_assets_tests.faults import small_disk

ROOT = Path(__file__).parents[2]
SEED = int(os.environ.get("MLOPS_TEST_SEED", secrets.randbelow(2**32)))  # here: tests do not see the variables


def write(folder: Path, count: int = 5) -> Ledger:
    made = Ledger(folder, "iris")
    for number in range(1, count + 1):
        made.append("moved", {"version": number, "reason": f"für {number}\n"})
    return made


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Ledger:
    """Five entries, to be copied and damaged."""
    return write(tmp_path_factory.mktemp("whole"))


def copy(whole: Ledger, folder: Path) -> Ledger:
    shutil.copy(whole.path, folder)
    return Ledger(folder, "iris")


def lines(ledger: Ledger) -> list[bytes]:
    return ledger.path.read_bytes().splitlines(keepends=True)


def test_what_is_appended_is_read(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "made" / "on the way", "iris")
    assert (ledger.records(), ledger.head, ledger.verify({})) == ([], "", [])
    facts = {
        "version": 3,
        "reason": 'bad "Tuesday"\n\udcff é',
        "evidence": {"bound": float("inf"), "clauses": (1, None)},
    }
    before = datetime.now(UTC)
    first, second = ledger.append("moved", facts), ledger.append("barred", {"version": 2})
    assert before <= first.at <= second.at <= datetime.now(UTC)
    assert [first, second] == ledger.records()
    assert (first.number, first.kind, first.before, second.before) == (1, "moved", "", first.hash)
    assert first.facts == {**facts, "evidence": {"bound": "inf", "clauses": [1, None]}}
    assert ledger.head == second.head == f"2:{second.hash}"
    assert ledger.verify({"MLflow": first.head, "Dagster": second.head}) == []


def test_the_file_is_as_documented(whole: Ledger) -> None:
    """Whoever has Python's standard library can check it without us."""
    before = ""
    for number, line in enumerate(whole.path.read_bytes().split(b"\n")[:-1], 1):
        entry = json.loads(line)
        found = entry.pop("hash")
        body = json.dumps(entry, separators=(",", ":"), ensure_ascii=False).encode()
        assert hashlib.sha256(body).hexdigest() == found
        assert (entry["number"], entry["before"]) == (number, before)
        assert entry["at"].endswith("+00:00")
        before = found


def test_time_never_runs_backwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Earlier(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:
            return datetime(2001, 1, 1, tzinfo=UTC)

    ledger = write(tmp_path, 1)
    monkeypatch.setattr(module, "datetime", Earlier)
    later = ledger.append("moved", {})
    assert later.at == ledger.records()[0].at


@given(st.data())
@hypothesis_settings(max_examples=150)
def test_no_byte_can_be_edited(whole: Ledger, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    original = whole.path.read_bytes()
    place = data.draw(st.one_of(st.integers(0, len(original) - 1), st.just(len(original) - 1)))
    byte = data.draw(st.integers(0, 255).filter(lambda one: one != original[place]))
    ledger = Ledger(tmp_path_factory.getbasetemp() / "edited", "iris")
    ledger.folder.mkdir(exist_ok=True)
    ledger.path.write_bytes(original[:place] + bytes([byte]) + original[place + 1 :])
    number = original[:place].count(b"\n") + 1
    problems = ledger.verify({})
    assert f"entry {number} (line {number}) was changed after it was written" in problems[0]
    with pytest.raises(LedgerError, match=rf"entry {number} \(line {number}\) was changed .* from a backup mends it"):
        ledger.records()
    if number == 5:
        with pytest.raises(LedgerError, match="the last entry was changed, so none is appended"):
            ledger.append("moved", {})
        with pytest.raises(LedgerError, match="the last entry was changed"):
            _ = ledger.head


ORDERS: dict[str, tuple[Callable[[list[bytes]], list[bytes]], str]] = {
    "removed": (lambda old: old[:2] + old[3:], r"entry 4 \(line 3\) does not follow entry 2"),
    "the first removed": (lambda old: old[1:], r"entry 2 \(line 1\) does not follow entry 0"),
    "written twice": (lambda old: [*old[:3], old[2], *old[3:]], r"entry 3 \(line 4\) does not follow entry 3"),
    "swapped": (lambda old: [old[0], old[2], old[1], *old[3:]], r"entry 3 \(line 2\) does not follow entry 1"),
}


@pytest.mark.parametrize("how", ORDERS)
def test_entries_that_were_removed_inserted_or_moved(whole: Ledger, tmp_path: Path, how: str) -> None:
    change, told = ORDERS[how]
    ledger = copy(whole, tmp_path)
    ledger.path.write_bytes(b"".join(change(lines(whole))))
    with pytest.raises(LedgerError, match=told):
        ledger.records()
    assert ledger.verify({})


def test_a_line_of_somebody_else_with_a_good_hash(whole: Ledger, tmp_path: Path) -> None:
    ledger = copy(whole, tmp_path)
    for body in (b"[1]", b'{"number":6}', b'{"number":6,"at":"x","kind":"moved","before":""}', b"{no"):
        forged = b'%s,"hash":"%s"}' % (body[:-1], hashlib.sha256(body[:-1] + b"}").hexdigest().encode())
        ledger.path.write_bytes(whole.path.read_bytes() + forged + b"\n")
        assert len(ledger.verify({})) == 1
        assert "entry 6 (line 6) was changed" in ledger.verify({})[0]


def test_what_only_a_head_kept_elsewhere_can_tell(whole: Ledger, tmp_path: Path) -> None:
    heads = {"MLflow": whole.records()[2].head, "Dagster": whole.head}
    cut = copy(whole, tmp_path)
    cut.path.write_bytes(b"".join(lines(whole)[:4]))
    assert cut.verify({}) == []
    assert cut.verify(heads) == [f"{cut.path} ends with entry 4, though Dagster has seen entry 5: its end was cut off"]
    cut.path.unlink()
    rewritten = write(tmp_path)
    assert rewritten.verify({}) == []
    assert rewritten.verify(heads) == [
        f"{cut.path}: entry 3 is not the one that MLflow has seen: it was rewritten",
        f"{cut.path}: entry 5 is not the one that Dagster has seen: it was rewritten",
    ]
    cut.path.write_bytes(b"")
    assert f"{cut.path} is empty, though MLflow has seen entry 3" in cut.verify(heads)[0]
    cut.path.unlink()
    assert f"{cut.path} is not there, though MLflow has seen entry 3" in cut.verify(heads)[0]
    assert whole.verify({"MLflow": "banana"}) == ["MLflow keeps 'banana', which is no head of a ledger"]


def test_what_a_killed_writer_left(whole: Ledger, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Wherever the last line ends: a whole entry stays, half of one is moved aside, and the next one follows."""
    original, last = whole.path.read_bytes(), lines(whole)[-1]
    for kept in [0, 1, *range(2, len(last), 9), len(last) - 2, len(last) - 1]:
        ledger = copy(whole, tmp_path)
        ledger.path.write_bytes(original[: len(original) - len(last) + kept])
        count = 5 if kept == len(last) - 1 else 4
        assert len(ledger.records()) == 4, "a reader leaves alone what may be being written"
        caplog.clear()
        after = ledger.append("moved", {"version": 6})
        assert after.number == count + 1
        assert len(ledger.records()) == count + 1
        assert ledger.verify({}) == []
        aside = ledger.path.with_name("iris.jsonl.torn")
        torn = 0 < kept < len(last) - 1
        assert aside.exists() == torn
        assert ("an entry that was cut off in the writing" in caplog.text) == torn
        if torn:
            assert aside.read_bytes() == last[:kept] + b"\n"
            aside.unlink()


def test_what_lies_behind_a_whole_entry_is_no_torn_one(whole: Ledger, tmp_path: Path) -> None:
    ledger = copy(whole, tmp_path)
    ledger.path.write_bytes(whole.path.read_bytes()[:-1] + b"x")
    with pytest.raises(LedgerError, match="the last entry was changed"):
        ledger.append("moved", {})
    assert ledger.path.read_bytes() == whole.path.read_bytes()[:-1] + b"x"


def test_a_long_last_line_is_found(tmp_path: Path) -> None:
    ledger = write(tmp_path, 2)
    long = ledger.append("moved", {"evidence": "é" * 200_000})
    assert ledger.head == long.head
    assert ledger.append("moved", {}).before == long.hash


def test_the_lock_is_shared_by_handles_and_taken_again(tmp_path: Path) -> None:
    first, second = Ledger(tmp_path, "iris"), Ledger(tmp_path, "iris")
    with first.lock(), second.lock(), first.lock():
        first.append("moved", {})
        second.append("moved", {})
    assert len(first.records()) == 2


def test_whoever_waits_says_for_what(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="mlops_assets")
    monkeypatch.setattr(module, "TELL_SECONDS", 0.05)
    monkeypatch.setattr(module, "LOCK_SECONDS", 0.1)
    ledger, errors = write(tmp_path, 1), []

    def work() -> None:
        try:
            ledger.append("moved", {})
        except LedgerError as error:
            errors.append(str(error))

    with FileLock(tmp_path / ".iris.lock"):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert errors == [f"another process has held {tmp_path / '.iris.lock'} for 0.1 s: end it, then retry"]
    assert "iris: another process is writing its ledger" in caplog.text
    work()
    assert len(errors) == 1


def test_many_threads_append(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, "iris")
    threads = [threading.Thread(target=lambda: [ledger.append("look", {}) for _ in range(5)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ledger.records()) == 20
    assert ledger.verify({}) == []


def test_places_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LedgerError, match=r"file/.iris.lock cannot be written: .*; mend its rights or its place"):
        Ledger(tmp_path / "file", "iris").append("moved", {})
    ledger = Ledger(tmp_path, "iris")
    ledger.path.mkdir()
    with pytest.raises(LedgerError, match=r"iris.jsonl cannot be read: Is a directory; mend"):
        ledger.records()
    with pytest.raises(LedgerError, match=r"iris.jsonl cannot be read: Is a directory; mend"):
        ledger.append("moved", {})


LIMITED = """
import resource, sys
from pathlib import Path
from mlops_assets.registry.ledger import Ledger, LedgerError
ledger = Ledger(Path(sys.argv[1]), "iris")
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
try:
    ledger.append("moved", {"reason": "x" * 1000})
except LedgerError as error:
    print(error)
"""


@pytest.mark.parametrize("room", [0, 1, 500])
def test_no_room_for_an_entry(tmp_path: Path, room: int) -> None:
    ledger = write(tmp_path)
    before = ledger.path.read_bytes()
    command = [sys.executable, "-c", LIMITED, str(tmp_path), str(len(before) + room)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    told = f"{ledger.path} cannot be written: File too large; free space for it, then try again\n"
    assert done.stdout == told
    assert ledger.path.read_bytes() == before
    assert ledger.append("moved", {}).number == 6


def test_a_full_disk(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        ledger = write(disk)
        before = ledger.path.read_bytes()
        status = os.statvfs(disk)
        (disk / "filler").write_bytes(bytes(status.f_bavail * status.f_frsize))
        with pytest.raises(LedgerError, match="No space left on device; free space for it"):
            ledger.append("moved", {"reason": "x" * 20_000})
        assert ledger.path.read_bytes() == before
        (disk / "filler").unlink()
        assert ledger.append("moved", {}).number == 6
        assert ledger.verify({}) == []


WRITER = """
import sys
from pathlib import Path
from mlops_assets.registry.ledger import Ledger
ledger = Ledger(Path(sys.argv[1]), "iris")
for number in range(int(sys.argv[2])):
    made = ledger.append("look", {"by": sys.argv[3], "evidence": "x" * 100_000 * (number % 3)})
    print(made.number, flush=True)
"""


def writer(folder: Path, count: int, name: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(folder), str(count), name]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)


@pytest.mark.slow
def test_processes_that_append_at_once(tmp_path: Path) -> None:
    processes = [writer(tmp_path, 20, str(name)) for name in range(4)]
    numbers = [int(line) for process in processes for line in process.communicate()[0].split()]
    assert sorted(numbers) == list(range(1, 81))
    ledger = Ledger(tmp_path, "iris")
    assert ledger.verify({}) == []
    assert {record.facts["by"] for record in ledger.records()} == {"0", "1", "2", "3"}


@pytest.mark.slow
def test_a_writer_killed_at_any_moment(tmp_path: Path) -> None:
    print(f"MLOPS_TEST_SEED={SEED}")
    chance, ledger, confirmed = random.Random(SEED), Ledger(tmp_path, "iris"), 0
    for point in range(25):
        process = writer(tmp_path, 1000, str(point))
        assert process.stdout
        with process.stdout:
            told = [process.stdout.readline()]
            time.sleep(chance.uniform(0, 0.03))
            process.kill()
            told += process.stdout.readlines()
        process.wait()
        confirmed = int([line for line in told if line.endswith("\n")][-1])
        at = f"MLOPS_TEST_SEED={SEED}, point {point}"
        assert len(ledger.records()) >= confirmed, f"{at}: a confirmed entry is lost"
        assert ledger.append("look", {}).number >= confirmed + 1, at
        assert ledger.verify({}) == [], at
