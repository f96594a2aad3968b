"""Several processes on one repository, and processes that end before their time."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from mlops_assets.oxen import child
from mlops_assets.oxen.errors import OperationTimeout, OxenError, RepositoryBusy
from mlops_assets.oxen.repository import Repository
from mlops_assets_tests.oxen.conftest import contents

ROOT = Path(__file__).parents[2]

# Each line "done <n> <commit>" on stdout acknowledges one commit.
WRITER = """
import sys
from pathlib import Path
from mlops_assets.oxen.repository import Repository
repo = Repository(Path(sys.argv[1]))
name, branch, start, stop = sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
print("ready", flush=True)
for n in range(start, stop):
    files = {f"{name}/{n}": f"{name} {n}".encode(), f"{name}/last": b"%d" % n}
    commit = repo.commit("the same", files=files, branch=branch)
    print("done", n, commit.id, flush=True)
"""

READER = """
import sys, tempfile
from pathlib import Path
from mlops_assets.oxen.repository import Repository
repo, until, rounds = Repository(Path(sys.argv[1])), Path(sys.argv[2]), 0
with tempfile.TemporaryDirectory() as cache:
    while not until.exists() or rounds < 2:
        for branch, commit in repo.heads().items():
            digest = repo.digest("", commit)
            root = repo.materialize("", commit, Path(cache))
            found = {str(item.relative_to(root)): item.stat().st_size for item in root.rglob("*") if item.is_file()}
            assert found == {entry.path: entry.bytes for entry in repo.entries("", commit)}
            assert digest == repo.digest("", commit)
            assert repo.log(branch)
        rounds += 1
print("rounds", rounds)
"""


def _start(script: str, *arguments: object, group: bool = False) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        start_new_session=group,
    )


def _finish(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out


@contextmanager
def _locked(repo: Repository) -> Iterator[None]:
    (repo.path / ".oxen" / "mlops").mkdir(exist_ok=True)
    with (repo.path / ".oxen" / "mlops" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _workers(repo: Repository) -> list[psutil.Process]:
    """The worker processes of this repository: those that have its lock file open or wait for it."""
    lock = str(repo.path / ".oxen" / "mlops" / "lock")
    found = []
    for process in psutil.process_iter():
        try:
            if any(item.path == lock for item in process.open_files()) and process.pid != os.getpid():
                found.append(process)
        except psutil.Error:
            continue
    return found


def _until(condition, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def test_a_timeout_names_the_lock_and_leaves_no_child(repo: Repository, head: str) -> None:
    impatient = Repository(repo.path, timeout=0.5)
    with _locked(repo), pytest.raises(OperationTimeout, match=r"locked by another writer for 0\.5 s"):
        impatient.commit("no", files={"a": b"1"})
    assert _workers(repo) == []
    assert repo.heads()["main"] == head
    assert repo.commit("yes", files={"a": b"1"}) is not None


def test_readers_do_not_wait_for_writers(repo: Repository, head: str, tmp_path: Path) -> None:
    with _locked(repo):
        assert Repository(repo.path, timeout=120).heads()["main"] == head
        assert contents(repo, head, tmp_path / "cache")


def test_the_interrupt_key_leaves_no_child_and_no_lock(repo: Repository) -> None:
    with _locked(repo):
        process = _start(WRITER, repo.path, "w", "main", 0, 1)
        _until(lambda: _workers(repo))
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
        assert "KeyboardInterrupt" in err
        assert _workers(repo) == []
    assert repo.commit("yes", files={"a": b"1"}) is not None


def test_a_worker_without_its_parent_ends_by_itself(repo: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its alarm is all that counts when the parent was killed: here it comes before the parent's own limit."""
    monkeypatch.setattr(child, "_GRACE", -59.5)
    with _locked(repo), pytest.raises(OperationTimeout):
        repo.commit("no", files={"a": b"1"})
    assert _workers(repo) == []


