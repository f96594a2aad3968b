"""Whether the process of a run is alive: a file that it holds locked until it ends, however it ends.

The kernel drops a lock with its process, so nothing is left to clean up after `kill -9`, and a process id that is used
again cannot mislead. Where the lock files are not shared, nothing is known, and no run is called dead.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable
from pathlib import Path

_held: dict[str, int] = {}


def hold(home: Path, run_id: str) -> None:
    """Lock the run's file until this process ends; several processes may share a run."""
    if run_id in _held:
        return
    folder = home / "runs"
    folder.mkdir(parents=True, exist_ok=True)
    file = os.open(folder / run_id, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    fcntl.flock(file, fcntl.LOCK_SH)
    _held[run_id] = file


def dead(home: Path, run_ids: Iterable[str]) -> list[str]:
    """Those of the runs that some process held, and that none holds any more."""
    return [run_id for run_id in run_ids if _free(home / "runs" / run_id)]


def forget(home: Path, run_id: str) -> None:
    """Remove the file of a run that has ended."""
    (home / "runs" / run_id).unlink(missing_ok=True)


def _free(path: Path) -> bool:
    try:
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(file)
    return True
