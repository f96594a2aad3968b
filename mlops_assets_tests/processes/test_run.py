"""`mlops run`: killed, interrupted, and twice at the same moment."""

import re
import signal

import pytest

from mlops_assets.data import samples
from mlops_assets_tests.processes.project import Project, script, send

pytestmark = pytest.mark.slow


def test_a_killed_run_is_closed_by_the_next_one(project: Project) -> None:
    project.commit(samples.iris())
    project.hold_trainings()
    first = project.start(script("mlops"), "run", "iris")
    project.wait_for(project.is_training, "the training to begin")

    second = project.mlops("run", "iris")
    assert second.returncode == 1
    assert second.stderr.strip() == "error: another `mlops run iris` is under way; wait for it, or stop it"

    send(first, signal.SIGKILL)
    assert project.statuses() == ["STARTED"], "nobody could tell"
    assert project.mlflow_statuses() == [("parent", "RUNNING"), ("model", "RUNNING")]
    project.release_trainings()
    again = project.mlops("run", "iris")
    assert again.returncode == 0, again.stderr + again.stdout
    assert "its process is gone" in again.stdout
    assert project.statuses() == ["FAILURE", "SUCCESS"]
    assert project.mlflow_statuses() == [
        ("parent", "FAILED"),
        ("model", "KILLED"),
        ("parent", "FINISHED"),
        ("model", "FINISHED"),
    ]
    assert project.made() == {"dataset": 1, "features": 1, "model": 1, "evaluation": 1, "champion": 1}
    project.wait_for(lambda: not project.alive(), "what the killed one had started to notice")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_says_so_in_one_sentence(project: Project, number: signal.Signals) -> None:
    project.edit("defs.yaml", "epochs: 20", "epochs: 1000000")
    project.edit("defs.yaml", "patience: 30", "patience: null")
    project.commit(samples.iris())
    run = project.start(script("mlops"), "run", "iris")
    project.wait_for(lambda: "epoch" in project.output.read_text(), "an epoch")
    code = send(run, number)
    printed = project.output.read_text()
    assert code == 130, printed
    assert "\nTraceback" not in printed.partition("Exception ignored")[0]
    assert re.search(r"error: run \w{8} of iris was interrupted; `mlops run iris` goes on where it stopped\n$", printed)
    assert project.statuses() == ["FAILURE"]
    assert project.mlflow_statuses() == [("parent", "KILLED"), ("model", "KILLED")]
    assert not project.alive()


def test_two_runs_at_the_same_moment_train_once(project: Project) -> None:
    project.commit(samples.iris())
    both = [project.start(script("mlops"), "run", "iris") for _ in range(2)]
    codes = [process.wait(300) for process in both]
    printed = project.output.read_text()
    assert "Traceback" not in printed
    assert sorted(codes) in ([0, 0], [0, 1]), printed
    if 1 in codes:
        assert "another `mlops run iris` is under way" in printed
    assert project.statuses() == ["SUCCESS"]
    assert project.mlflow_statuses() == [("parent", "FINISHED"), ("model", "FINISHED")]
    assert project.made() == {"dataset": 1, "features": 1, "model": 1, "evaluation": 1, "champion": 1}
