"""`load`: building the definitions against importing Dagster, each in a fresh process."""

from __future__ import annotations

import json

from benchmarks.figures import Figure, Result
from benchmarks.project import copied_project

HEAVY = ("torch", "mlflow", "pandera", "sklearn", "onnx", "onnxruntime", "onnxscript", "matplotlib", "scipy", "oxen")

PROBE = """
import sys, time
began = time.perf_counter()
{work}
seconds = time.perf_counter() - began
import json, psutil
heavy = [name for name in {heavy!r} if name in sys.modules]
print(json.dumps([seconds, psutil.Process().memory_info().rss / 2**20, len(sys.modules), heavy]))
"""
DAGSTER = "import dagster"
DEFINITIONS = "from mlops_assets.definitions import defs; defs().get_repository_def()"


def measure(runs: int) -> Result:
    bare = Figure("import dagster")
    ours = Figure("build the definitions", against=bare, target=2)
    bare_memory = Figure("memory after import dagster", "MiB")
    our_memory = Figure("memory with the definitions built", "MiB", against=bare_memory)
    heavy: set[str] = set()
    with copied_project() as project:
        for number in range(2 * runs + 1):  # the first one also compiles, and is dropped
            for work, seconds, memory in ((DAGSTER, bare, bare_memory), (DEFINITIONS, ours, our_memory)):
                said = json.loads(project.run("-c", PROBE.format(work=work, heavy=HEAVY)).splitlines()[-1])
                if number:
                    seconds.add(said[0])
                    memory.add(said[1])
                    heavy |= set(said[3])
    note = f"heavy modules loaded with the definitions: {', '.join(sorted(heavy)) or 'none'}"
    return Result([bare, ours, bare_memory, our_memory], notes=[note])
