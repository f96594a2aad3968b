"""`commit-to-features`: from a commit's acknowledgement to the materialization of the features, run queue on.

By the sensor alone and by the push of `mlops data commit`, in turns, under `mlops up`; then a bare Dagster project of
two trivial assets in the same way, under the same `dagster.yaml`. The runs begin at random phases of the daemon's five
seconds, between which sensors are not asked.
"""

from __future__ import annotations

import hashlib
import random
import subprocess
import time
from typing import TYPE_CHECKING, Final

import dagster as dg
import httpx

from benchmarks import events
from benchmarks.figures import Breakdown, Figure, Result
from benchmarks.project import CHECKOUT, MLOPS, BenchmarkFailed, Project, copied_project, iris_csv, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable

LOOP_SECONDS: Final = 5.0
"""Dagster's daemon looks at its sensors once in this time, whatever interval they ask for."""

PLATFORM_TARGETS: Final = {"sensor": 6.0, "push": 3.5}


def measure(runs: int) -> Result:
    bare = {how: Figure(f"bare Dagster, by the {how}") for how in PLATFORM_TARGETS}
    ours = {
        how: Figure(f"commit to features, by the {how}", against=bare[how], target=target, absolute=True)
        for how, target in PLATFORM_TARGETS.items()
    }
    typed = Figure("from typing `mlops data commit` to features")
    breakdowns = {
        (whose, how): Breakdown(f"{whose}, by the {how}: seconds until ...", "s")
        for whose in ("the platform", "bare Dagster")
        for how in PLATFORM_TARGETS
    }
    _measure_platform(runs, ours, typed, breakdowns)
    _measure_bare(runs, bare, breakdowns)
    return Result([*bare.values(), *ours.values(), typed], [*breakdowns.values()])


def _measure_platform(
    runs: int, figures: dict[str, Figure], typed: Figure, breakdowns: dict[tuple[str, str], Breakdown]
) -> None:
    with copied_project() as project:
        table = project.folder / "iris.csv"
        table.write_text(iris_csv(0))
        project.mlops("data", "import", "iris", str(table), "--no-push")
        urls = [f"{project.dagster_url}/server_info", f"{project.mlflow_url}/health"]
        with project.serving([*MLOPS, "up"], urls, "up"), project.instance() as instance:
            key, sensor = dg.AssetKey(["iris", "features"]), "iris_rematerialize"

            def by_sensor() -> float:
                project.repository().commit("a flower measured again", files={"iris.csv": table.read_bytes()})
                return time.time()

            def by_push() -> float:
                nonlocal began
                began = time.time()
                return _commit_and_push(project, str(table))

            began = 0.0
            wait_for(lambda: events.materialized(instance, key, 0), "the first run")
            variant = 0
            for number in range(runs + 1):  # the first ones warm up, and are dropped
                for how, act in (("sensor", by_sensor), ("push", by_push)):
                    variant += 1
                    table.write_text(iris_csv(variant))
                    seconds, parts, moment = _trial(instance, key, sensor, act, number)
                    if number:
                        figures[how].add(seconds)
                        breakdowns["the platform", how].add(parts)
                        if how == "push":
                            typed.add(moment - began)
            _finished(instance)


def _commit_and_push(project: Project, table: str) -> float:
    """Commit with the real command; returns when its word of the commit came."""
    command = [*MLOPS, "data", "commit", "iris", table, "-m", "a flower measured again"]
    acknowledged = 0.0
    with project.popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=1) as process:
        said = []
        for line in process.stdout:
            if line.startswith("committed"):
                acknowledged = time.time()
            said.append(line)
        process.wait()
    if not acknowledged or not any("started:" in line for line in said):
        raise BenchmarkFailed(f"mlops data commit pushed nothing: {''.join(said)}")
    return acknowledged


def _measure_bare(runs: int, figures: dict[str, Figure], breakdowns: dict[tuple[str, str], Breakdown]) -> None:
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
        port = project.environment["MLOPS_DAGSTER_PORT"]
        command = ["-m", "dagster", "dev", "-m", "bare_dagster", "-h", "127.0.0.1", "-p", port]
        command += ["--log-level", "warning", "--code-server-log-level", "warning"]
        urls = [f"{project.dagster_url}/server_info"]
        with (
            project.serving(command, urls, "dagster"),
            project.instance() as instance,
            httpx.Client(trust_env=False, timeout=30) as client,
        ):
            key = dg.AssetKey("features")
            variant = 0

            def by_sensor() -> float:
                watched.write_text(str(variant))
                return time.time()

            def by_push() -> float:
                written = by_sensor()
                _launch_bare(client, project, watched.read_bytes())
                return written

            wait_for(lambda: events.materialized(instance, key, 0), "the first run")
            for number in range(runs + 1):
                for how, act in (("sensor", by_sensor), ("push", by_push)):
                    variant += 1
                    seconds, parts, _ = _trial(instance, key, "watch", act, number)
                    if number:
                        figures[how].add(seconds)
                        breakdowns["bare Dagster", how].add(parts)
            _finished(instance)


def _launch_bare(client: httpx.Client, project: Project, content: bytes) -> None:
    from mlops_assets.push import LAUNCH

    # By key and name the daemon knows the sensor's own wish again, and asks for no second run.
    tags = {"dagster/run_key": hashlib.sha256(content).hexdigest(), "dagster/sensor_name": "watch"}
    selector = {
        "repositoryLocationName": "bare_dagster",
        "repositoryName": "__repository__",
        "jobName": "bare_job",
    }
    params = {
        "selector": selector,
        "runConfigData": {},
        "executionMetadata": {"tags": [{"key": name, "value": value} for name, value in tags.items()]},
    }
    answer = client.post(f"{project.dagster_url}/graphql", json={"query": LAUNCH, "variables": {"params": params}})
    if answer.json()["data"]["launchRun"]["__typename"] != "LaunchRunSuccess":
        raise BenchmarkFailed(f"Dagster did not launch the bare run: {answer.text}")


def _finished(instance: dg.DagsterInstance) -> None:
    """Wait for the end of a run.

    Raises:
        BenchmarkFailed: It failed, or does not end.
    """
    wait_for(lambda: not events.active(instance), "the end of the run", poll=0.5)
    failed = instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE]), limit=1)
    if failed:
        raise BenchmarkFailed(f"run {failed[0].run_id} failed")


def _trial(
    instance: dg.DagsterInstance, key: dg.AssetKey, sensor: str, act: Callable[[], float], seed: int
) -> tuple[float, dict[str, float], float]:
    """Change something at a random moment; returns the seconds until the asset is there, their parts, and when it was."""
    _finished(instance)
    time.sleep(1 + random.Random(f"{sensor} {seed}").uniform(0, LOOP_SECONDS))
    if events.active(instance):
        _finished(instance)
    began = act()
    wait_for(lambda: events.materialized(instance, key, began), f"a materialization of {key.to_user_string()}")
    event = events.materialized(instance, key, began)
    assert event
    found = events.milestones(instance.all_logs(event.run_id), event.timestamp)
    run = instance.get_run_by_id(event.run_id)
    tick = events.last_tick_before(instance, sensor, found["run queued"])
    if tick and tick > began and run and "mlops/launched_by" not in run.tags:
        found = dict(sorted({**found, "the sensor's tick": tick}.items(), key=lambda item: item[1]))
    return event.timestamp - began, events.phases(began, found), event.timestamp
