"""`commit-to-features`: from a commit's acknowledgement to the materialization of the features, run queue on.

By the sensor alone and by the push of `mlops data commit`, under `mlops up`; and a bare Dagster project of two trivial
assets in the same way, under the same `dagster.yaml`. All four take turns, so that whatever else the machine does meets
all of them. Each run begins at a random phase of the daemon's five seconds, between which sensors are not asked.
"""

from __future__ import annotations

import hashlib
import random
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

import dagster as dg
import httpx

from benchmarks import events
from benchmarks.figures import Breakdown, Figure, Result
from benchmarks.project import CHECKOUT, MLOPS, BenchmarkFailed, Project, copied_project, iris_csv, wait_for

LOOP_SECONDS: Final = 5.0
"""Dagster's daemon looks at its sensors once in this time, whatever interval they ask for."""

TARGETS: Final = {"sensor": 6.0, "push": 3.5}


@dataclass
class Side:
    """One of the two that are compared: a running Dagster, and how to change what it watches.

    Attributes:
        instance: Where its events are.
        key: The asset to wait for.
        sensor: Name of its sensor.
        act: By "sensor" and "push": changes the data to a variant; returns when the change was acknowledged.
        began: When the last change was asked for, in seconds since the epoch.
    """

    instance: dg.DagsterInstance
    key: dg.AssetKey
    sensor: str
    act: dict[str, Callable[[int], float]]
    began: float = 0.0
    phase: random.Random = field(default_factory=lambda: random.Random(0))


def measure(runs: int) -> Result:
    bare = {how: Figure(f"bare Dagster, by the {how}") for how in TARGETS}
    ours = {
        how: Figure(f"commit to features, by the {how}", against=bare[how], target=target, absolute=True)
        for how, target in TARGETS.items()
    }
    typed = Figure("from typing `mlops data commit` to features")
    with _platform() as platform, _bare() as trivial:
        sides = {"the platform": (platform, ours), "bare Dagster": (trivial, bare)}
        breakdowns = {
            (name, how): Breakdown(f"{name}, by the {how}: seconds until ...", "s") for name in sides for how in TARGETS
        }
        variant = 0
        for number in range(runs + 1):  # the first round warms up, and is dropped
            for how in TARGETS:
                variant += 1
                for name, (side, figures) in sides.items():
                    for each in (platform, trivial):
                        _finished(each.instance)  # the rest of one's run must not slow the other
                    seconds, parts, moment = _trial(side, how, variant)
                    if number:
                        figures[how].add(seconds)
                        breakdowns[name, how].add(parts)
                        if side is platform and how == "push":
                            typed.add(moment - side.began)
        for side, _ in sides.values():
            _finished(side.instance)
    return Result([*bare.values(), *ours.values(), typed], [*breakdowns.values()])


def _trial(side: Side, how: str, variant: int) -> tuple[float, dict[str, float], float]:
    """Change something at a random moment; returns seconds until the asset is there, their parts, and its moment."""
    time.sleep(1 + side.phase.uniform(0, LOOP_SECONDS))
    side.began = time.time()
    acknowledged = side.act[how](variant)
    wait_for(
        lambda: events.materialized(side.instance, side.key, acknowledged), f"new {side.key.to_user_string()} ({how})"
    )
    event = events.materialized(side.instance, side.key, acknowledged)
    assert event
    found = events.milestones(side.instance.all_logs(event.run_id), event.timestamp)
    if how == "sensor":
        tick = events.last_tick_before(side.instance, side.sensor, found["run queued"])
        if tick:
            found = {"the sensor's tick": max(tick, acknowledged), **found}
    return event.timestamp - acknowledged, events.phases(acknowledged, found), event.timestamp


def _finished(instance: dg.DagsterInstance) -> None:
    """Wait for the end of a run.

    Raises:
        BenchmarkFailed: It failed, or does not end.
    """
    wait_for(lambda: not events.active(instance), "the end of the run", poll=0.5)
    failed = instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE]), limit=1)
    if failed:
        raise BenchmarkFailed(f"run {failed[0].run_id} failed")


