"""`demo`: the wall time of `mlops demo` in a fresh home, its own word for the loop beside it."""

from __future__ import annotations

import re
import time
from typing import Final

from benchmarks.figures import Figure, Result
from benchmarks.project import BenchmarkFailed, copied_project

MOST_RUNS: Final = 3
LOOP: Final = re.compile(r"The loop took (\d+) s")


def measure(runs: int) -> Result:
    wall = Figure("mlops demo, from the command to the prompt", target=90)
    loop = Figure("the loop, as the demo tells it", target=90)
    for _ in range(min(runs, MOST_RUNS)):
        with copied_project() as project:
            began = time.monotonic()
            said = project.mlops("demo")
            wall.add(time.monotonic() - began)
            found = LOOP.search(said)
            if found is None:
                raise BenchmarkFailed(f"mlops demo did not tell how long it took:\n{said[-2000:]}")
            loop.add(float(found[1]))
    return Result([wall, loop])
