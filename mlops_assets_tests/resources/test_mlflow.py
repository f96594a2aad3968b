import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from mlops_assets.resources.mlflow import MLflowResource, instance_id
from mlops_assets.resources.mlflow_status import Closed, reconcile
from mlops_assets.tracking import tags as keys
from mlops_assets.tracking.runs import Tracking
from mlops_assets_tests.resources import mlflow_jobs


@pytest.fixture
def instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    folder = tmp_path / "dagster"
    folder.mkdir()
    (folder / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    monkeypatch.setenv("DAGSTER_HOME", str(folder))
    with dg.DagsterInstance.get() as instance:
        yield instance


@pytest.fixture(autouse=True)
def home_in_environment(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLOPS_HOME", str(home))


def runs(tracking: Tracking) -> dict[str, tuple[str, str | None]]:
    """Status and parent's name of every MLflow run, by name; a second one of the same name would be a fault."""
    found = tracking.client.search_runs([tracking.experiment("iris")])
    names = {run.info.run_id: run.info.run_name for run in found}
    by_name = {
        run.info.run_name: (run.info.status, names.get(run.data.tags.get("mlflow.parentRunId"))) for run in found
    }
    assert len(by_name) == len(found)
    return by_name


def execute(job, instance: dg.DagsterInstance) -> dg.DagsterRun:
    with dg.execute_job(dg.reconstructable(job), instance, raise_on_error=False) as result:
        return result.dagster_run


IMPORT = """
import sys
import mlops_assets.resources.mlflow, mlops_assets.resources.mlflow_status, mlops_assets.registry.aliases
from mlops_assets.resources.mlflow import MLflowResource
MLflowResource().tracking
print(sorted({"mlflow", "dagster_mlflow", "torch", "pandas"} & set(sys.modules)))
"""


def test_importing_the_resource_does_not_import_mlflow():
    done = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_steps_of_one_process_share_a_parent_that_ends_with_them(instance: dg.DagsterInstance, tracking: Tracking):
    before = dict(os.environ)
    assert execute(mlflow_jobs.one_process, instance).is_success
    assert runs(tracking) == {
        "one_process": ("FINISHED", None),
        "left": ("FINISHED", "one_process"),
        "right": ("FINISHED", "one_process"),
    }
    import mlflow

    assert mlflow.active_run() is None
    assert mlflow.tracking.fluent._active_experiment_id is None
    assert not mlflow.tracking.is_tracking_uri_set()
    assert dict(os.environ) == before
    assert reconcile(tracking, instance) == []


def test_parent_is_found_by_dagster_mlflow_and_a_model_is_not(instance: dg.DagsterInstance, tracking: Tracking):
    dagster_run = execute(mlflow_jobs.one_process, instance)
    ids = [tracking.experiment("iris")]
    (parent,) = tracking.client.search_runs(ids, f"tags.dagster_run_id = '{dagster_run.run_id}'")
    assert parent.info.run_name == "one_process"
    assert parent.data.tags[keys.DAGSTER_INSTANCE] == instance_id(instance)


def test_failed_training_fails_and_so_does_its_parent(instance: dg.DagsterInstance, tracking: Tracking):
    assert not execute(mlflow_jobs.failing, instance).is_success
    assert runs(tracking) == {"failing": ("FAILED", None), "broken": ("FAILED", "failing")}


def test_a_run_of_the_user_stays_active(instance: dg.DagsterInstance, tracking: Tracking, monkeypatch):
    import mlflow

    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", tracking.experiment("mine"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking.uri)
    with mlflow.start_run(run_name="mine") as mine:
        assert execute(mlflow_jobs.one_process, instance).is_success
        assert mlflow.active_run().info.run_id == mine.info.run_id
        assert os.environ["MLFLOW_TRACKING_URI"] == tracking.uri
    assert set(runs(tracking)) == {"one_process", "left", "right"}


def test_without_a_training_there_is_no_parent_and_no_store(instance: dg.DagsterInstance, tmp_path: Path):
    @dg.asset
    def idle(mlflow: MLflowResource) -> None:
        assert mlflow.home

    assert dg.materialize([idle], instance=instance, resources={"mlflow": MLflowResource(home=str(tmp_path / "new"))})
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_parallel_processes_share_one_parent(
    instance: dg.DagsterInstance, tracking: Tracking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "meeting").mkdir()
    monkeypatch.setenv("MEET", str(tmp_path / "meeting"))
    dagster_run = execute(mlflow_jobs.two_processes, instance)
    assert dagster_run.is_success
    models = {"left": ("FINISHED", "two_processes"), "right": ("FINISHED", "two_processes")}
    assert runs(tracking) == {"two_processes": ("RUNNING", None), **models}
    (closed,) = reconcile(tracking, instance)
    assert (closed.dagster_run_id, closed.status) == (dagster_run.run_id, "FINISHED")
    assert runs(tracking) == {"two_processes": ("FINISHED", None), **models}


RUN = """
import sys
import dagster as dg
from mlops_assets_tests.resources import mlflow_jobs
with dg.DagsterInstance.get() as instance:
    with dg.execute_job(dg.reconstructable(getattr(mlflow_jobs, sys.argv[1])), instance) as result:
        pass
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_interrupted_training_is_killed(name: str, instance: dg.DagsterInstance, tracking: Tracking):
    command = [sys.executable, "-c", RUN, "signalled_job"]
    subprocess.run(command, env={**os.environ, "SIGNAL": name}, capture_output=True, check=False, timeout=300)
    assert runs(tracking) == {"signalled_job": ("KILLED", None), "signalled": ("KILLED", "signalled_job")}


@pytest.mark.slow
def test_what_a_killed_process_left_is_closed_by_the_command(
    instance: dg.DagsterInstance, tracking: Tracking, tmp_path: Path
):
    started = tmp_path / "started"
    command = [sys.executable, "-c", RUN, "patient_job"]
    process = subprocess.Popen(command, env={**os.environ, "STARTED": str(started)}, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not started.exists():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert runs(tracking) == {"patient_job": ("RUNNING", None), "patient": ("RUNNING", "patient_job")}
    assert _command() == ("", 0)  # Dagster still takes the run for running: nothing to say yet

    (dagster_run,) = instance.get_runs()
    instance.report_run_failed(dagster_run)
    printed, code = _command()
    found = tracking.client.search_runs([tracking.experiment("iris")])
    lines = [f"{run.info.run_id} {run.info.status} (Dagster run {dagster_run.run_id})" for run in found]
    assert (sorted(printed.splitlines()), code) == (sorted(lines), 0)
    assert runs(tracking) == {"patient_job": ("FAILED", None), "patient": ("KILLED", "patient_job")}
    assert _command() == ("", 0)


@pytest.mark.slow
def test_the_command_needs_an_instance(tracking: Tracking, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    assert _command() == ("", 0)
    with tracking.training_run(experiment="iris", name="fit", params={}, tags={}):
        done = subprocess.run(COMMAND, capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("", 1)
    assert done.stderr == "No Dagster instance: set DAGSTER_HOME to the folder that holds it.\n"


def test_ends_of_dagster_runs(instance: dg.DagsterInstance, tracking: Tracking):
    """A parent ends as its Dagster run did, a model that is still open was killed, and others' runs are not ours."""
    here = instance_id(instance)
    ended = {
        dg.DagsterRunStatus.SUCCESS: "FINISHED",
        dg.DagsterRunStatus.FAILURE: "FAILED",
        dg.DagsterRunStatus.CANCELED: "KILLED",
    }
    expected = set()
    with dg.DagsterInstance.ephemeral() as other:
        for status, end in ended.items():
            run_id = instance.add_run(dg.DagsterRun(job_name="j", status=status)).run_id
            expected.add(Closed(_open(tracking, keys.DAGSTER_PARENT, run_id, here), run_id, end))
            expected.add(Closed(_open(tracking, keys.DAGSTER_RUN, run_id, here), run_id, "KILLED"))
        for status in (dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING):
            run_id = instance.add_run(dg.DagsterRun(job_name="j", status=status)).run_id
            _open(tracking, keys.DAGSTER_RUN, run_id, here)
        expected.add(Closed(_open(tracking, keys.DAGSTER_PARENT, "deleted", here), "deleted", "KILLED"))
        _open(tracking, keys.DAGSTER_RUN, "theirs", instance_id(other))
    assert set(reconcile(tracking, instance)) == expected
    assert len(tracking.open_runs()) == 3
    for closed in expected:
        assert tracking.client.get_run(closed.run_id).info.status == closed.status


COMMAND = [sys.executable, "-m", "mlops_assets.resources.mlflow_status"]


def _command() -> tuple[str, int]:
    done = subprocess.run(COMMAND, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    return done.stdout, done.returncode


def _open(tracking: Tracking, key: str, dagster_run_id: str, instance: str) -> str:
    tags = {key: dagster_run_id, keys.DAGSTER_INSTANCE: instance}
    return tracking.client.create_run(tracking.experiment("iris"), tags=tags).info.run_id
