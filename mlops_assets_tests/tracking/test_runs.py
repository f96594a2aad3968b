import math
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mlops_assets.tracking import tags as keys
from mlops_assets.tracking.runs import OpenRun, Tracking
from mlops_assets.tracking.store import TrackingError


class Interrupted(BaseException):
    """As Dagster's interruption: no Exception."""


def start(tracking: Tracking, **given):
    return tracking.training_run(**{"experiment": "iris", "name": "fit", "params": {}, "tags": {}, **given})


def status(tracking: Tracking, run_id: str) -> str:
    return tracking.client.get_run(run_id).info.status


def test_status_tells_the_truth(tracking: Tracking):
    ends = {ValueError: "FAILED", KeyboardInterrupt: "KILLED", SystemExit: "KILLED", Interrupted: "KILLED"}
    for raised, expected in ends.items():
        with pytest.raises(raised), start(tracking) as run:  # noqa: PT012  the block is what is tested
            assert status(tracking, run.run_id) == "RUNNING"
            raise raised
        assert status(tracking, run.run_id) == expected
    with start(tracking) as run:
        pass
    assert status(tracking, run.run_id) == "FINISHED"


def test_params_tags_and_parent(tracking: Tracking):
    params = {f"p{number}": number for number in range(250)}
    with (
        start(tracking) as parent,
        start(tracking, params=params, tags={keys.RECIPE: "r"}, parent_run_id=parent.run_id) as run,
    ):
        pass
    data = tracking.client.get_run(run.run_id).data
    assert data.params == {key: str(value) for key, value in params.items()}
    assert data.tags[keys.RECIPE] == "r"
    assert data.tags["mlflow.parentRunId"] == parent.run_id
    assert tracking.run_url(run.run_id, "http://h/mlflow/") == f"http://h/mlflow/#/experiments/1/runs/{run.run_id}"


def test_no_process_wide_state_is_left_or_used(tracking: Tracking):
    import mlflow

    with start(tracking) as run:
        run.log_history([(0, {"loss": 1.0})])
        assert mlflow.active_run() is None
    assert not mlflow.tracking.is_tracking_uri_set()
    assert not {"MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_ID", "MLFLOW_RUN_ID"} & set(os.environ)


def test_history_of_thousands_of_metrics(tracking: Tracking):
    history = [(step, {"loss": 1 / (step + 1), "accuracy": step / 1000}) for step in range(1234)]
    with start(tracking) as run:
        run.log_history([])
        run.log_history(history)
        run.log_history([(0, {"diverged": math.nan})])
    logged = tracking.client.get_metric_history(run.run_id, "loss")
    assert [(metric.step, metric.value) for metric in logged] == [(step, values["loss"]) for step, values in history]
    assert tracking.client.get_run(run.run_id).data.metrics["accuracy"] == 1.233


def test_dataset_carries_commit_and_whole_digest(tracking: Tracking):
    digest = "ab" * 32
    with start(tracking) as run:
        run.log_dataset(name="iris", repository="/data/iris", path="iris.csv", commit="c0ffee", digest=digest)
    (found,) = tracking.client.get_run(run.run_id).inputs.dataset_inputs
    assert (found.dataset.name, found.dataset.digest) == ("iris", digest[:36])
    assert "c0ffee" in found.dataset.source
    tags = {tag.key: tag.value for tag in found.tags}
    assert tags == {"mlflow.data.context": "training", keys.OXEN_COMMIT: "c0ffee", keys.DATA_DIGEST: digest}


def test_artifacts_from_bytes_files_and_folders(tracking: Tracking, tmp_path: Path):
    folder = tmp_path / "plots"
    folder.mkdir()
    (folder / "a.svg").write_text("<svg/>")
    with start(tracking) as run:
        run.log_artifact("report.txt", b"bytes")
        run.log_artifact("deep/down/b.svg", folder / "a.svg")
        run.log_artifact("deep/a.svg", folder / "a.svg")
        run.log_artifacts(folder, "plots")
    names = [
        file.path
        for part in (None, "deep", "deep/down", "plots")
        for file in tracking.client.list_artifacts(run.run_id, part)
        if not file.is_dir
    ]
    assert names == ["report.txt", "deep/a.svg", "deep/down/b.svg", "plots/a.svg"]


def test_evaluation_reopens_without_touching_the_status(tracking: Tracking):
    with pytest.raises(ValueError, match="boom"), start(tracking) as run:  # noqa: PT012
        run.log_history([(step, {"accuracy": 0.5}) for step in range(9)])
        raise ValueError("boom")
    before = tracking.client.get_run(run.run_id).info
    for value in (0.9, 0.8):
        tracking.log_evaluation(
            run.run_id,
            metrics={"test.accuracy": value},
            tags={"mlops.verdict": str(value)},
            artifacts={"evaluation/report.json": str(value).encode()},
        )
    after = tracking.client.get_run(run.run_id)
    assert (after.info.status, after.info.end_time) == ("FAILED", before.end_time)
    assert after.data.metrics == {"accuracy": 0.5, "test.accuracy": 0.8}
    assert after.data.tags["mlops.verdict"] == "0.8"
    assert tracking.client.list_artifacts(run.run_id, "evaluation")[0].file_size == 3


def test_evaluation_of_a_run_that_is_not_there(tracking: Tracking):
    with start(tracking) as run:
        pass
    tracking.client.delete_run(run.run_id)
    with pytest.raises(TrackingError, match="was deleted: restore it"):
        tracking.log_evaluation(run.run_id, metrics={}, tags={}, artifacts={})
    with pytest.raises(TrackingError, match="not found"):
        tracking.log_evaluation("f" * 32, metrics={}, tags={}, artifacts={})


