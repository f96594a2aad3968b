"""Ports, locks and runs, looked at while real processes have them, or had."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import dagster as dg
import psutil
import pytest
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin

from mlops_assets.doctor import databases, processes
from mlops_assets.doctor.examination import Examination, Finding, examination, findings
from mlops_assets.home import ensure_home
from mlops_assets.provenance import PIPELINE_TAG
from mlops_assets.settings import settings
from mlops_assets.tracking import tags as keys
from mlops_assets.tracking.runs import Tracking
from mlops_assets_tests.processes.conftest import free_ports

HOLDER = """
import socket, sys, time
from pathlib import Path
from filelock import FileLock
from mlops_assets.liveness import hold

what, home, given = sys.argv[1:]
if what == "run":
    hold(Path(home), given)
else:
    lock = FileLock(Path(home) / given)
    lock.acquire()
    server = socket.create_server(("127.0.0.1", 0))
    print(server.getsockname()[1], flush=True)
print("holding", flush=True)
time.sleep(600)
"""


@dg.asset(key=["iris", "model"])
def model() -> None:
    """An asset of the pipeline."""


iris_job = dg.Definitions([model], jobs=[dg.define_asset_job("iris_job")]).resolve_job_def("iris_job")


@pytest.fixture
def look(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Examination]:
    monkeypatch.setenv("DAGSTER_HOME", str(home / "dagster"))
    with examination(ensure_home(settings())) as made:
        yield made


@pytest.fixture
def started() -> Iterator[list["subprocess.Popen[str]"]]:
    processes_: list[subprocess.Popen[str]] = []
    yield processes_
    for process in processes_:
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()


def holder(started: list["subprocess.Popen[str]"], what: str, home: Path, given: str) -> tuple[int, list[str]]:
    """A process that holds a lock or a run; its id, and what it said."""
    command = [sys.executable, "-c", HOLDER, what, str(home), given]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    started.append(process)
    assert process.stdout
    said: list[str] = []
    while not said or said[-1] != "holding":
        said.append(process.stdout.readline().strip())
        assert process.poll() is None
    return process.pid, said


def stop(pid: int) -> None:
    """As Ctrl-Z does."""
    os.kill(pid, signal.SIGSTOP)
    while psutil.Process(pid).status() != psutil.STATUS_STOPPED:
        time.sleep(0.01)


def by_check(found: Iterator[Finding]) -> dict[str, Finding]:
    return {one.check: one for one in found}


def test_free_ports_and_one_that_somebody_has(look: Examination) -> None:
    (free,) = free_ports(1)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        look.here.dagster_port, look.here.mlflow_port = free, taken.getsockname()[1]
        look.here.serve_port = look.here.grpc_port = free
        found = by_check(processes.ports(look))
    assert found["Dagster's port"].result == "ok"
    one = found["MLflow's port"]
    assert one.result == "warning"
    assert one.found.startswith(f"{look.here.mlflow_port} is taken by process {os.getpid()} (")
    assert "MLOPS_MLFLOW_PORT" in one.fix
    look.here.mlflow_tracking_uri = "http://127.0.0.1:9"
    assert "MLflow's port" not in by_check(processes.ports(look)), "MLflow's server is somebody else's"


def test_ports_of_our_own(look: Examination, started: list["subprocess.Popen[str]"]) -> None:
    pid, (port, _) = holder(started, "lock", look.here.home, "up.lock")
    look.here.dagster_port = int(port)
    found = by_check(processes.ports(look))["Dagster's port"]
    assert found == Finding("Dagster's port", "ok", f"{port}: taken by this platform (process {pid})")


def test_who_holds_locks(look: Examination, started: list["subprocess.Popen[str]"]) -> None:
    home = look.here.home
    (home / "locks").mkdir()
    (home / "locks" / "run-digits").touch()
    (before,) = processes.locks(look)
    assert (before.result, before.found.startswith("0 of ")) == ("ok", True)
    pid, _ = holder(started, "lock", home, "locks/run-iris")
    (found,) = processes.locks(look)
    assert found.result == "ok"
    assert f"locks/run-iris by process {pid} ({sys.executable}" in found.found
    stop(pid)
    (found,) = processes.locks(look)
    assert found.result == "warning"
    assert found.found.startswith(f"{home / 'locks' / 'run-iris'} is held by process {pid} (")
    assert found.fix == f"`kill -CONT {pid}` lets it go on, `kill -9 {pid}` ends it"
    os.kill(pid, signal.SIGKILL)
    started[0].wait()
    (found,) = processes.locks(look)
    assert (found.result, found.found.startswith("0 of ")) == ("ok", True), "the kernel took it back"


def test_nobody_waits_for_a_process_that_is_stopped(look: Examination, started: list["subprocess.Popen[str]"]) -> None:
    pid, _ = holder(started, "lock", look.here.home, "dagster/.create.lock")
    stop(pid)
    for check in (databases.dagster, processes.runs):
        (found,) = findings("Dagster", partial(check, look))
        assert found.result == "problem"
        assert found.found.endswith(f".create.lock is held by process {pid}, which is stopped")
        assert found.fix == f"`kill -CONT {pid}` lets it go on"


def test_a_run_whose_process_is_gone(look: Examination, started: list["subprocess.Popen[str]"]) -> None:
    assert look.instance is not None
    assert [one.found for one in processes.runs(look)] == ["0 under way"]
    run = look.instance.create_run_for_job(iris_job, status=dg.DagsterRunStatus.STARTED, tags={PIPELINE_TAG: "iris"})
    holder(started, "run", look.here.home, run.run_id)
    assert [one.found for one in processes.runs(look)] == ["1 under way"]
    started[0].kill()
    started[0].wait()
    assert list(processes.runs(look)) == [
        Finding(
            "runs",
            "problem",
            f"run {run.run_id[:8]} of iris is started, and its process is gone",
            f"`mlops run iris`, or wait: {processes.CLOSER}",
        )
    ]


def test_a_run_that_nobody_ever_held(look: Examination, monkeypatch: pytest.MonkeyPatch) -> None:
    assert look.instance is not None
    selected = frozenset({dg.AssetKey(["iris", "model"])})  # as the UI launches it, without tags of ours
    run = look.instance.create_run_for_job(iris_job, status=dg.DagsterRunStatus.STARTING, asset_selection=selected)
    assert [one.result for one in processes.runs(look)] == ["ok"], "its process is about to take it"
    monkeypatch.setattr(processes, "STARTING_SECONDS", -1.0)
    (found,) = processes.runs(look)
    assert (found.result, found.fix) == ("warning", processes.CLOSER)
    assert found.found == f"run {run.run_id[:8]} of iris is starting, and no process of it is known"


def test_a_run_that_waits_for_a_daemon(look: Examination, started: list["subprocess.Popen[str]"]) -> None:
    assert look.instance is not None
    origin = RemoteJobOrigin(RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("here"), "all"), "iris_job")
    run = look.instance.create_run_for_job(iris_job, status=dg.DagsterRunStatus.QUEUED, remote_job_origin=origin)
    (found,) = processes.runs(look)
    assert (found.result, found.fix) == ("warning", "`mlops up`")
    assert found.found.startswith(f"run {run.run_id[:8]} is queued, and no daemon")
    holder(started, "lock", look.here.home, "up.lock")
    assert [one.result for one in processes.runs(look)] == ["ok"]


def test_mlflow_runs_beside_ended_runs(look: Examination, tracking: Tracking) -> None:
    assert look.instance is not None
    ended = look.instance.create_run_for_job(iris_job, status=dg.DagsterRunStatus.FAILURE)
    running = look.instance.create_run_for_job(iris_job, status=dg.DagsterRunStatus.STARTED)
    experiment = tracking.experiment("iris")
    client = tracking.client
    trained = client.create_run(experiment, tags={keys.DAGSTER_RUN: ended.run_id}).info.run_id
    parent = client.create_run(experiment, tags={keys.DAGSTER_PARENT: ended.run_id}).info.run_id
    client.create_run(experiment, tags={keys.DAGSTER_RUN: running.run_id})
    client.create_run(experiment)
    found = list(processes.mlflow_runs(look))
    assert {one.result for one in found} == {"warning"}
    assert {one.found for one in found} == {
        f"run {run_id[:8]} of iris is RUNNING, but Dagster's run {ended.run_id[:8]} has ended"
        for run_id in (trained, parent)
    }
    assert found[0].fix == f"`mlops run iris`, or wait: {processes.CLOSER}"
    for run_id in (trained, parent):
        client.set_terminated(run_id, "KILLED")
    assert [one.found for one in processes.mlflow_runs(look)] == ["2 open"]


def test_a_fresh_home_has_no_runs(tmp_path: Path) -> None:
    with examination(settings()) as look:
        assert [one.found for one in processes.runs(look)] == ["none yet"]
        assert [one.found for one in processes.mlflow_runs(look)] == ["0 open"]
    assert not (tmp_path / "home").exists(), "looking makes nothing"
