"""`mlops serve` as users have it: champions answer, moves are followed, and what dies leaves nothing behind."""

import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from mlops_assets_tests.processes.project import Project, is_answering, replace, script, send

pytestmark = pytest.mark.slow

ROW = {"sepal_length": 5.1, "sepal_width": 3.5, "petal_length": 1.4, "petal_width": 0.2}


def answer(project: Project) -> httpx.Response:
    return httpx.post(f"{project.serve_url}/models/iris/predict", json={"rows": [ROW]}, timeout=60, trust_env=False)


def workers(pid: int) -> list[psutil.Process]:
    found = []
    for one in psutil.Process(pid).children():
        with suppress(psutil.Error):  # one that was killed, and that its parent has not waited for yet
            found += [one] if "mlops_assets.serving.worker" in one.cmdline() else []
    return found


def test_a_champion_answers_and_its_moves_are_followed(trained: Project) -> None:
    project = trained
    for file, old, new in (
        ("cli/predict.py", "WAIT_SECONDS: Final = 20.0", "WAIT_SECONDS: Final = 180.0"),
        ("assets/deployment.py", "SERVER_SECONDS: Final = 10.0", "SERVER_SECONDS: Final = 180.0"),
        ("assets/deployment.py", "ANSWER_SECONDS: Final = 2.0", "ANSWER_SECONDS: Final = 60.0"),
    ):
        replace(project.root / "mlops_assets" / file, old, new)  # a busy machine makes nobody give up
    server = project.start(script("mlops"), "serve", "--workers", "2")
    done = project.mlops("predict", "iris", "--sample", "2")
    assert done.returncode == 0, done.stderr
    assert "iris, version 1" in done.stdout
    first = answer(project)
    assert (first.json()["model_version"], first.json()["predictions"][0]["label"]) == ("1", "setosa")

    again = project.mlops("serve", MLOPS_SERVE_PORT="1", MLOPS_GRPC_PORT="2")
    assert again.returncode == 1
    assert again.stderr.startswith("error: another model server runs with")

    project.edit("defs.yaml", "learning_rate: 0.01", "learning_rate: 0.02")
    done = project.mlops("run", "iris")
    assert done.returncode == 0, done.stderr
    assert "iris/deployment: version 2 answers at" in done.stdout + done.stderr, "it waits until one worker has it"
    project.wait_for(lambda: project.serves(2), "the version that was deployed")
    assert project.mlops("rollback", "iris", "--reason", "bad Tuesday").returncode == 0

    def before() -> dict[str, Any] | None:
        told: dict[str, Any] = answer(project).json()
        return told if told["model_version"] == "1" else None  # the workers follow one after the other

    assert project.wait_for(before, "the version before")["predictions"] == first.json()["predictions"]

    one, other = workers(server.pid)
    one.kill()
    project.wait_for(
        lambda: {each.pid for each in workers(server.pid)} - {one.pid, other.pid}, "another worker in its place"
    )
    assert answer(project).is_success
    assert "starting it again" in project.output.read_text()

    assert send(server, signal.SIGTERM) == 0
    assert not project.alive()
    logged = list((project.home / "predictions" / "iris").rglob("*.parquet"))
    assert logged, "the prediction log is written at the end"


def test_the_death_of_the_server_ends_its_workers(project: Project) -> None:
    server = project.start(script("mlops"), "serve")
    project.wait_for(lambda: is_answering(f"{project.serve_url}/v2/health/live"), "the model server")
    ready = httpx.get(f"{project.serve_url}/v2/health/ready", timeout=60, trust_env=False)
    assert ready.status_code == 503, "no pipeline has a champion"
    assert answer(project).status_code == 404
    send(server, signal.SIGKILL)
    project.wait_for(lambda: not project.alive(), "the end of all")


def test_files_that_arrive_are_scored(trained: Project, tmp_path: Path) -> None:
    project = trained
    table = tmp_path / "new.csv"
    table.write_text("id,sepal_length,sepal_width,petal_length,petal_width\n7,5.1,3.5,1.4,0.2\n8,6.9,3.1,5.4,2.1\n")
    assert project.mlops("data", "incoming", "iris", str(table)).returncode == 0
    select = ["--select", 'key:"iris/predictions"', "-m", "mlops_assets.definitions"]
    variables = {"DAGSTER_HOME": str(project.home / "dagster")}
    done = project.call([script("dagster"), "asset", "materialize", *select], **variables)
    assert done.returncode == 0, done.stderr
    head = project.repository.resolve("main")
    assert {one.path for one in project.repository.entries("predictions", head)} == {
        "predictions/manifest.json",
        "predictions/new.csv.parquet",
    }
