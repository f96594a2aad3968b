"""The real commands with real processes around them: writers that do not stop, kills, and runs that were under way."""

import os
import random
import secrets
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from mlops_assets.backup import note
from mlops_assets.backup.contents import ARRIVING
from mlops_assets.backup.restore import verify
from mlops_assets.data import samples
from mlops_assets.oxen.repository import Repository
from mlops_assets.registry import aliases
from mlops_assets.settings import Settings
from mlops_assets.tracking import tags as keys
from mlops_assets_tests.backup.test_archive import nothing
from mlops_assets_tests.processes.project import Project, script
from mlops_assets_tests.registry.test_aliases import logged_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SEED = int(os.environ.get("MLOPS_TEST_SEED", secrets.randbelow(2**32)))  # here: tests do not see the variables

COMMITS = """
import sys, time
from pathlib import Path
from mlops_assets.oxen.repository import Repository
repository, number = Repository(Path(sys.argv[1]) / "oxen" / "noise"), 0
repository.init()
while True:
    number += 1
    time.sleep(0.05)
    repository.commit(f"{number}", files={f"{number % 7}.csv": b"x,y\\n" * number, f"new/{number}.txt": b"%d" % number})
"""

MOVES = """
import sys, time
from pathlib import Path
from mlops_assets.registry.champion import Champions
from mlops_assets.registry.ledger import Ledger
from mlops_assets.tracking.runs import Tracking
home, number = Path(sys.argv[1]), 0
champions = Champions(Ledger(home / "ledger", "iris"), Tracking.embedded(home), "iris", "champion")
while True:
    number += 1
    time.sleep(0.05)
    champions.move(number % 2 + 1, how="hand", actor="test", reason=f"move {number}")
"""

OUTPUTS = """
import os, sys, time
from pathlib import Path
from mlops_assets.fingerprint import Recipe
from mlops_assets.store import Store
home, number = Path(sys.argv[1]), 0
store = Store(str(home / "store"))
while True:
    number += 1
    time.sleep(0.05)
    store.put(Recipe("noise/model", str(number % 50), {"features": "f"}), "d", {}, {"weights": os.urandom(5000)})
    folder = home / "predictions" / "noise" / "date=2026-11-21"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "aside").write_bytes(b"PAR1" * number)
    (folder / "aside").replace(folder / f"{number % 9}.parquet")
"""


def test_writers_that_do_not_stop(project: Project, tmp_path: Path) -> None:
    tracking = project.tracking()
    uri = logged_model(tracking, tmp_path)[1]
    for digest in "ab":
        tags = {keys.MODEL_DIGEST: digest, keys.RECIPE: f"recipe {digest}"}
        aliases.register(tracking, name="iris", model_uri=uri, tags=tags)
    writers = [project.start(sys.executable, "-c", text, str(project.home)) for text in (COMMITS, MOVES, OUTPUTS)]
    ledger = project.home / "ledger" / "iris.jsonl"

    def entries() -> int:
        return len(ledger.read_bytes().splitlines()) if ledger.exists() else 0

    seen = 4
    for number in range(2):
        project.wait_for(lambda: entries() > seen, "moves")  # noqa: B023
        done = project.mlops("backup", str(tmp_path / f"{number}.tar"))
        assert done.returncode == 0, done.stdout + done.stderr
        seen = entries()
    project.wait_for(lambda: entries() > seen, "moves to go on")
    assert [writer.poll() for writer in writers] == [None] * 3, project.told()
    for writer in writers:
        writer.kill()
    for number in range(2):
        done = project.mlops("restore", str(tmp_path / f"{number}.tar"), "--into", str(tmp_path / f"home-{number}"))
        assert done.returncode == 0, done.stdout + done.stderr
        assert "entries, proved by its hashes, MLflow and" in done.stdout
        assert "problem" not in done.stdout


