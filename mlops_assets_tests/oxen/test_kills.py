"""SIGKILL at random moments of commits and merges: what was acknowledged stays, and nothing half-made is seen."""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from mlops_assets.oxen.repository import Repository
from mlops_assets.oxen.tree import Entry

ROOT = Path(__file__).parents[2]
SEED = int(os.environ.get("MLOPS_TEST_SEED", random.randrange(10**6)))
KILLS = 32
FILES_PER_STEP = 14  # that the writer gives at once, and salts

# Each line "done <branch> <commit>" acknowledges what a branch has from then on. New directories are made in two steps
# (see salting), so that every way of committing is interrupted.
WRITER = """
import signal, sys
from pathlib import Path
from mlops_assets.oxen.repository import Repository
repo, start = Repository(Path(sys.argv[1])), int(sys.argv[2])
def new_directories(n):
    new = {f"new/{n}/{k}/x": b"%d" % k for k in range(4)}
    return "main", repo.commit("same", files={"last": b"main %d" % n, "big": b"%d" % n * 50_000, **new})
def removal(n):
    present = {entry.path.split("/")[1] for entry in repo.entries("", repo.resolve("main")) if "new/" in entry.path}
    return "main", repo.commit("same", remove=[f"new/{min(present)}"] if present else [])
def on_dev(n):
    return "dev", repo.commit("same", files={f"dev/{n}": b"dev", "dev-last": b"%d" % n}, branch="dev")
def merge(n):
    return "main", repo.merge("dev", "main")
def back(n):
    return "dev", repo.merge("main", "dev")
def branches(n):
    repo.create_branch(f"side-{n}")
    repo.delete_branch(f"side-{n}")
    return "main", None
steps = [new_directories, on_dev, merge, removal, back, branches]
print("ready", flush=True)
for n in range(start, start + 100):
    branch, commit = steps[n % len(steps)](n)
    print("done", branch, commit.id if commit else "-", flush=True)
signal.pause()  # it is always killed, however late
"""


def _interrupted(repo: Repository, start: int, random_: random.Random) -> list[tuple[str, str]]:
    """Let a writer work until a random moment; returns what it has acknowledged."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(repo.path), str(start)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n", process.communicate()[1]
    read = [process.stdout.readline() for _ in range(random_.randint(0, 3))]
    time.sleep(random_.uniform(0, 0.15))
    process.send_signal(signal.SIGSTOP)  # or it would start another worker between here and its end
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    workers = psutil.Process(process.pid).children(recursive=True)
    groups = [process.pid, *(worker.pid for worker in workers)]  # a worker is the leader of a group of its own
    random_.shuffle(groups)
    for group in groups:
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
    out, err = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL, err
    _, alive = psutil.wait_procs(workers, timeout=120)
    assert alive == []
    told = [line.split() for line in [*read, *out.splitlines()]]
    return [(branch, commit) for _, branch, commit in told if commit != "-"]


@pytest.mark.slow
def test_a_storm_of_kills(repo: Repository) -> None:
    print(f"MLOPS_TEST_SEED={SEED}")
    random_ = random.Random(SEED)
    acknowledged: set[tuple[str, str]] = set()
    versions: dict[str, list[Entry]] = {}
    for number in itertools.count(1):
        if number > KILLS and len(acknowledged) > KILLS:
            break
        assert number <= 3 * KILLS, f"MLOPS_TEST_SEED={SEED}: most kills came before anything was done"
        made = _interrupted(repo, number * 101, random_)
        acknowledged.update(made)
        versions |= {commit: repo.entries("", commit) for _, commit in made}
        told = f"MLOPS_TEST_SEED={SEED}, kill {number}"

        assert set(repo.heads()) - {f"side-{n}" for n in range(number * 101 + 101)} == {"main", "dev"}, told
        found = repo.fsck()
        assert found.sound, (told, found)
        for branch in ("main", "dev"):
            commits = {commit.id for commit in repo.log(branch)}
            assert {commit for name, commit in acknowledged if name == branch} <= commits, told
        after = repo.commit("after", files={"after": b"%d" % number})
        assert after is not None, told
        grown = repo.growth()
        assert grown.work.files == 0, told
        assert grown.leftovers.files <= number, (told, grown)
        assert grown.unreferenced.files <= number * FILES_PER_STEP, (told, grown)
        if number % 8 == 0:
            assert {commit: repo.entries("", commit) for commit in versions} == versions, told
    repo.cleanup(0)
    left = repo.growth()
    assert (left.leftovers.files, left.unreferenced.files) == (0, 0)
    assert len(list((repo.path / ".oxen" / "history").iterdir())) == left.commits
    assert repo.fsck(history=True).sound
    assert {commit: repo.entries("", commit) for commit in versions} == versions
