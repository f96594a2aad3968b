"""Dagster's own commands on a checkout, as CI and people use them."""

import os

import pytest

from mlops_assets.data import samples
from mlops_assets.pipeline import STAGES
from mlops_assets_tests.processes.project import Project, script

pytestmark = pytest.mark.slow


def test_the_commands_that_look_at_definitions(project: Project) -> None:
    done = project.call([script("dagster"), "definitions", "validate", "-w", "workspace.yaml"])
    assert done.returncode == 0, done.stderr
    assert "does not match" not in done.stdout + done.stderr
    done = project.call([script("dg"), "list", "defs"])
    assert done.returncode == 0, done.stderr
    for stage in STAGES:
        assert f"iris/{stage}" in done.stdout
    done = project.call([script("dg"), "check", "defs"])
    assert done.returncode == 0, done.stderr


def test_asset_materialize(project: Project) -> None:
    project.commit(samples.iris())
    command = [script("dagster"), "asset", "materialize", "-m", "mlops_assets.definitions", "--select", "group:iris"]
    without = project.call(command)
    assert without.returncode != 0
    assert "DAGSTER_HOME is not set" in without.stderr
    assert "Traceback" not in without.stderr
    assert not list(project.root.glob(".tmp_dagster_home*"))

    variables = dict(line.removeprefix("export ").split("=") for line in project.mlops("env").stdout.splitlines())
    assert variables["DAGSTER_HOME"] == os.environ["DAGSTER_HOME"]
    done = project.call(command, **variables)
    assert done.returncode == 0, done.stderr
    assert project.made() == dict.fromkeys(STAGES[:-1], 1)
    assert project.statuses() == ["SUCCESS"]
    assert project.mlflow_statuses() == [("parent", "FINISHED"), ("model", "FINISHED")]
