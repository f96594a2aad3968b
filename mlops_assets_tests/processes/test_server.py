"""With MLflow on a server, and steps that are processes of their own."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mlops_assets.data import samples
from mlops_assets_tests.processes.conftest import free_ports
from mlops_assets_tests.processes.project import Project, is_answering, script, send

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_multiprocess_steps_log_to_a_server_and_killed_runs_are_closed_there(
    project: Project, store_template: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (port,) = free_ports(1)
    uri = f"http://127.0.0.1:{port}"
    server = project.start(
        *(sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", f"sqlite:///{project.root}/mlflow.db"),
        *("--artifacts-destination", str(project.root / "artifacts")),
        MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false",
    )
    project.wait_for(lambda: is_answering(f"{uri}/health"), "the MLflow server")
    project.environment |= {"MLFLOW_TRACKING_URI": uri}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    project.commit(samples.iris())
    project.environment["MLOPS_EXECUTOR"] = "multiprocess"
    assert project.runs() == []  # its databases are made now: the daemon and its code server would make them at once
    daemon = start_daemon(project)
    project.wait_for(project.champion, "the champion")
    ended = [("parent", "FINISHED"), ("model", "FINISHED")]
    project.wait_for(lambda: project.mlflow_statuses() == ended, "MLflow to know")
    assert set(project.made().values()) == {1}
    project.wait_for(lambda: set(project.statuses()) == {"SUCCESS"}, "the run to end")
    send(daemon, signal.SIGTERM)

    project.environment["MLOPS_EXECUTOR"] = "in_process"
    project.hold_trainings()
    project.commit(samples.iris_uci())
    run = project.start(script("mlops"), "run", "iris")
    project.wait_for(project.is_training, "the training")
    send(run, signal.SIGKILL)
    project.release_trainings()
    daemon = start_daemon(project)
    killed = [("parent", "FAILED"), ("model", "KILLED")]
    project.wait_for(
        lambda: project.mlflow_statuses() == ended + killed + ended, "the sensor to close and to go on", 300
    )
    project.wait_for(lambda: set(project.statuses()) == {"SUCCESS", "FAILURE"}, "the runs to end")
    send(daemon, signal.SIGTERM)

    project.commit(samples.iris().head(140))
    send(server, signal.SIGTERM)
    done = project.mlops("run", "iris")
    assert done.returncode == 1
    assert f"No MLflow server answers at {uri}" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout


def start_daemon(project: Project) -> "subprocess.Popen[bytes]":
    """Sensors, queue and code server alone."""
    return project.start(
        *(sys.executable, "-m", "dagster._daemon", "run", "-w", "workspace.yaml", "--log-level", "warning"),
        DAGSTER_HOME=str(project.home / "dagster"),
    )
