import os
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException

from mlops_assets.registry.aliases import point, register
from mlops_assets.tracking.artifacts import resolve
from mlops_assets.tracking.runs import Tracking
from mlops_assets.tracking.store import artifact_directory
from mlops_assets_tests.mlflow_fixtures import close_stores


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("mlops-home:/", "."),
        ("mlops-home:/iris/abc/artifacts", "iris/abc/artifacts"),
        ("mlops-home:/iris/a%20b", "iris/a b"),
        ("mlops-home:/iris/..%252f..", "iris/..%2f.."),
    ],
)
def test_resolved_under_the_root(uri: str, path: str, tmp_path: Path):
    assert resolve(uri, tmp_path) == tmp_path / path


@pytest.mark.parametrize(
    "uri",
    [
        "mlops-home:/../secret",
        "mlops-home:/iris/../../secret",
        "mlops-home:/iris/%2e%2e/%2e%2e/secret",
        "mlops-home:/iris/..%2f..%2fsecret",
        "mlops-home:../secret",
        "mlops-home://host/iris",
        "mlops-home:/iris?x=../..",
        "mlops-home:/iris#../..",
        "mlops-home:/iris\\..\\..",
        "mlops-home:/iris%00",
        "mlops-home:/link/secret",
    ],
)
def test_nothing_outside_the_root_is_reached(uri: str, tmp_path: Path):
    root = tmp_path / "artifacts"
    root.mkdir()
    (root / "link").symlink_to(tmp_path)
    with pytest.raises(MlflowException, match="does not lie under"):
        resolve(uri, root)


def test_root_is_beside_the_database_or_under_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert artifact_directory(f"sqlite:///{tmp_path}/mlflow/mlflow.db") == tmp_path / "mlflow" / "artifacts"
    monkeypatch.setenv("MLOPS_HOME", str(tmp_path / "other"))
    for uri in (None, "http://127.0.0.1:5000", "sqlite:///relative.db", "sqlite:///:memory:"):
        assert artifact_directory(uri) == tmp_path / "other" / "mlflow" / "artifacts"
    monkeypatch.delenv("MLOPS_HOME")
    assert artifact_directory(None).parts[-3:] == (".mlops", "mlflow", "artifacts")


def test_run_artifacts_lie_under_the_experiment_s_name(tracking: Tracking, home: Path):
    with tracking.training_run(experiment="iris", name="fit", params={}, tags={}) as run:
        run.log_artifact("report/index.html", b"<html>")
    assert tracking.client.get_run(run.run_id).info.artifact_uri == f"mlops-home:/iris/{run.run_id}/artifacts"
    stored = home / "mlflow" / "artifacts" / "iris" / run.run_id / "artifacts" / "report" / "index.html"
    assert stored.read_bytes() == b"<html>"


LOAD = """
import sys, mlflow, numpy, torch
assert mlflow.artifacts.load_text(f"runs:/{sys.argv[1]}/report.txt") == "good"
model = mlflow.pytorch.load_model("models:/iris@champion")
for rows in (1, 2, 7):
    out = model(torch.ones(rows, 4)).detach()
    assert out.shape == (rows, 3)
served = mlflow.pyfunc.load_model("models:/iris/1").predict(numpy.ones((7, 4), numpy.float32))
assert numpy.allclose(served, out.numpy(), atol=1e-6)
print(sys.argv[1], out.flatten().tolist())
"""


@pytest.mark.slow
def test_everything_loads_after_the_home_has_moved(tracking: Tracking, home: Path, tmp_path: Path):
    """Model, run and registry, in a fresh process, and without pickle."""
    trained = _trained(tracking)
    close_stores()
    moved = home.rename(tmp_path / "a new home")
    variables = {
        "MLFLOW_TRACKING_URI": f"sqlite:///{moved}/mlflow/mlflow.db",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    }
    loaded = _python(LOAD, trained.split()[0], **variables)
    assert loaded == trained


def _trained(tracking: Tracking) -> str:
    """What `LOAD` must find: the run, and what the model answers."""
    import torch

    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(), torch.nn.Linear(8, 3))
    with tracking.training_run(experiment="iris", name="fit", params={"lr": 0.1}, tags={}) as run:
        run.log_artifact("report.txt", b"good")
        uri = run.log_torch_model(module, torch.zeros(4, 4))
    version = register(tracking, name="iris", model_uri=uri, tags={})
    point(tracking, "iris", "champion", version.number)
    return f"{run.run_id} {module.eval()(torch.ones(7, 4)).flatten().tolist()}\n"


def _python(code: str, argument: str, **variables: str) -> str:
    environment = {**os.environ, **variables}
    environment.pop("MLOPS_HOME", None)
    command = [sys.executable, "-c", code, argument]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout
