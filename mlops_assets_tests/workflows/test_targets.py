"""What the workflows run, run here: a checkout with its Makefile and a home, from the first training to a promotion."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mlops_assets.data import samples
from mlops_assets.pipeline import STAGES
from mlops_assets.registry.ledger import Ledger
from mlops_assets.settings import PROJECT
from mlops_assets_tests.processes.project import Project

pytestmark = pytest.mark.slow


def make(project: Project, target: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    """Make a target in the checkout, with the environment that the tests run in."""
    shutil.copyfile(PROJECT / "Makefile", project.root / "Makefile")
    (project.root / "installed").touch()
    command = ["make", "--old-file=installed", "STAMP=installed", f"VENV={sys.prefix}", target]
    done = project.call(command, timeout=400, **variables)
    assert "Traceback" not in done.stderr
    return done


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file below a folder, with its size and when it was written."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


def test_validate(project: Project) -> None:
    done = make(project, "validate")
    assert done.returncode == 0, done.stderr
    project.edit("defs.yaml", "target: species", "tarjet: species")
    assert make(project, "validate").returncode != 0


def test_from_training_to_a_pull_requests_report(project: Project) -> None:
    project.commit(samples.iris())
    done = make(project, "ci-train")
    assert done.returncode == 0, done.stderr
    assert "trained: iris" in done.stdout
    assert set(STAGES[:-1]) <= set(project.made())

    # A pull request: other weights, told beside the champion, and nothing in the home is touched.
    project.edit("defs.yaml", "hidden: [32]", "hidden: [16]")
    before = tree(project.home)
    done = make(project, "ci-report", PIPELINE="iris")
    assert done.returncode == 0, done.stderr
    assert tree(project.home) == before
    told = (project.root / "build" / "reports" / "iris.md").read_text()
    assert re.match(r"## iris: (the gate would|the test rows cannot)", told)
    assert "champion, version 1" in told
    assert "| `n - o > -0.20` |" in told
    assert (project.root / "build" / "reports" / "iris.html").read_bytes().startswith(b"<!DOCTYPE html>")


def test_a_registered_version_is_judged_and_promoted(project: Project) -> None:
    project.commit(samples.iris())
    assert project.mlops("run", "iris", "--epochs", "25", timeout=400).returncode == 0  # a trial decides nothing
    done = make(project, "ci-promote", PIPELINE="iris", VERSION="1")
    assert done.returncode == 0, done.stderr
    assert "promoted version 1" in done.stdout
    assert kinds(project, "look") == [1]
    assert make(project, "ci-promote", PIPELINE="iris", VERSION="1; touch here").returncode != 0
    assert make(project, "ci-promote", PIPELINE="--help", VERSION="1").returncode != 0
    assert not (project.root / "here").exists()


def test_nothing_is_trained_that_is_not_stale_or_has_no_data(project: Project) -> None:
    done = make(project, "ci-train")
    assert done.returncode == 0, done.stderr
    assert "nothing is stale" in done.stdout
    assert "iris is left out" in done.stderr
    assert not project.runs()


def test_a_training_that_fails_fails_the_target(project: Project) -> None:
    project.commit(samples.iris().drop("petal_width"))
    done = make(project, "ci-train")
    assert done.returncode != 0
    assert "failed: iris" in done.stderr
    done = make(project, "ci-report", PIPELINE="iris")
    assert done.returncode != 0
    told = (project.root / "build" / "reports" / "iris.md").read_text()
    assert told.startswith("## iris: no model")
    assert "petal_width" in told


def test_only_a_name_is_deployed(tmp_path: Path) -> None:
    """The commands that would be run, by a program that only tells them."""
    tell = tmp_path / "compose"
    tell.write_text('#!/bin/sh\necho "compose $*"\n')
    tell.chmod(0o755)

    def deploy(pipeline: str, defs: str = "/srv/mlops/defs") -> "subprocess.CompletedProcess[str]":
        command = ["make", "--silent", "ci-deploy", f"SERVER={tell}"]
        environment = {**os.environ, "PIPELINE": pipeline, "MLOPS_DEFS": defs}
        return subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)

    done = deploy("iris")
    assert done.returncode == 0, done.stderr
    told = done.stdout.splitlines()
    assert told[:2] == ["compose pull", "compose up --detach --no-build --wait"]
    assert told[2].endswith("--select iris/deployment")
    assert deploy("").stdout.splitlines() == told[:2]
    for hostile in ("*", "iris; touch here", "$(touch here)", "../iris"):
        refused = deploy(hostile)
        assert refused.returncode != 0
        assert not refused.stdout
    assert "MLOPS_DEFS must be" in deploy("iris", defs="").stderr, "a runner's checkout is not production's"


def kinds(project: Project, kind: str) -> list[int]:
    return [one.number for one in Ledger(project.home / "ledger", "iris").records() if one.kind == kind]
