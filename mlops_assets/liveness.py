"""Whether the process of a run is alive: a file that it holds locked until it ends, however it ends.

The kernel drops a lock with its process, so `kill -9` leaves only a file that nobody holds, and a process id that is
used again cannot mislead. Where the files are not shared, nothing is known, and no run is called dead.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

_held: dict[Path, int] = {}


def hold(home: Path, run_id: str) -> None:
    """Lock the run's file until this process ends; several processes may share a run.

    Raises:
        OSError: The home cannot be written.
    """
    path = home / "runs" / run_id
    if path in _held:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        fcntl.flock(file, fcntl.LOCK_SH)
        if _is(file, path):
            break
        os.close(file)  # somebody removed it between the two calls
    os.utime(file)
    _held[path] = file


def is_known(home: Path, run_id: str) -> bool:
    """Whether some process has ever held the run, and it was not forgotten since."""
    return (home / "runs" / run_id).exists()


def released(home: Path) -> dict[str, float]:
    """The runs that some process held and that none holds now, with the time when one last took it.

    Returns:
        Seconds since the epoch by run id.
    """
    try:
        paths = list((home / "runs").iterdir())
    except FileNotFoundError:
        return {}
    taken = {path.name: _released(path) for path in paths}
    return {run_id: when for run_id, when in taken.items() if when is not None}


def forget(home: Path, run_id: str) -> None:
    """Remove the file of a run that has ended."""
    (home / "runs" / run_id).unlink(missing_ok=True)


def _released(path: Path) -> float | None:
    try:
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.fstat(file).st_mtime
    except BlockingIOError:
        return None
    finally:
        os.close(file)


def _is(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False
