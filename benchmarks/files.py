"""`files`: writing out and committing 10,000 files of 3 KB, and one of 100 MB, against `cp` and other version stores.

Each side keeps the same files in a store of its own and takes its turn in random order; before each measurement the
disk is synced, and what is written goes to a new place. Ours is asked from inside a Python process, as the platform
does it; Oxen itself likewise, in the child process that it needs; the others by their commands, start included.
Git, git-lfs and DVC are left out where they are not installed; `MLOPS_BENCH_DVC` may name a `dvc` of another
environment.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from benchmarks.figures import Figure, Result
from benchmarks.project import CHECKOUT, BenchmarkFailed

FILES: Final = 10_000
FILE_BYTES: Final = 3_000
BIG_BYTES: Final = 100_000_000
CHANGED: Final = 0.01
"""Share of the files, or of the one file's bytes, that a new version changes."""

TARGET: Final = 1.3
"""A verified copy of the small files may take this many times the time of `cp -r`."""

MOST_RUNS: Final = 5

_MORE_TURNS: Final = 5
"""The pair with the target takes that many turns a run: creating files on a disk varies by a factor of five."""

OURS: Final = """
import json, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from mlops_assets.oxen.repository import Repository
repository = Repository(Path(sys.argv[2]))
commit = repository.resolve("main")
began = time.perf_counter()
if sys.argv[3] == "materialize":
    repository.materialize("data", commit, Path(sys.argv[4]))
else:
    assert repository.commit("a new version", files={"data": Path(sys.argv[4])})
print(json.dumps(time.perf_counter() - began))
"""

OXEN: Final = """
import json, os, sys, time
sys.path.insert(0, sys.argv[1])
from mlops_assets.oxen.work import extension
oxen = extension({"extension": sys.argv[2]})
oxen.user.config_user("bench", "bench@localhost", os.environ["OXEN_CONFIG_DIR"] + "/user_config.toml")
repo = oxen.PyRepo(sys.argv[4])
if sys.argv[3] == "init":
    repo.init()
began = time.perf_counter()
if sys.argv[3] == "materialize":
    repo.restore(".", False, sys.argv[5])
else:
    repo.add(sys.argv[4] + "/data")
    sys.stderr.write(repo.commit("a version").id)
print()
print(json.dumps(time.perf_counter() - began))
"""


@dataclass(frozen=True)
class Side:
    """One way of keeping versions.

    Attributes:
        name: What it is called in the table.
        materialize: Writes the newest version to a new place; returns seconds and the place.
        commit: Takes a new version of the source folder; returns seconds.
    """

    name: str
    materialize: Callable[[], tuple[float, Path]]
    commit: Callable[[], float] | None = None


def measure(runs: int) -> Result:
    runs = min(runs, MOST_RUNS)
    figures: list[Figure] = []
    notes = []
    for what, write, change in (
        (f"{FILES:,} files of {FILE_BYTES // 1000} KB", _write_small, _change_small),
        (f"a file of {BIG_BYTES // 1_000_000} MB", _write_big, _change_big),
    ):
        with TemporaryDirectory(prefix="mlops-bench-") as name:
            folder = Path(name).resolve()
            source = folder / "source" / "data"
            write(source)
            sides, notes = _sides(folder, source)
            figures += _measured(sides, source, runs, what, change)
    return Result(figures, notes=notes)


def _measured(
    sides: list[Side], source: Path, runs: int, what: str, change: Callable[[Path, int], None]
) -> list[Figure]:
    """Let all sides take turns; the first figure of each kind is what the next ones are held against."""
    wanted = _summary(source)
    plain, ours = sides[0], sides[1]
    bare = Figure(f"{plain.name}, {what}")
    written = {plain.name: bare}
    written[ours.name] = Figure(f"materialize, {what}: {ours.name}", against=bare, target=TARGET)
    committed: dict[str, Figure] = {}
    for side in sides[2:]:
        against = bare if side.commit is None else written[ours.name]
        written[side.name] = Figure(f"materialize, {what}: {side.name}", against=against)
    for side in sides[1:]:
        if side.commit:
            against = committed.get(ours.name)
            committed[side.name] = Figure(f"commit {CHANGED:.0%} of {what}: {side.name}", against=against)
    order = random.Random(0)
    for number in range(runs):
        turns = sides + sides[:2] * (_MORE_TURNS - 1)
        for side in order.sample(turns, len(turns)):
            os.sync()
            seconds, place = side.materialize()
            if _summary(place) != wanted:
                raise BenchmarkFailed(f"{side.name} has written other files than it was given")
            written[side.name].add(seconds)
            shutil.rmtree(place)
        change(source, number)
        wanted = _summary(source)
        for side in order.sample(sides, len(sides)):
            if side.commit:
                os.sync()
                committed[side.name].add(side.commit())
    return [*written.values(), *committed.values()]


