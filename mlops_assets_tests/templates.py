"""What takes long to make: made once in a test run, by whichever worker needs it first, and copied by each test."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that `make` has filled, the same one for all workers of this run; nobody writes into it afterwards."""
    run = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        run = run.parent  # each worker has a folder of its own in that of the run
    place, done = run / "templates" / name, run / "templates" / f"{name}.made"
    place.parent.mkdir(exist_ok=True)
    with FileLock(f"{place}.lock"):
        if not done.exists():
            shutil.rmtree(place, ignore_errors=True)  # what a worker left that failed at it
            place.mkdir()
            make(place)
            done.touch()
    return place
