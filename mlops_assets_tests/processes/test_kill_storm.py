"""kill -9 at random moments: whatever dies, the next run or tick brings everything to its end.

The moments come from a seed that is printed; MLOPS_TEST_SEED repeats them. `oxen/test_kills.py` and
`test_store_kills.py` do the same to a commit and to the store's writer.
"""

import os
import random
import signal
import time
from contextlib import suppress

import psutil
import pytest

from mlops_assets.data import samples
from mlops_assets.store import Store
from mlops_assets.upkeep import Slot, verify
from mlops_assets_tests.processes.project import Project, script, send

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

RUNS = 4
LONGEST = 7.0
"""Seconds that such a run takes: each is killed in a part of its own of that time, so that no part is left out."""

SERVICES = {"daemon": "dagster._daemon", "code server": "dagster api grpc", "webserver": "dagster_webserver"}
"""Their command lines. `test_kill.py` kills a worker, and all at once, in the middle of a training."""
OPEN = {"QUEUED", "NOT_STARTED", "STARTING", "STARTED", "CANCELING"}


@pytest.fixture
def moments() -> random.Random:
    seed = os.environ.get("MLOPS_TEST_SEED") or str(random.SystemRandom().randrange(2**32))
    print(f"MLOPS_TEST_SEED={seed}")
    return random.Random(seed)


def test_a_run_killed_at_any_moment(project: Project, moments: random.Random) -> None:
    finished = 0
    for number, part in enumerate(moments.sample(range(RUNS), RUNS)):
        project.commit(samples.iris().head(150 - number), f"version {number}")
        process = project.start(script("mlops"), "run", "iris")
        time.sleep((part + moments.random()) * LONGEST / RUNS)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        finished += process.wait() == 0
        assert not damaged(project), "whatever can be seen in the store is whole"
        if number % 2:
            done = project.mlops("run", "iris")
            assert done.returncode == 0, done.stdout + done.stderr
            assert whole(project)
    assert finished < RUNS, "none was killed in time"


def test_a_service_killed_at_any_moment(project: Project, moments: random.Random) -> None:
    up = project.up()
    for number, victim in enumerate(moments.sample(sorted(SERVICES), len(SERVICES))):
        project.commit(samples.iris().head(150 - number), f"version {number}")
        wait = moments.uniform(0.0, 9.0)
        time.sleep(wait)
        print(f"after {wait:.2f} s: {victim}")
        before = restarts(project)
        project.wait_for(lambda: kill(project, victim), f"the {victim}")  # noqa: B023  which may be starting again
        project.wait_for(lambda: restarts(project) > before, "the services to be started again")  # noqa: B023
        project.wait_until_settled()
        project.wait_for(lambda: whole(project), "every run to end", 300)
        assert project.champion()
    send(up, signal.SIGKILL)
    project.wait_for(lambda: not project.alive(), "the end of all with that of `mlops up`")


def kill(project: Project, victim: str) -> int:
    """Kill a service; the number of its processes."""
    killed = 0
    for process in project.alive():
        with suppress(psutil.Error):
            if SERVICES[victim] in " ".join(process.cmdline()):
                process.kill()
                killed += 1
    return killed


def restarts(project: Project) -> int:
    return project.output.read_text().count("; starting again")


def whole(project: Project) -> bool:
    """Nothing is open for ever, in Dagster and in MLflow, and the store holds nothing damaged."""
    open_runs = [status for status in project.statuses() if status in OPEN]
    open_models = [status for _, status in project.mlflow_statuses() if status == "RUNNING"]
    return not open_runs and not open_models and not damaged(project)


def damaged(project: Project) -> list[Slot]:
    return list(verify(Store(str(project.home / "store"))))
