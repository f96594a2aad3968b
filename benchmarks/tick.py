"""`tick`: deciding what is stale in 1, 10 and 100 pipelines, as the code server is asked to by Dagster's daemon.

Beside it bare Dagster in the same run: as many sensors, each of which hashes a small file.
"""

from __future__ import annotations

import json
from typing import Final

from benchmarks.figures import Figure, Result
from benchmarks.many import COUNTS, bare, pipelines
from benchmarks.project import iris_csv

ASK = """
import json, os, sys, time
from pathlib import Path
import dagster as dg
from dagster._core.remote_origin import RegisteredCodeLocationOrigin
from dagster._grpc.impl import get_external_sensor_execution

def ask(definitions, ref, sensor, cursor):
    # The entry by which the code server is asked, so that what Dagster does around a sensor is counted too.
    answer = get_external_sensor_execution(
        definitions, RegisteredCodeLocationOrigin("here"), ref, sensor, None, None, cursor, None, None
    )
    assert hasattr(answer, "cursor"), answer
    return answer
"""

OURS: Final = (
    ASK
    + """
from mlops_assets.definitions import defs
from mlops_assets.home import ensure_home, open_instance
from mlops_assets.pipeline import pipeline_folders

here = ensure_home()
folders = pipeline_folders()
definitions = defs().get_repository_def()
with open_instance(here) as instance:
    ref = instance.get_ref()
cursor = None

def tick(requests):
    global cursor
    began = time.perf_counter()
    answer = ask(definitions, ref, "rematerialize", cursor)
    seconds = time.perf_counter() - began
    assert len(answer.run_requests) == requests, answer
    cursor = answer.cursor
    return seconds

first = tick(0)
quiet = [tick(0) for _ in range(20)]
committed, edited = [], []
for number, table in enumerate(sorted(Path.cwd().glob("variant-*.csv"))):
    repository = here.repository(folders[number % len(folders)].name)
    before = repository.log("main", 1)[0]
    old = repository.materialize("iris.csv", before.id, here.home / "cache").read_bytes()
    assert repository.commit("a flower measured again", files={"iris.csv": table.read_bytes()})
    committed.append(tick(1))
    assert repository.commit("as it was", files={"iris.csv": old})
    tick(0)
    source = folders[number % len(folders)] / "model.py"
    text = source.read_text()
    source.write_text(text + "CHANGED = 1")
    edited.append(tick(1))
    source.write_text(text)
    tick(0)
print(json.dumps([[first], quiet, committed, edited]))
"""
)

BARE: Final = (
    ASK
    + """
import hashlib
from bare_many import FOLDER, NAMES, defs
definitions = defs.get_repository_def()
with dg.DagsterInstance.get() as instance:
    ref = instance.get_ref()
    for name in NAMES:
        digest = hashlib.sha256((FOLDER / name).read_bytes()).hexdigest()
        event = dg.AssetMaterialization(dg.AssetKey([name, "dataset"]), metadata={"digest": digest})
        instance.report_runless_asset_event(event)

def ticks(sensor, cursors):
    began = time.perf_counter()
    for name in NAMES:
        answer = ask(definitions, ref, f"{name}_{sensor}", cursors.get(name))
        cursors[name] = answer.cursor
    assert not answer.run_requests
    return time.perf_counter() - began

known = {}
ticks("watch", known)
print(json.dumps([[ticks("watch", known) for _ in range(20)], [ticks("level", {}) for _ in range(3)]]))
"""
)


def measure(runs: int) -> Result:
    figures = []
    for count in COUNTS:
        sensors = f"{count} bare sensors" if count > 1 else "1 bare sensor"
        each = f"{count} pipelines" if count > 1 else "1 pipeline"
        hashing = Figure(f"{sensors}: the hash of a file against the cursor")
        level = Figure(f"{sensors}: the same against the newest materialization")
        quiet = Figure(f"{each}: nothing changed", against=level, target=1, absolute=True)
        first = Figure(f"{each}: the first tick of a process")
        committed = Figure(f"{each}: a commit to one", target=1)
        edited = Figure(f"{each}: an edit of one's source", target=1)
        with pipelines(count) as project, bare(count) as trivial:
            for variant in range(1, runs + 1):
                (project.folder / f"variant-{variant:03d}.csv").write_text(iris_csv(variant))
            told = json.loads(project.run("-c", OURS).splitlines()[-1])
            told += json.loads(trivial.run("-c", BARE).splitlines()[-1])
        for figure, values in zip((first, quiet, committed, edited, hashing, level), told, strict=True):
            for value in values:
                figure.add(value)
        figures += [hashing, level, quiet, first, committed, edited]
    note = (
        "One pipeline was run for real; the others' events were written with its metadata. The waiting of a tick for "
        "new data is not counted: these ticks are a sensor's first, which decide and end."
    )
    return Result(figures, notes=[note])
