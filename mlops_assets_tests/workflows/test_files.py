"""The workflow files themselves, by GitHub's schema, by a security linter, and by what this project promises."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from mlops_assets.settings import PROJECT
from mlops_assets_tests.processes.project import script

FOLDER = PROJECT / ".github" / "workflows"
FILES = sorted(FOLDER.glob("*.yml"))
WORKFLOWS = {path.stem: yaml.safe_load(path.read_text()) for path in FILES}


def jobs() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, workflow in WORKFLOWS.items():
        for job, told in workflow["jobs"].items():
            yield f"{name}/{job}", told


def steps() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, job in jobs():
        for step in job["steps"]:
            yield name, step


def call(*command: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=180, check=False)


def test_github_takes_them() -> None:
    command = ["check-jsonschema", "--builtin-schema", "vendor.github-workflows"]
    done = call(script(command[0]), *command[1:], *map(str, FILES))
    assert done.returncode == 0, done.stdout


def test_the_schema_would_notice(tmp_path: Path) -> None:
    broken = tmp_path / "broken.yml"
    broken.write_text((FOLDER / "ci.yml").read_text().replace("runs-on:", "runs_on:"))
    done = call(script("check-jsonschema"), "--builtin-schema", "vendor.github-workflows", str(broken))
    assert done.returncode == 1


def test_the_security_linter_finds_nothing() -> None:
    done = call(script("zizmor"), "--offline", "--no-progress", "--persona", "regular", str(FOLDER))
    assert done.returncode == 0, done.stdout


def test_the_security_linter_would_notice(tmp_path: Path) -> None:
    risky = (FOLDER / "promote.yml").read_text()
    risky = risky.replace("make ci-promote", "make ci-promote PIPELINE=${{ github.event.client_payload.pipeline }}")
    file = tmp_path / "risky.yml"
    file.write_text(risky)
    assert "template-injection" in call(script("zizmor"), "--offline", "--no-progress", str(file)).stdout


def test_actions_are_pinned_to_commits() -> None:
    used = [
        line.split("uses:")[1].strip() for path in FILES for line in path.read_text().splitlines() if "uses:" in line
    ]
    assert used
    for one in used:
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", one), one
    assert len(set(used)) == len({one.split("@")[0] for one in used}), "an action is used in two versions"


@pytest.mark.parametrize("name", WORKFLOWS)
def test_rights_are_given_job_by_job(name: str) -> None:
    assert WORKFLOWS[name]["permissions"] == {}
    assert WORKFLOWS[name]["concurrency"]["group"]
    for job, told in WORKFLOWS[name]["jobs"].items():
        assert told["timeout-minutes"], job
        assert "permissions" in told, job


def test_no_checkout_leaves_its_token_behind() -> None:
    found = [step for _, step in steps() if step.get("uses", "").startswith("actions/checkout@")]
    assert found
    assert all(step["with"]["persist-credentials"] is False for step in found)


def test_commands_are_free_of_expressions() -> None:
    assert not [name for name, step in steps() if "${{" in step.get("run", "")]


def test_what_a_pull_request_runs_can_write_nothing() -> None:
    """A fork's code runs there: no right but to read, no secret, and none of our machines."""
    for name, workflow in WORKFLOWS.items():
        if "pull_request" not in workflow[True]:  # YAML 1.1 reads `on` as true
            continue
        for job, told in workflow["jobs"].items():
            if told.get("if") == "github.event_name == 'push'":
                continue
            assert told["permissions"] == {"contents": "read"}, f"{name}/{job}"
            assert "self-hosted" not in told["runs-on"]
            assert "secrets." not in str(told)
            assert "github.token" not in str(told)
    runner = WORKFLOWS["report"]["jobs"]["report"]["runs-on"]
    assert runner.startswith("${{ fromJSON(github.event.pull_request.head.repo.full_name == github.repository && ")


def test_what_may_comment_runs_no_code_of_the_pull_request() -> None:
    (job,) = WORKFLOWS["comment"]["jobs"].values()
    (checkout,) = [step for step in job["steps"] if step.get("uses", "").startswith("actions/checkout@")]
    assert "ref" not in checkout["with"]
    assert [step["run"] for step in job["steps"] if "run" in step] == ["make ci-comment"]


def test_every_target_that_a_workflow_makes_is_there() -> None:
    targets = {
        word
        for _, step in steps()
        for command in re.findall(r"\bmake ([\w =-]+)", step.get("run", ""))
        for word in command.split()
        if "=" not in word
    }
    assert {"lint", "validate", "quick", "ci-train", "ci-promote", "ci-deploy", "ci-report", "ci-images"} <= targets
    for target in sorted(targets):
        done = call("make", "--dry-run", target)
        assert done.returncode == 0, f"make {target}: {done.stderr}"


def test_every_mlops_command_that_a_target_calls_is_there() -> None:
    from typer.main import get_command

    from mlops_assets.cli import app

    known = get_command(app).commands  # type: ignore[attr-defined]
    called = set(re.findall(r"\$\((?:BIN\)/|RUN\) )mlops (\w+)", (PROJECT / "Makefile").read_text()))
    assert {"stale", "judge", "trial", "env"} <= called
    assert called <= set(known)
