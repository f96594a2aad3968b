"""`scale`: what 1, 10 and 100 pipelines cost under the real daemon, beside bare Dagster projects of the same size.

Definitions and `mlops status` in fresh processes; then `dagster dev`: how much of a core it takes with nothing to do,
its memory, and how long after a change its run is there.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import dagster as dg
import psutil

from benchmarks import events
from benchmarks.figures import Breakdown, Figure, Result
from benchmarks.load import DEFINITIONS, PROBE
from benchmarks.many import COUNTS, bare, pipelines
from benchmarks.project import Project, iris_csv, wait_for

BARE_DEFINITIONS: Final = "from bare_many import defs; defs.get_repository_def()"

IDLE_SECONDS: Final = 60.0
SETTLE_SECONDS: Final = 15.0
"""Between the first tick of the last sensor and the measurement."""

LOOP_SECONDS: Final = 5.0
"""The daemon's own; each change comes at a random moment of it."""

PARTS: Final = {
    "dagster._daemon": "daemon",
    "dagster_webserver": "webserver",
    "api grpc": "code server",
    "code-server start": "code server's proxy",
}
"""What a process's command line has in it, and what it is."""


@dataclass
class Side:
    """One of the two that are compared.

    Attributes:
        project: Where it is.
        command: `dagster dev` over it.
        sensor: How its sensors' names end.
        names: What can be changed.
        change: Changes one to a variant.
        figures: Idle share of a core, memory, and seconds until a run is there.
    """

    project: Project
    command: list[str]
    sensor: str
    names: list[str]
    change: Callable[[str, int], None]
    figures: tuple[Figure, Figure, Figure]
    parts: Breakdown


def measure(runs: int) -> Result:
    figures, breakdowns, random_phase = [], [], random.Random(0)
    for count in COUNTS:
        ours, theirs = (f"{count} pipelines", f"{count} bare ones") if count > 1 else ("1 pipeline", "1 bare one")
        bare_load, load = Figure(f"{theirs}: definitions"), Figure(f"{ours}: definitions", target=5, absolute=True)
        load.against = bare_load
        status = Figure(f"{ours}: mlops status")
        bare_figures = tuple(Figure(f"{theirs}: {what}", unit) for what, unit in MEASURED.items())
        our_figures = tuple(
            Figure(f"{ours}: {what}", unit, against=one)
            for one, (what, unit) in zip(bare_figures, MEASURED.items(), strict=True)
        )
        parts = [Breakdown(f"{name}, idle: % of a core", "%") for name in (theirs, ours)]
        with pipelines(count) as project, bare(count) as trivial:
            for number in range(min(runs, 3) + 1):  # the first also compiles, and is dropped
                seconds = [_seconds(trivial, BARE_DEFINITIONS), _seconds(project, DEFINITIONS)]
                began = time.monotonic()
                project.mlops("status")
                seconds.append(time.monotonic() - began)
                for figure, value in zip((bare_load, load, status), seconds, strict=True):
                    if number:
                        figure.add(value)
            for side in (_bare_side(trivial, count, bare_figures, parts[0]), _side(project, our_figures, parts[1])):
                _measure_daemon(side, runs, random_phase)
        figures += [bare_load, load, status]
        figures += [figure for pair in zip(bare_figures, our_figures, strict=True) for figure in pair]
        breakdowns += parts
    note = "One pipeline was run for real; the others' events were written with its metadata."
    return Result(figures, breakdowns, [note])


MEASURED: Final = {
    "`dagster dev` with nothing to do": "% of a core",
    "its processes' memory": "MiB",
    "change to run requested": "s",
}


def _seconds(project: Project, work: str) -> float:
    said = project.run("-W", "ignore", "-c", PROBE.format(work=work, heavy=()))
    return float(json.loads(said.splitlines()[-1])[0])


def _dev(project: Project, *target: str) -> list[str]:
    command = ["-W", "ignore", "-m", "dagster", "dev", *target, "-h", "127.0.0.1"]
    command += ["-p", project.environment["MLOPS_DAGSTER_PORT"]]
    return [*command, "--log-level", "warning", "--code-server-log-level", "warning"]


def _side(project: Project, figures: tuple[Figure, ...], parts: Breakdown) -> Side:
    from mlops_assets.oxen.repository import Repository

    def change(name: str, variant: int) -> None:
        Repository(project.home / "oxen" / name).commit("again", files={"iris.csv": iris_csv(variant).encode()})

    names = sorted(folder.name for folder in (project.home / "oxen").iterdir() if folder.is_dir())
    variables = {"DAGSTER_HOME": str(project.home / "dagster"), "DAGSTER_DISABLE_TELEMETRY": "true"}
    serving = Project(project.folder, {**project.environment, **variables})
    return Side(serving, _dev(serving, "-w", "workspace.yaml"), "rematerialize", names, change, figures, parts)


def _bare_side(project: Project, count: int, figures: tuple[Figure, ...], parts: Breakdown) -> Side:
    folder = Path(project.environment["BARE_FOLDER"])

    def change(name: str, variant: int) -> None:
        (folder / name).write_text(str(variant))

    names = [f"bare_{number:03d}" for number in range(count)]
    return Side(project, _dev(project, "-m", "bare_many"), "_watch", names, change, figures, parts)


def _measure_daemon(side: Side, runs: int, phase: random.Random) -> None:
    urls = [f"{side.project.dagster_url}/server_info"]
    began = time.time()
    with side.project.serving(side.command, urls, "dagster"), side.project.instance() as instance:
        sensors = 1 if side.sensor == "rematerialize" else len(side.names)
        wait_for(lambda: _ticked(instance, side.sensor, began) == sensors, "a first tick of every sensor", 300)
        time.sleep(SETTLE_SECONDS)
        cpu, memory, latency = side.figures
        shares, resident = _idle()
        side.parts.add(shares)
        cpu.add(sum(shares.values()))
        memory.add(resident)
        for variant in range(1, runs + 1):
            time.sleep(1 + phase.uniform(0, LOOP_SECONDS))
            before = instance.get_runs_count()
            side.change(phase.choice(side.names), variant)
            changed = time.time()
            wait_for(lambda known=before: instance.get_runs_count() > known, "the run", poll=0.1)
            (record,) = instance.get_run_records(limit=1)
            latency.add(record.create_timestamp.timestamp() - changed)
            wait_for(lambda: not events.active(instance), "the end of the run", poll=0.5)


def _ticked(instance: dg.DagsterInstance, sensor: str, began: float) -> int:
    """How many sensors have had a tick since."""
    states = [state for state in instance.all_instigator_state() if state.name.endswith(sensor)]
    return sum((getattr(state.instigator_data, "last_tick_timestamp", 0) or 0) > began for state in states)


def _idle() -> tuple[dict[str, float], float]:
    """Per part of what this process serves, the share of a core that it takes; and the MiB of all."""
    family = psutil.Process().children(recursive=True)
    before = {process: _cpu_seconds(process) for process in family}
    began = time.monotonic()
    time.sleep(IDLE_SECONDS)
    passed = time.monotonic() - began
    shares: dict[str, float] = dict.fromkeys([*PARTS.values(), "others"], 0.0)
    memory = 0.0
    for process, seconds in before.items():
        line = " ".join(process.cmdline())
        part = next((name for text, name in PARTS.items() if text in line), "others")
        shares[part] += 100 * (_cpu_seconds(process) - seconds) / passed
        memory += process.memory_info().rss / 2**20
    return shares, memory


def _cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)
