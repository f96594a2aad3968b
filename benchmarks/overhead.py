"""`run-overhead`: `mlops run iris` on new data against the same training in a bare script, each in a fresh process."""

from __future__ import annotations

import re
import subprocess
import time
from collections import Counter
from typing import Final

import dagster as dg

from benchmarks import events
from benchmarks.figures import Breakdown, Figure, Result
from benchmarks.project import CHECKOUT, MLOPS, BenchmarkFailed, Project, copied_project, iris_csv

STAGES: Final = ("dataset", "features", "model", "evaluation", "champion")
IMPORT_LINE: Final = re.compile(r"^import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)")
SHOWN_PACKAGES: Final = 14


def measure(runs: int) -> Result:
    bare = Figure("the training in a bare script")
    ours = Figure("mlops run iris", against=bare, compare="difference", target=10)
    nothing = Figure("mlops run iris with nothing stale")
    steps = Breakdown("mlops run iris: seconds of the process", "s")
    with copied_project() as project:
        table = project.folder / "iris.csv"
        project.mlops("data", "import", "iris")
        project.mlops("run", "iris")
        for variant in range(1, runs + 2):  # the first one warms up, and is dropped
            _commit(project, variant)
            began = time.time()
            project.mlops("run", "iris")
            ended = time.time()
            parts, facts = _steps(project, began, ended)
            table.write_text(iris_csv(variant))
            arguments = [facts["epochs"], facts["train"], facts["validation"]]
            started = time.time()
            project.run(
                str(CHECKOUT / "benchmarks" / "bare_training.py"),
                str(table),
                str(project.folder / "weights.pt"),
                *map(str, arguments),
            )
            bare_ended = time.time()
            project.mlops("run", "iris")
            if variant > 1:
                ours.add(ended - began)
                bare.add(bare_ended - started)
                nothing.add(time.time() - bare_ended)
                steps.add(parts)
        _commit(project, runs + 2)
        imports = _imports(project)
    return Result([bare, ours, nothing], [steps, imports])


def _commit(project: Project, variant: int) -> None:
    table = iris_csv(variant).encode()
    project.repository().commit("a flower measured again", files={"iris.csv": table})


def _steps(project: Project, began: float, ended: float) -> tuple[dict[str, float], dict[str, int]]:
    """The parts of the newest run, and what the bare script has to do alike."""
    with project.instance() as instance:
        event = events.materialized(instance, dg.AssetKey(["iris", "champion"]), began)
        if event is None:
            raise BenchmarkFailed("mlops run iris came to no decision")
        logged = instance.all_logs(event.run_id)
        entries = [(one.dagster_event, one.timestamp) for one in logged if one.dagster_event]
        made = {
            stage: _metadata(events.materialized(instance, dg.AssetKey(["iris", stage]), began))
            for stage in ("features", "model")
        }
    starts = {str(event.step_key): moment for event, moment in entries if event.is_step_start}
    ends = {str(event.step_key): moment for event, moment in entries if event.is_step_success}
    parts = {"until the first step (interpreter, imports, what is stale)": min(starts.values()) - began}
    parts.update({f"step {key}": ends[key] - starts[key] for key in sorted(starts, key=starts.__getitem__)})
    parts["between the steps"] = (
        max(ends.values()) - min(starts.values()) - sum(ends[key] - starts[key] for key in ends)
    )
    parts["after the last step"] = ended - max(ends.values())
    parts["of the model's step: the training itself"] = made["model"]["training seconds"]
    rows = made["features"]["rows per part"]
    return parts, {"epochs": made["model"]["epochs"], "train": rows["train"], "validation": rows["validation"]}


def _metadata(event: object) -> dict:  # type: ignore[type-arg]
    return {name: value.value for name, value in event.asset_materialization.metadata.items()}  # type: ignore[attr-defined]


def _imports(project: Project) -> Breakdown:
    """Seconds that the modules of each package take to import in such a run, without what they import in turn."""
    with project.popen(
        ["-X", "importtime", *MLOPS, "run", "iris"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        _, said = process.communicate()
    seconds: Counter[str] = Counter()
    for line in said.splitlines():
        found = IMPORT_LINE.match(line)
        if found:
            seconds[found[2].partition(".")[0]] += int(found[1])
    parts = {name: [value / 1e6] for name, value in seconds.most_common(SHOWN_PACKAGES)}
    parts["all others"] = [(seconds.total() - sum(value for _, value in seconds.most_common(SHOWN_PACKAGES))) / 1e6]
    parts["all imports"] = [seconds.total() / 1e6]
    return Breakdown("imports during mlops run iris, each package's own modules", "s", parts)