@contextmanager
def _platform() -> Iterator[Side]:
    """`mlops up` over a copy of the project, after its first run."""
    with copied_project() as project:
        table = project.folder / "iris.csv"
        table.write_text(iris_csv(0))
        project.mlops("data", "import", "iris", str(table), "--no-push")

        def by_sensor(variant: int) -> float:
            content = iris_csv(variant).encode()
            project.repository().commit("a flower measured again", files={"iris.csv": content})
            return time.time()

        def by_push(variant: int) -> float:
            table.write_text(iris_csv(variant))
            return _commit_and_push(project, str(table))

        urls = [f"{project.dagster_url}/server_info", f"{project.mlflow_url}/health"]
        with project.serving([*MLOPS, "up"], urls, "up"), project.instance() as instance:
            key = dg.AssetKey(["iris", "features"])
            wait_for(lambda: events.materialized(instance, key, 0), "the first run")
            yield Side(instance, key, "rematerialize", {"sensor": by_sensor, "push": by_push})


def _commit_and_push(project: Project, table: str) -> float:
    """Commit with the real command; returns when its word of the commit came.

    Raises:
        BenchmarkFailed: It started no run.
    """
    command = [*MLOPS, "data", "commit", "iris", table, "-m", "a flower measured again"]
    acknowledged = 0.0
    said = []
    with project.popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=1) as process:
        assert process.stdout
        for line in process.stdout:
            if line.startswith("committed"):
                acknowledged = time.time()
            said.append(line)
        process.wait()
    if not acknowledged or not any("started:" in line for line in said):
        raise BenchmarkFailed(f"mlops data commit pushed nothing: {''.join(said)}")
    return acknowledged


@contextmanager
def _bare() -> Iterator[Side]:
    """`dagster dev` over two trivial assets, after their first run."""
    from mlops_assets.home import DAGSTER_YAML

    with copied_project(copy=False) as empty:
        home, watched = empty.home / "dagster", empty.folder / "watched.txt"
        home.mkdir(parents=True)
        (home / "dagster.yaml").write_text(DAGSTER_YAML)
        (empty.folder / "bare_dagster.py").write_bytes((CHECKOUT / "benchmarks" / "bare_dagster.py").read_bytes())
        watched.write_text("0")
        variables = {"DAGSTER_HOME": str(home), "BARE_FILE": str(watched), "DAGSTER_DISABLE_TELEMETRY": "true"}
        project = Project(empty.folder, {**empty.environment, **variables, "PYTHONWARNINGS": "ignore"})
        with project.instance() as made:
            _ = made.run_storage, made.event_log_storage, made.schedule_storage  # before two processes do
        command = ["-m", "dagster", "dev", "-m", "bare_dagster", "-h", "127.0.0.1"]
        command += ["-p", project.environment["MLOPS_DAGSTER_PORT"]]
        command += ["--log-level", "warning", "--code-server-log-level", "warning"]

        def by_sensor(variant: int) -> float:
            watched.write_text(str(variant))
            return time.time()

        def by_push(variant: int) -> float:
            written = by_sensor(variant)
            _launch_bare(client, project, watched.read_bytes())
            return written

        with (
            project.serving(command, [f"{project.dagster_url}/server_info"], "dagster"),
            project.instance() as instance,
            httpx.Client(trust_env=False, timeout=30) as client,
        ):
            key = dg.AssetKey("features")
            wait_for(lambda: events.materialized(instance, key, 0), "the first bare run")
            yield Side(instance, key, "watch", {"sensor": by_sensor, "push": by_push})


def _launch_bare(client: httpx.Client, project: Project, content: bytes) -> None:
    from mlops_assets.push import LAUNCH

    # By key and name the daemon knows the sensor's own wish again, and asks for no second run.
    tags = {"dagster/run_key": hashlib.sha256(content).hexdigest(), "dagster/sensor_name": "watch"}
    selector = {"repositoryLocationName": "bare_dagster", "repositoryName": "__repository__", "jobName": "bare_job"}
    params = {
        "selector": selector,
        "runConfigData": {},
        "executionMetadata": {"tags": [{"key": name, "value": value} for name, value in tags.items()]},
    }
    answer = client.post(f"{project.dagster_url}/graphql", json={"query": LAUNCH, "variables": {"params": params}})
    if answer.json()["data"]["launchRun"]["__typename"] != "LaunchRunSuccess":
        raise BenchmarkFailed(f"Dagster did not launch the bare run: {answer.text}")