def test_experiment_is_created_once_by_many(tracking: Tracking):
    gate, found = threading.Barrier(8), []

    def ask() -> None:
        gate.wait()
        found.append(tracking.experiment("iris"))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["1"] * 8


def test_experiments_that_cannot_be(tracking: Tracking):
    for name in ("", "../up", "a/b", "a b", "ü"):
        with pytest.raises(TrackingError, match="cannot name an MLflow experiment"):
            tracking.experiment(name)
    tracking.client.delete_experiment(tracking.experiment("gone"))
    with pytest.raises(TrackingError, match="'gone' was deleted: restore it"):
        tracking.experiment("gone")


def test_open_runs_of_dagster(tracking: Tracking):
    with (
        start(tracking),
        start(tracking, experiment="a", tags={keys.DAGSTER_RUN: "d1", keys.DAGSTER_INSTANCE: "here"}) as model,
        start(tracking, experiment="b", tags={keys.DAGSTER_PARENT: "d2"}) as parent,
    ):
        assert {run.run_id: run for run in tracking.open_runs()} == {
            model.run_id: OpenRun(model.run_id, "d1", parent=False, dagster_instance="here"),
            parent.run_id: OpenRun(parent.run_id, "d2", parent=True, dagster_instance=""),
        }
    assert tracking.open_runs() == []


@pytest.mark.parametrize("silent", [False, True], ids=["nothing listens", "listens and says nothing"])
def test_unreachable_server_is_one_quick_sentence_without_credentials(silent: bool, monkeypatch: pytest.MonkeyPatch):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if silent:
            listener.listen()
            monkeypatch.setattr("mlops_assets.tracking.runs.ANSWER_SECONDS", 0.5)
        host = f"127.0.0.1:{listener.getsockname()[1]}"
        tracking = Tracking(f"http://me:secret@{host}/mlflow")
        began = time.monotonic()
        with pytest.raises(
            TrackingError, match=f"No MLflow server answers at http://{host}/mlflow .*start it"
        ) as caught:
            tracking.open_runs()
    assert time.monotonic() - began < 60, "MLflow's client would try again for minutes"
    assert "secret" not in str(caught.value)


def test_refusals_name_the_store_without_credentials():
    assert Tracking("postgresql://me:secret@db/mlflow").public_uri == "postgresql://db/mlflow"
    assert Tracking("sqlite:////a/mlflow.db").public_uri == "sqlite:////a/mlflow.db"


def test_sample_of_one_row_is_refused(tracking: Tracking):
    import torch

    with (
        pytest.raises(TrackingError, match="at least two rows"),
        start(tracking) as run,
    ):
        run.log_torch_model(torch.nn.Linear(4, 3), torch.zeros(1, 4))
    assert status(tracking, run.run_id) == "FAILED"


@pytest.mark.slow
def test_torch_model_is_logged_with_the_run(home: Path, tracking: Tracking):
    import torch

    class Odd(torch.nn.Module):
        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            return rows.tolist()

    module = torch.nn.Sequential(
        torch.nn.Conv2d(1, 2, 3), torch.nn.Dropout(), torch.nn.Flatten(), torch.nn.Linear(72, 10)
    )
    with start(tracking) as run:
        uri = run.log_torch_model(
            module, torch.zeros(3, 1, 8, 8).numpy(), params={"width": 2}, tags={keys.MODEL_DIGEST: "d"}
        )
        with pytest.raises(TrackingError, match=r"'odd' cannot be exported .*torch\.export can trace"):
            run.log_torch_model(Odd(), torch.zeros(3, 2), name="odd")
    tracking.log_evaluation(run.run_id, metrics={"test.accuracy": 0.9}, tags={}, artifacts={})
    assert module.training
    found = tracking.client.search_logged_models([run.experiment_id])
    broken, model = sorted(found, key=lambda model: model.status.value)
    assert (model.status.value, broken.status.value) == ("READY", "FAILED")
    assert (model.model_uri, model.source_run_id, model.params) == (uri, run.run_id, {"width": "2"})
    files = {file.path: file for file in tracking.client.list_logged_model_artifacts(model.model_id)}
    assert {"MLmodel", "requirements.txt", "input_example.json", "data"} <= set(files)
    (requirements,) = home.rglob(f"{model.model_id}/artifacts/requirements.txt")
    assert f"torch=={torch.__version__.partition('+')[0]}" in requirements.read_text().split()
    assert [(metric.key, metric.value) for metric in model.metrics] == [("test.accuracy", 0.9)]


KILLED = """
import os, pathlib, signal, sys
from mlops_assets.tracking.runs import Tracking
tracking = Tracking.embedded(pathlib.Path(sys.argv[1]))
with tracking.training_run(experiment="iris", name="fit", params={}, tags={"mlops.dagster_run_id": "d"}) as run:
    END
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("end", "expected"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "RUNNING"),
        ("os.kill(os.getpid(), signal.SIGINT)", "KILLED"),
        ("sys.exit(0)", "KILLED"),
        ("raise ValueError", "FAILED"),
    ],
)
def test_ends_of_a_process(home: Path, tracking: Tracking, end: str, expected: str):
    subprocess.run([sys.executable, "-c", KILLED.replace("END", end), str(home)], capture_output=True, check=False)
    (run,) = tracking.client.search_runs([tracking.experiment("iris")])
    assert run.info.status == expected
    if expected == "RUNNING":
        assert [found.run_id for found in tracking.open_runs()] == [run.info.run_id]
        tracking.close(run.info.run_id, "KILLED")
        assert tracking.open_runs() == []
