"""Processes that die in the middle of a training: nothing stays open for ever, and the loop goes on to a champion."""

import signal

import pytest

from mlops_assets.data import samples
from mlops_assets_tests.processes.project import Project, send

pytestmark = pytest.mark.slow


def test_everything_killed_and_then_a_worker_killed(project: Project) -> None:
    project.commit(samples.iris())
    project.hold_trainings()
    project.up()
    project.wait_for(project.is_training, "the first training")
    project.kill()
    assert project.statuses() == ["STARTED"]
    assert project.mlflow_statuses() == [("parent", "RUNNING"), ("model", "RUNNING")]

    project.release_trainings()
    up = project.up()
    assert "closed Dagster run" in project.output.read_text()
    project.wait_for(lambda: version(project) == 1, "the champion")
    ended = [("parent", "FAILED"), ("model", "KILLED"), ("parent", "FINISHED"), ("model", "FINISHED")]
    project.wait_for(lambda: project.mlflow_statuses() == ended, "MLflow to know")
    # The sensor may ask, beside Dagster's retry, for what is stale now: that run does nothing.
    project.wait_for(lambda: set(project.statuses()[1:]) == {"SUCCESS"}, "the runs to end")
    assert project.statuses()[0] == "FAILURE"

    project.hold_trainings()
    project.commit(samples.iris_uci())
    project.wait_for(project.is_training, "the training on the other data")
    killed = project.training()
    project.holder(killed).kill()
    project.wait_for(lambda: project.status(killed) == "FAILURE", "Dagster to notice")
    project.wait_for(project.is_training, "the training of the retry")
    project.release_trainings()
    project.wait_for(lambda: version(project) == 2, "the new champion")
    project.wait_for(lambda: project.mlflow_statuses() == ended * 2, "MLflow to know")
    project.wait_for(lambda: any(run.parent_run_id == killed for run in project.runs()), "Dagster's retry")
    assert project.made()["model"] == 2

    project.hold_trainings()
    project.commit(samples.iris().head(140))
    project.wait_for(project.is_training, "the third training")
    last = project.training()
    assert send(up, signal.SIGTERM) == 0
    assert not project.alive()
    assert project.status(last) in {"FAILURE", "CANCELED"}
    assert project.mlflow_statuses() == ended * 2 + [("parent", project.mlflow_statuses()[-2][1]), ("model", "KILLED")]
    assert project.mlflow_statuses()[-2][1] in {"FAILED", "KILLED"}


def version(project: Project) -> int:
    facts = project.champion()
    return facts.version if facts else 0
