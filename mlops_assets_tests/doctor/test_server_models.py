"""The check of a real model server."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlops_assets.doctor import server_models
from mlops_assets.doctor.examination import Examination
from mlops_assets.services import Service, answers, started
from mlops_assets.serving.pointer import Pointer, write_pointer
from mlops_assets.settings import Settings
from mlops_assets_tests.processes.conftest import free_ports

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A model server for whose pipelines there is no champion yet."""
    folder = tmp_path_factory.mktemp("models")
    port, grpc = free_ports(2)
    service = Service(
        "the model server",
        [sys.executable, "-c", "from mlops_assets.cli import main; main()", "serve"],
        folder / "serve.log",
        ready=lambda: answers(f"http://127.0.0.1:{port}/v2/health/live"),
        environment={
            "MLOPS_HOME": str(folder / "home"),
            "MLOPS_SERVE_PORT": str(port),
            "MLOPS_GRPC_PORT": str(grpc),
            "PYTHONWARNINGS": "ignore",
        },
    )
    with started([service]):
        yield f"http://127.0.0.1:{port}"


def looking(url: str, home: Path) -> Examination:
    here = Settings(home=home)
    here.serve_at = url
    return Examination(here, deep=False)


def test_a_server_without_a_champion(url: str, tmp_path: Path) -> None:
    (found,) = server_models.model_server(looking(url, tmp_path))
    assert (found.result, "is not ready: no pipeline has a champion yet" in found.found) == ("warning", True)


def test_a_server_of_another_home_and_another_release(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pointer = Pointer(pipeline="iris", key="k", version=3, run_id="a-run", model_digest="digest", alias="champion")
    write_pointer(tmp_path, pointer)
    monkeypatch.setattr(server_models.metadata, "version", lambda name: "0.0.1")
    _, release, home = server_models.model_server(looking(url, tmp_path))
    assert (release.result, release.found.endswith("here is 0.0.1")) == ("warning", True)
    assert home.result == "problem"
    assert home.found == "iris is answered by nobody, while this home says version 3 of run a-run"
    assert "MLOPS_HOME" in home.fix
