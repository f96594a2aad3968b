"""`python -m benchmarks [NAME ...] [--runs N]`: measure, print, and write `benchmarks/results.json`."""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
from datetime import UTC, datetime
from importlib import import_module, metadata
from pathlib import Path
from types import FrameType
from typing import Any, Final

from rich.markup import escape

from benchmarks.figures import Result, console, show
from benchmarks.project import BenchmarkFailed

BENCHMARKS: Final = {
    "start": "start",
    "load": "load",
    "tick": "tick",
    "scale": "scale",
    "training": "training",
    "files": "files",
    "run-overhead": "overhead",
    "commit-to-features": "latency",
    "demo": "demo",
    "batch": "batch",
    "serving": "serving",
    "swaps": "swaps",
}
"""The module of each, imported when it is its turn: what one compares with need not be installed for the others."""
RESULTS: Final = Path(__file__).with_name("results.json")
PACKAGES: Final = ("dagster", "mlflow", "torch", "polars", "oxenai")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which of {', '.join(BENCHMARKS)}; default: all")
    parser.add_argument(
        "--runs", type=int, default=7, help="how often each is measured (default 7; the demo 3 at most)"
    )
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(BENCHMARKS)
    if unknown or arguments.runs < 1:
        parser.error(
            f"no benchmark {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}" if unknown else "--runs 1 or more"
        )
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, _interrupt)
    machine = _machine()
    console.print(f"{machine['cpus']} CPUs, load {machine['load']}, Python {machine['python']}, {machine['packages']}")
    results: dict[str, Result] = {}
    failed = False
    try:
        for name in arguments.names or BENCHMARKS:
            console.print(f"[bold]{name}[/bold] ...")
            try:
                results[name] = import_module(f"benchmarks.{BENCHMARKS[name]}").measure(arguments.runs)
            except (BenchmarkFailed, ImportError) as error:
                console.print(f"[red]{name} failed:[/red] {escape(str(error))}")
                failed = True
            else:
                show(name, results[name])
    except KeyboardInterrupt:
        console.print("interrupted; every process of the benchmark is stopped")
        return 130
    finally:
        if results:
            _write(machine, results)
    return int(failed)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)  # a second Ctrl-C must not cut the stopping short
    raise KeyboardInterrupt


def _machine() -> dict[str, Any]:
    return {
        "cpus": os.cpu_count(),
        "load": [round(value, 2) for value in os.getloadavg()],
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _write(machine: dict[str, Any], results: dict[str, Result]) -> None:
    """Put what was measured beside what earlier calls measured, each with the machine's state."""
    told = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    told.update({name: {"machine": machine, **result.to_dict()} for name, result in results.items()})
    aside = RESULTS.with_suffix(f".{os.getpid()}")
    aside.write_text(json.dumps(told, indent=2) + "\n")
    aside.replace(RESULTS)


if __name__ == "__main__":
    sys.exit(main())
