"""Which runs are called dead: those that a process held and none holds any more, and those that nobody has.

`test_lost_runs.py` asks a code server that has a run, and one that has lost it.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.events import EngineEventData
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin
from dagster._core.storage.tags import GRPC_INFO_TAG

from mlops_assets import liveness
from mlops_assets.home import ensure_home, open_instance
from mlops_assets.sensors.run_status import LOST_SECONDS, close_dead_runs, close_lost_runs
from mlops_assets.settings import settings

HOLDER = """
import sys, time
from pathlib import Path
from mlops_assets.liveness import hold
hold(Path(sys.argv[1]), sys.argv[2])
print("held", flush=True)
time.sleep(600)
"""


@dg.job
def idle() -> None:
    """A job without steps."""


def holder(home: Path, run_id: str) -> "subprocess.Popen[bytes]":
    """A process that holds a run until it is killed."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(home), run_id], stdout=subprocess.PIPE)
    assert process.stdout
    with process.stdout:
        assert process.stdout.readline() == b"held\n"
    return process


def kill(*processes: "subprocess.Popen[bytes]") -> None:
    for process in processes:
        process.send_signal(signal.SIGKILL)
        process.wait()


@pytest.fixture
def instance(home: Path) -> Iterator[dg.DagsterInstance]:
    with open_instance(ensure_home()) as made:
        yield made


@pytest.fixture(autouse=True)
def _own_dagster_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home" / "dagster"))


def test_a_run_is_released_with_its_last_holder(tmp_path: Path) -> None:
    assert liveness.released(tmp_path) == {}
    began = time.time() - 1
    first, second = holder(tmp_path, "shared"), holder(tmp_path, "shared")
    assert liveness.released(tmp_path) == {}
    kill(first)
    assert liveness.released(tmp_path) == {}
    kill(second)
    assert liveness.is_known(tmp_path, "shared")
    (taken,) = liveness.released(tmp_path).values()
    assert began < taken <= time.time()
    liveness.forget(tmp_path, "shared")
    assert not liveness.is_known(tmp_path, "shared")
    assert liveness.released(tmp_path) == {}


def test_a_held_run_is_left_alone_and_a_dead_one_is_closed(instance: dg.DagsterInstance) -> None:
    here = settings()
    statuses = {"STARTED": "FAILURE", "NOT_STARTED": "FAILURE", "CANCELING": "CANCELED", "SUCCESS": "SUCCESS"}
    runs = {before: instance.create_run_for_job(idle, status=dg.DagsterRunStatus(before)).run_id for before in statuses}
    processes = [holder(here.home, run_id) for run_id in [*runs.values(), "nobody-knows-it"]]
    assert close_dead_runs(instance, here, {}) == []
    kill(*processes)
    assert set(close_dead_runs(instance, here, {})) == set(runs.values()) - {runs["SUCCESS"]}
    for before, after in statuses.items():
        run = instance.get_run_by_id(runs[before])
        assert run is not None
        assert run.status.value == after
    assert close_dead_runs(instance, here, {}) == []
    assert not any((here.home / "runs").iterdir()), "what has ended is forgotten"


def test_a_run_between_two_step_processes_is_not_dead_yet(instance: dg.DagsterInstance) -> None:
    here = settings()
    run = instance.create_run_for_job(idle, status=dg.DagsterRunStatus.STARTED)
    event = dg.DagsterEvent(
        dg.DagsterEventType.STEP_WORKER_STARTED.value, idle.name, step_key="a", event_specific_data=EngineEventData()
    )
    instance.report_dagster_event(event, run.run_id)
    kill(holder(here.home, run.run_id))
    free: dict[str, float] = {}
    assert close_dead_runs(instance, here, free) == []
    assert set(free) == {run.run_id}
    free[run.run_id] -= 60
    assert close_dead_runs(instance, here, free) == [], "the next step has taken it since"
    taken = here.home / "runs" / run.run_id
    os.utime(taken, (taken.stat().st_atime, taken.stat().st_mtime - 60))
    free[run.run_id] -= 60
    assert close_dead_runs(instance, here, free) == [run.run_id]


def launched(
    instance: dg.DagsterInstance, status: str = "STARTED", *, at: str = "mlops_assets", **server: object
) -> dg.DagsterRun:
    """A run that the code server of a code location was told to launch."""
    origin = RemoteJobOrigin(RemoteRepositoryOrigin(RegisteredCodeLocationOrigin(at), "all"), idle.name)
    tags = {GRPC_INFO_TAG: json.dumps({"host": "localhost", **server})} if server else {}
    return instance.create_run_for_job(idle, status=dg.DagsterRunStatus(status), tags=tags, remote_job_origin=origin)


def test_runs_that_died_with_their_server_before_they_held_anything(
    instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    here, gone = settings(), str(tmp_path / "gone")
    statuses = {"STARTING": "FAILURE", "STARTED": "FAILURE", "CANCELING": "CANCELED"}
    lost = {launched(instance, before, socket=gone).run_id: after for before, after in statuses.items()}
    lost[launched(instance, "STARTING").run_id] = "FAILURE"  # its daemon died before it told any server
    held = launched(instance, socket=gone)
    others = [
        held,
        launched(instance, "QUEUED", socket=gone),
        launched(instance, at="gpu", socket=gone),
        instance.create_run_for_job(idle, status=dg.DagsterRunStatus.STARTED),  # of a command, in its own process
    ]
    process = holder(here.home, held.run_id)
    try:
        since: dict[str, float] = {}
        assert close_lost_runs(instance, here, since) == [], "its server may be about to come back"
        assert set(since) == set(lost)
        for run_id in since:
            since[run_id] -= LOST_SECONDS
        assert set(close_lost_runs(instance, here, since)) == set(lost)
    finally:
        kill(process)
    assert since == {}
    assert {run_id: status_of(instance, run_id) for run_id in lost} == lost
    assert {status_of(instance, run.run_id) for run in others} == {"STARTED", "QUEUED"}


def test_a_lost_run_is_given_no_time_before_services_start(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    run = launched(instance, socket=str(tmp_path / "gone"))
    assert close_lost_runs(instance, settings(), {}, grace=0) == [run.run_id]


def status_of(instance: dg.DagsterInstance, run_id: str) -> str:
    run = instance.get_run_by_id(run_id)
    assert run is not None
    return run.status.value