def test_a_pipeline_with_a_run_under_way_restored_whole_and_by_its_data_alone(
    trained: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project, file = trained, tmp_path / "out.tar"
    before = project.repository.log()[0].id
    project.commit(samples.iris_uci())
    project.hold_trainings()
    process = project.start(script("mlops"), "run", "iris")
    project.wait_for(project.is_training, "the training")
    with file.open("wb") as target:
        piped = subprocess.run(
            [script("mlops"), "backup", "-"],
            cwd=project.root,
            env=project.environment,
            stdout=target,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert piped.returncode == 0, piped.stderr
    assert b"standard output: " in piped.stderr
    made = note.last(project.home)
    assert made
    assert abs(datetime.now(UTC) - made) < timedelta(minutes=10)
    os.killpg(process.pid, signal.SIGKILL)

    whole = tmp_path / "whole"
    done = project.mlops("restore", str(file), "--into", str(whole), COLUMNS="200")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "of which 1 were under way: the next start closes them" in done.stdout
    assert f"export MLOPS_HOME={whole}" in done.stdout
    assert note.last(whole) is None
    project.release_trainings()
    again = project.mlops("run", "iris", MLOPS_HOME=str(whole))
    assert "its process is gone" in again.stdout, again.stdout + again.stderr
    assert again.returncode == 0

    data = tmp_path / "data"
    done = project.mlops("restore", str(file), "--into", str(data), "--data-only")
    assert done.returncode == 0, done.stdout + done.stderr
    restored = Repository(data / "oxen" / "iris")
    restored.commit(
        "back to what has a model", files={"iris.csv": restored.materialize("iris.csv", before, tmp_path / "cache")}
    )
    made = project.mlops("run", "iris", MLOPS_HOME=str(data), COLUMNS="200")
    assert made.returncode == 0, made.stdout + made.stderr
    for stage in ("dataset", "features", "model", "evaluation"):
        assert f"iris/{stage}: taken from the store" in made.stdout, made.stdout
    assert "promoted version 1" in made.stdout

    monkeypatch.setenv("DAGSTER_HOME", str(whole / "dagster"))
    project.home = whole
    assert project.statuses()[-2:] == ["FAILURE", "SUCCESS"]
    assert ("model", "RUNNING") not in project.mlflow_statuses()
    assert ("parent", "RUNNING") not in project.mlflow_statuses()


def test_who_takes_a_backup_may_end(project: Project) -> None:
    project.commit(samples.iris_uci())
    read, write = os.pipe()
    os.close(read)
    with open(write, "wb") as closed:  # noqa: PTH123  a number
        done = subprocess.run(
            [script("mlops"), "backup", "-"],
            cwd=project.root,
            env=project.environment,
            stdout=closed,
            stderr=subprocess.PIPE,
            check=False,
        )
    said = done.stderr.decode()
    assert done.returncode == 1, said
    assert note.last(project.home) is None
    assert "Broken pipe; what was to take it has ended: see why, then try again" in said
    assert "BrokenPipeError" not in said


MAKE = """
import sys
from pathlib import Path
from mlops_assets.backup import archive, destination
from mlops_assets.backup.snapshot import snapshot
from mlops_assets.settings import Settings
print("begins", flush=True)
with snapshot(Settings(home=Path(sys.argv[1])), ["iris"]) as (staging, about), \\
        destination.writing(Path(sys.argv[2])) as stream:
    archive.write(stream, about, staging.files, lambda done, total: None)
"""

RESTORE = """
import sys
from pathlib import Path
from mlops_assets.backup.restore import restore
from mlops_assets.settings import Settings
print("begins", flush=True)
with Path(sys.argv[1]).open("rb") as stream:
    restore(stream, Settings(home=Path(sys.argv[2])), lambda done, total: None)
"""


def test_killed_at_any_moment(here: Settings, place: Path) -> None:
    print(f"MLOPS_TEST_SEED={SEED}")
    moments = random.Random(SEED)
    target, other, into = place / "out.tar", place / "other.tar", place / "into"
    lasts = ended(MAKE, here.home, target)
    whole = target.read_bytes()
    for _ in range(5):
        ended(MAKE, here.home, other, after=moments.uniform(0, 1) * lasts)
        if other.exists():
            with other.open("rb") as stream:
                verify(stream, nothing)
            other.unlink()
    ended(MAKE, here.home, other)
    assert {path.name for path in place.iterdir()} == {"home", "out.tar", "other.tar"}
    assert not list(here.home.rglob(".backup"))

    lasts = ended(RESTORE, target, place / "unhindered")
    for _ in range(5):
        ended(RESTORE, target, into, after=moments.uniform(0, 1) * lasts)
        if visible(into):
            assert arrived(into) == arrived(place / "unhindered"), "nothing is visible before everything is there"
            break  # it was quicker than the kill
    else:
        ended(RESTORE, target, into)
    assert target.read_bytes() == whole


def visible(home: Path) -> set[Path]:
    """The files of a home that a restore has put into their places."""
    files = {path.relative_to(home) for path in home.rglob("*") if path.is_file()}
    return {file for file in files if ARRIVING not in file.parts} - {Path("up.lock"), Path("serve.lock")}


def arrived(home: Path) -> set[Path]:
    """Those, and the ones that wait aside, by their places."""
    files = {path.relative_to(home) for path in home.rglob("*") if path.is_file()}
    return {Path(*(part for part in file.parts if part != ARRIVING)) for file in files}


def ended(text: str, *arguments: Path, after: float | None = None) -> float:
    """A process that was killed some seconds after it had begun, or came to its end; the seconds that it took."""
    with subprocess.Popen([sys.executable, "-c", text, *map(str, arguments)], stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"begins\n"
        began = time.monotonic()
        if after is not None:
            time.sleep(after)
            process.kill()
        process.wait()
    assert process.returncode == 0 or after is not None
    return time.monotonic() - began