def _sides(folder: Path, source: Path) -> tuple[list[Side], list[str]]:
    """Every side that is installed here, each with the first version in it; and which are left out."""
    sides = [_cp(folder, source), _ours(folder, source), _copytree(folder, source), _oxen(folder, source)]
    notes = ["Oxen's own restore does not verify what it writes; git verifies its objects, cp and DVC nothing."]
    git = shutil.which("git")
    dvc = os.environ.get("MLOPS_BENCH_DVC") or shutil.which("dvc")
    if git:
        sides.append(_git(folder / "git", source, lfs=False))
    if git and shutil.which("git-lfs"):
        sides.append(_git(folder / "git-lfs", source, lfs=True))
    if git and dvc:
        sides.append(_dvc(folder / "dvc", source, dvc))
    missing = [name for name, found in (("git", git), ("git-lfs", shutil.which("git-lfs")), ("dvc", dvc)) if not found]
    if missing:
        notes.append(f"left out, as not installed: {', '.join(missing)}")
    return sides, notes


def _cp(folder: Path, source: Path) -> Side:
    def materialize() -> tuple[float, Path]:
        place = folder / "copy"
        return _timed("cp", "-r", str(source), str(place)), place

    return Side("cp -r", materialize)


def _copytree(folder: Path, source: Path) -> Side:
    def materialize() -> tuple[float, Path]:
        place = folder / "copytree"
        began = time.perf_counter()
        shutil.copytree(source, place)
        return time.perf_counter() - began, place

    return Side("shutil.copytree", materialize)


def _ours(folder: Path, source: Path) -> Side:
    from mlops_assets.oxen.repository import Repository

    repository = Repository(folder / "ours")
    repository.init()
    repository.commit("the first version", files={"data": source})
    call = [sys.executable, "-c", OURS, str(CHECKOUT), str(repository.path)]

    def materialize() -> tuple[float, Path]:
        cache = folder / "cache"
        shutil.rmtree(cache, ignore_errors=True)
        seconds = _told([*call, "materialize", str(cache)])
        return seconds, next(cache.glob("*/data"))

    return Side("verified, by us", materialize, lambda: _told([*call, "commit", str(source)]))


def _oxen(folder: Path, source: Path) -> Side:
    """Oxen as it is meant to be used: a working copy for commits, and a restore into an empty one."""
    from mlops_assets.oxen.child import extension_file

    work, home = folder / "oxen", folder / "oxen-home"
    home.mkdir()
    work.mkdir()
    variables = {"OXEN_CONFIG_DIR": str(home), "HOME": str(home)}
    call = [sys.executable, "-c", OXEN, str(CHECKOUT), extension_file()]
    commits: list[str] = []

    def commit(how: str = "commit") -> float:
        shutil.copytree(source, work / "data", dirs_exist_ok=True)  # its working copy changes as the source does
        seconds, told = _told_with([*call, how, str(work)], variables)
        commits.append(told.strip().splitlines()[-1])
        return seconds

    def materialize() -> tuple[float, Path]:
        view = folder / "oxen-view"
        shutil.rmtree(view, ignore_errors=True)
        (view / ".oxen").mkdir(parents=True)
        for part in ("versions", "tree", "history"):
            (view / ".oxen" / part).symlink_to(work / ".oxen" / part)
        shutil.copy(work / ".oxen" / "config.toml", view / ".oxen" / "config.toml")
        seconds, _ = _told_with([*call, "materialize", str(view), commits[-1]], variables)
        return seconds, view / "data"

    commit("init")
    return Side("Oxen's own", materialize, commit)


