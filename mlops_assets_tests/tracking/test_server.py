"""One real, lean `mlflow server` over the embedded store, as the UI is served and as other machines log."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from mlops_assets.registry.aliases import current, find, point, register
from mlops_assets.tracking import tags as keys
from mlops_assets.tracking.runs import Tracking
from mlops_assets.tracking.store import TrackingError
from mlops_assets_tests.mlflow_fixtures import mlflow_server

pytestmark = pytest.mark.slow


@pytest.fixture
def server(home: Path) -> Iterator[str]:
    with mlflow_server(home) as (url, _):
        yield url


def get(url: str, **params: str) -> httpx.Response:
    return httpx.get(url, params=params, timeout=120)


def _train(tracking: Tracking) -> tuple[str, str]:
    import torch

    with tracking.training_run(experiment=f"iris-{tracking.uri[:4]}", name="fit", params={"lr": 1}, tags={}) as run:
        run.log_history([(step, {"loss": 1.0}) for step in range(2500)])
        run.log_artifact("report/index.html", b"<html>")
        run.log_dataset(name="iris", repository="r", path="p", commit="c", digest="d")
        uri = run.log_torch_model(torch.nn.Linear(4, 3), torch.zeros(2, 4))
    return run.run_id, uri


def test_server_shows_what_is_embedded_and_takes_more(
    server: str, tracking: Tracking, home: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MLOPS_HOME", str(home))  # a client of the server reads the home's artifacts by itself
    run_id, uri = _train(tracking)
    register(tracking, name="iris", model_uri=uri, tags={})

    answer = get(f"{server}/get-artifact", path="report/index.html", run_uuid=run_id)
    assert answer.content == b"<html>"
    answer = get(f"{server}/model-versions/get-artifact", path="MLmodel", name="iris", version="1")
    assert b"pytorch" in answer.content
    address = f"{server}/ajax-api/2.0/mlflow/logged-models/{uri.removeprefix('models:/')}/artifacts/files"
    assert get(address, artifact_file_path="MLmodel").content == answer.content
    for path in ("../../../mlflow.db", "..%2f..%2f..%2fmlflow.db"):
        assert get(f"{server}/get-artifact", path=path, run_uuid=run_id).status_code == 400

    monkeypatch.setattr("mlops_assets.tracking.runs.ANSWER_SECONDS", 120.0)
    remote = Tracking(server)
    assert remote.experiment("iris-sqli") == tracking.experiment("iris-sqli")
    assert [file.path for file in remote.client.list_artifacts(run_id)] == ["report"]
    for location in ("mlops-home:/../..", "mlops-home:/%2e%2e/%2e%2e"):
        with pytest.raises(TrackingError), remote.one_sentence():  # noqa: PT012  either may be what refuses
            stray = remote.client.create_run(remote.client.create_experiment(f"stray{len(location)}", location))
            remote.client.log_artifact(stray.info.run_id, __file__)

    other_id, other_uri = _train(remote)
    assert current(remote, "iris", "champion") is None
    assert current(remote, "nobody", "champion") is None
    assert remote.client.get_run(other_id).info.artifact_uri.startswith("mlflow-artifacts:/")
    assert list((home / "mlflow" / "served").rglob("model.pt2"))
    version = register(remote, name="iris", model_uri=other_uri, tags={keys.RECIPE: "r"})
    assert (version.number, version.run_id) == (2, other_id)
    assert find(remote, "iris", "r") == version
    point(remote, "iris", "champion", 2)
    assert current(remote, "iris", "champion") == version
    remote.log_evaluation(run_id, metrics={"test.accuracy": 1.0}, tags={}, artifacts={"evaluation.json": b"{}"})
    assert tracking.client.get_run(run_id).data.metrics["test.accuracy"] == 1.0
    assert tracking.client.get_run(other_id).info.status == "FINISHED"
    with pytest.raises(TrackingError, match="version=9"):
        point(remote, "iris", "champion", 9)