def test_a_foreign_program_that_holds_oxens_own_lock(
    repo: Repository, head: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As any program does that uses oxenai in its own process: readers go on, writers wait and then say so."""
    script = f"""
import sys, time; sys.argv = ["", {child.extension_file()!r}, {str(repo.path)!r}]
sys.path.insert(0, {str(ROOT)!r})
from mlops_assets.oxen.work import extension
repo = extension({{"extension": sys.argv[1]}}).PyRepo(sys.argv[2])
repo.list_branches(); print("ready", flush=True); sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as foreign:
        assert foreign.stdout is not None
        assert foreign.stdin is not None
        assert foreign.stdout.readline() == b"ready\n"
        assert Repository(repo.path).heads()["main"] == head
        monkeypatch.setattr(child, "_FOREIGN_LOCK_SECONDS", 0.2)
        with pytest.raises(RepositoryBusy, match="end it"):
            repo.commit("no", files={"a": b"1"})
        monkeypatch.undo()
        foreign.stdin.close()
        foreign.wait()
    assert repo.commit("yes", files={"a": b"1"}) is not None


@pytest.mark.parametrize("number", [signal.SIGBUS, signal.SIGKILL])
def test_a_worker_that_is_killed_is_named(repo: Repository, number: signal.Signals) -> None:
    with _locked(repo):
        process = _start(WRITER, repo.path, "w", "main", 0, 1)
        _until(lambda: _workers(repo))
        _workers(repo)[0].send_signal(number)
        _, err = process.communicate(timeout=120)
    assert ("StoreCorrupt" if number == signal.SIGBUS else "OxenError") in err
    assert number.name in err


def test_what_a_killed_commit_left_behind_is_removed(repo: Repository) -> None:
    place = repo.path / ".oxen" / "mlops" / "work"
    left = place / "0123456789abcdef" / "tree"
    (left / ".oxen").mkdir(parents=True)
    (left / ".oxen" / "versions").symlink_to(repo.path / ".oxen" / "versions")
    (left / "file").write_bytes(b"1")
    commit = repo.commit("next", files={"a": b"1"})
    assert commit is not None
    assert list(place.iterdir()) == []
    assert len(repo.entries("", commit.id)) == 5
    assert list((repo.path / ".oxen" / "versions" / "files").iterdir())


def test_many_may_create_one_repository(tmp_path: Path) -> None:
    script = "import sys; from pathlib import Path; from mlops_assets.oxen.repository import Repository as R\n"
    script += "r = R(Path(sys.argv[1])); r.init(); print(r.commit('c', files={sys.argv[2]: b'1'}).id)"
    for process in [_start(script, tmp_path / "repo", n) for n in range(4)]:
        _finish(process)
    repo = Repository(tmp_path / "repo")
    assert len(repo.log()) == 4
    assert len(repo.entries("", repo.resolve("main"))) == 4


@pytest.mark.slow
def test_two_writers_and_a_reader(repo: Repository, tmp_path: Path) -> None:
    """Nothing is lost and nobody sees an error."""
    count = 15
    stop = tmp_path / "stop"
    reader = _start(READER, repo.path, stop)
    writers = [_start(WRITER, repo.path, name, branch, 0, count) for name, branch in (("a", "main"), ("b", "main"))]
    writers.append(_start(WRITER, repo.path, "c", "dev", 0, count))
    for writer in writers:
        assert _finish(writer).count("done") == count
    stop.touch()
    assert int(_finish(reader).split()[-1]) > 1
    assert len(repo.log()) == 2 + 2 * count
    assert len(repo.log("dev")) == 3 + count
    found = contents(repo, repo.resolve("main"), tmp_path / "cache")
    assert {f"{name}/{n}" for name in "ab" for n in range(count)} <= found.keys()
    assert found["a/last"] == found["b/last"] == b"%d" % (count - 1)


def test_an_error_text_is_one_sentence_that_names_the_repository(repo: Repository) -> None:
    with pytest.raises(OxenError) as caught:
        repo.commit("no", remove=["missing"])
    assert str(repo.path) in str(caught.value)
    assert str(caught.value).count("\n") == 0