def _git(work: Path, source: Path, *, lfs: bool) -> Side:
    run = _repository(work)
    if lfs:
        run("git", "lfs", "install", "--local")
        run("git", "lfs", "track", "data/**")
    branches = iter(range(10_000))

    def commit() -> float:
        shutil.copytree(source, work / "data", dirs_exist_ok=True)
        return run("git", "add", "-A") + run("git", "commit", "-qm", "a version")

    def materialize() -> tuple[float, Path]:
        place = work.with_name(f"{work.name}-{next(branches)}")
        return run("git", "worktree", "add", "-q", "--detach", str(place), "HEAD"), place / "data"

    commit()
    return Side("git-lfs" if lfs else "git", materialize, commit)


def _dvc(work: Path, source: Path, dvc: str) -> Side:
    run = _repository(work)
    run(dvc, "init", "-q")
    run(dvc, "config", "core.analytics", "false")
    run(dvc, "config", "core.check_update", "false")

    def commit() -> float:
        shutil.copytree(source, work / "data", dirs_exist_ok=True)
        return run(dvc, "add", "-q", "data") + run("git", "add", "-A") + run("git", "commit", "-qm", "a version")

    def materialize() -> tuple[float, Path]:
        shutil.rmtree(work / "data")
        return run(dvc, "checkout", "-q"), work / "data"

    commit()
    return Side("DVC", materialize, commit)


def _repository(work: Path) -> Callable[..., float]:
    """Make a git repository; returns what runs a command in it, with nothing of the user's configuration."""
    work.mkdir()
    variables = {
        "HOME": str(work.parent),
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_CONFIG_NOSYSTEM": "1",
        "DVC_NO_ANALYTICS": "1",
    }

    def run(*command: str) -> float:
        return _timed(*command, folder=work, variables=variables)

    run("git", "init", "-q", ".")
    run("git", "config", "user.name", "bench")
    run("git", "config", "user.email", "bench@localhost")
    return run


def _timed(*command: str, folder: Path | None = None, variables: Mapping[str, str] | None = None) -> float:
    began = time.perf_counter()
    _done(command, folder, variables)
    return time.perf_counter() - began


def _told(command: list[str]) -> float:
    """Run a Python script that measures itself."""
    return _told_with(command, {})[0]


def _told_with(command: list[str], variables: Mapping[str, str]) -> tuple[float, str]:
    done = _done(command, None, variables)
    return float(json.loads(done.stdout.splitlines()[-1])), done.stderr


def _done(
    command: tuple[str, ...] | list[str], folder: Path | None, variables: Mapping[str, str] | None
) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OXEN_", "GIT_"))}
    done = subprocess.run(
        command, cwd=folder, env={**kept, **(variables or {})}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise BenchmarkFailed(f"{' '.join(command[:4])} ended with code {done.returncode}: {done.stderr[-2000:]}")
    return done


def _summary(folder: Path) -> tuple[int, int]:
    """Number of files and bytes in them."""
    sizes = [item.stat().st_size for item in folder.iterdir() if item.name != ".gitignore"]
    return len(sizes), sum(sizes)


def _write_small(folder: Path) -> None:
    content = random.Random(1)
    folder.mkdir(parents=True)
    for number in range(FILES):
        (folder / f"{number:05}.bin").write_bytes(content.randbytes(FILE_BYTES))


def _change_small(folder: Path, number: int) -> None:
    content = random.Random(number + 2)
    for chosen in content.sample(range(FILES), int(FILES * CHANGED)):
        (folder / f"{chosen:05}.bin").write_bytes(content.randbytes(FILE_BYTES))


def _write_big(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "big.bin").write_bytes(random.Random(1).randbytes(BIG_BYTES))


def _change_big(folder: Path, number: int) -> None:
    content = random.Random(number + 2)
    with (folder / "big.bin").open("r+b") as stream:
        stream.seek(content.randrange(int(BIG_BYTES * (1 - CHANGED))))
        stream.write(content.randbytes(int(BIG_BYTES * CHANGED)))
