"""`start`: wall time and peak memory of fresh processes: loading the definitions, and the commands people wait for."""

from __future__ import annotations

import json
from typing import Final

from benchmarks.figures import Figure, Result
from benchmarks.many import pipelines

MEASURE: Final = """
import os, json, subprocess, sys, time
began = time.perf_counter()
process = subprocess.Popen([sys.executable, *sys.argv[1:]], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
assert status == 0, status
unit = 2**20 if sys.platform == "darwin" else 2**10
print(json.dumps([time.perf_counter() - began, usage.ru_maxrss / unit]))
"""
"""A parent of a few MiB, since a process inherits the peak of whoever started it until it replaces its program."""

SIDES: Final = {
    "import dagster": ["-c", "import dagster"],
    "import mlops_assets.definitions": ["-c", "import mlops_assets.definitions"],
    "dagster --version": ["-m", "dagster", "--version"],
    "mlops --help": ["-c", "from mlops_assets.cli import main; main()", "--help"],
    "mlops status, one pipeline": ["-c", "from mlops_assets.cli import main; main()", "status"],
}
AGAINST: Final = {
    "import mlops_assets.definitions": "import dagster",
    "mlops --help": "dagster --version",
    "mlops status, one pipeline": "dagster --version",
}


def measure(runs: int) -> Result:
    wall = {what: Figure(what) for what in SIDES}
    memory = {what: Figure(f"{what}: peak memory", "MiB") for what in SIDES}
    for figures in (wall, memory):
        for what, bare in AGAINST.items():
            figures[what].against = figures[bare]
    with pipelines(1) as project:
        for number in range(2 * runs + 1):  # the first one also compiles, and is dropped
            for what, arguments in SIDES.items():
                said = project.run("-c", MEASURE, *arguments)
                if number:
                    seconds, mebibytes = json.loads(said.splitlines()[-1])
                    wall[what].add(seconds)
                    memory[what].add(mebibytes)
    return Result([*wall.values(), *memory.values()])
