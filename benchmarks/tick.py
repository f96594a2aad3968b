"""`tick`: one evaluation of the sensor, warm, in a process that has the definitions loaded, as the code server has."""

from __future__ import annotations

import json

from benchmarks.figures import Figure, Result
from benchmarks.project import CHECKOUT, copied_project, iris_csv

PROBE = """
import json, os, sys, time
from pathlib import Path
import dagster as dg
sys.path.insert(0, {benchmarks!r})
from mlops_assets.definitions import defs
from mlops_assets.home import ensure_home, open_instance
import bare_dagster

here = ensure_home()
repository = here.repository("iris")
quiet, changed, bare = [], [], []
with open_instance(here) as instance:
    definitions = defs().get_repository_def()
    sensor = definitions.get_sensor_def("iris_rematerialize")
    watch = bare_dagster.defs.get_sensor_def("watch")

    def tick(cursor):
        with dg.build_sensor_context(
            instance=instance, cursor=cursor, repository_def=definitions,
            resources={{"oxen": definitions.get_top_level_resources()["oxen"]}},
        ) as context:
            began = time.perf_counter()
            result = sensor(context)
            return (time.perf_counter() - began) * 1e3, result

    def bare_tick(cursor):
        with dg.build_sensor_context(instance=instance, cursor=cursor) as context:
            began = time.perf_counter()
            result = watch(context)
            return (time.perf_counter() - began) * 1e3, result.cursor

    _, first = tick(None)
    assert not first.run_requests, first.skip_reason
    cursor, bare_cursor = first.cursor, None
    for _ in range(50):
        ms, result = tick(cursor)
        assert not result.run_requests
        quiet.append(ms)
        ms, bare_cursor = bare_tick(bare_cursor)
        bare.append(ms)
    for table in sorted(Path.cwd().glob("variant-*.csv")):
        assert repository.commit("a flower measured again", files={{"iris.csv": table.read_bytes()}})
        ms, result = tick(cursor)
        assert result.run_requests
        cursor = result.cursor
        changed.append(ms)
print(json.dumps([quiet, changed, bare[1:]]))
"""


def measure(runs: int) -> Result:
    bare = Figure("a bare sensor that hashes the file", "ms")
    quiet = Figure("tick, nothing changed", "ms", against=bare)
    changed = Figure("tick, another head in Oxen", "ms", against=bare)
    with copied_project() as project:
        table = project.folder / "iris.csv"
        table.write_text(iris_csv(0))
        project.mlops("data", "import", "iris", str(table), "--no-push")
        project.mlops("run", "iris")
        for variant in range(1, runs + 1):
            (project.folder / f"variant-{variant}.csv").write_text(iris_csv(variant))
        probe = PROBE.format(benchmarks=str(CHECKOUT / "benchmarks"))
        watched = project.folder / "probe.py"
        watched.write_text(f"import os\nos.environ['BARE_FILE'] = {str(table)!r}\n{probe}")
        said = json.loads(project.run(str(watched)).splitlines()[-1])
        for figure, values in zip((quiet, changed, bare), said, strict=True):
            for value in values:
                figure.add(value)
    return Result([bare, quiet, changed])
