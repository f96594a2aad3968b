"""Checks of what runs, or should: ports, locks and who holds them, runs whose process is gone."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psutil

from mlops_assets.doctor.examination import Examination, Finding
from mlops_assets.doctor.models import open_runs

if TYPE_CHECKING:
    import dagster as dg

_LOCKS: Final = Path("/proc/locks")
"""Linux alone tells who holds a lock; elsewhere locks are not looked at, since trying one gets in others' way."""

STARTING_SECONDS: Final = 180.0
"""How long a run may take until its process holds it, as `dagster.yaml` has it, too."""


CLOSER: Final = "the sensor `run_status` closes it while `mlops up`, or a server's daemon and code server, run"


def ports(look: Examination) -> Iterator[Finding]:
    """Whether the servers of `mlops up` have their ports, or could have them."""
    from mlops_assets.services import ServiceError, require_free_port

    here = look.here
    locked = [here.home / name for name in ("up.lock", "serve.lock")]
    ours = set(holders(locked).values())
    served = [
        ("Dagster's port", here.dagster_port, "MLOPS_DAGSTER_PORT"),
        ("the model server's port", here.serve_port, "MLOPS_SERVE_PORT"),
        ("the model server's gRPC port", here.grpc_port, "MLOPS_GRPC_PORT"),
    ]
    if not here.mlflow_tracking_uri:
        served.append(("MLflow's port", here.mlflow_port, "MLOPS_MLFLOW_PORT"))
    for check, port, variable in served:
        try:
            require_free_port(here.host, port, variable)
        except ServiceError as error:
            process = _listener(port)
            if process and (own := ours & {process.pid, *(parent.pid for parent in process.parents())}):
                yield Finding(check, "ok", f"{port}: taken by this platform (process {min(own)})")
                continue
            who = f"{port} is taken by {_named(process.pid)}" if process else str(error).partition(";")[0]
            yield Finding(check, "warning", who, f"stop it, or set {variable}, before `mlops up`")
        else:
            yield Finding(check, "ok", f"{port} is free")


def locks(look: Examination) -> Iterator[Finding]:
    """Who holds a lock; a file that nobody holds stops nobody, and a process that stands still stops others."""
    home = look.here.home
    patterns = ("*.lock", "locks/*", "dagster/.*.lock", "mlflow/*.lock", "oxen/*/.oxen/mlops/lock", "store/**/.lock")
    files = [path for pattern in patterns for path in home.glob(pattern)]
    held = holders(files)
    still = [(path, pid) for path, pid in held.items() if stands_still(pid)]
    for path, pid in still:
        found = f"{path} is held by {_named(pid)}, which is stopped"
        yield Finding("locks", "warning", found, f"`kill -CONT {pid}` lets it go on, `kill -9 {pid}` ends it")
    if not still:
        by = "; ".join(f"{path.relative_to(home)} by {_named(pid)}" for path, pid in held.items())
        told = f"{len(held)} of {len(files)} are held" + (f": {by}" if by else "")
        yield Finding("locks", "ok", told if _LOCKS.exists() else "this system does not tell who holds them")


def runs(look: Examination) -> Iterator[Finding]:
    """Runs that Dagster shows as under way and whose process is gone, and those that wait for nobody."""
    from mlops_assets import liveness
    from mlops_assets.provenance import IN_PROGRESS

    instance = look.instance
    if instance is None:
        yield Finding("runs", "ok", "none yet")
        return
    import dagster as dg

    home, odd = look.here.home, 0
    records = instance.get_run_records(dg.RunsFilter(statuses=IN_PROGRESS))
    gone = liveness.released(home)
    is_up = bool(look.here.dagster_at or holders([home / "up.lock"]))  # daemons elsewhere have a check of their own
    for record in records:
        run = record.dagster_run
        name = _pipeline(run)
        what = f"run {run.run_id[:8]}{f' of {name}' if name else ''} is {run.status.value.lower()}"
        age = time.time() - record.update_timestamp.timestamp()
        fix = f"`mlops run {name}`, or wait: {CLOSER}" if name else CLOSER
        if run.run_id in gone:
            odd += 1
            yield Finding("runs", "problem", f"{what}, and its process is gone", fix)
        elif run.status == dg.DagsterRunStatus.QUEUED and not is_up:
            odd += 1
            yield Finding("runs", "warning", f"{what}, and no daemon of `mlops up` is there to start it", "`mlops up`")
        elif (
            run.status != dg.DagsterRunStatus.QUEUED
            and not liveness.is_known(home, run.run_id)
            and age > STARTING_SECONDS
        ):
            odd += 1
            yield Finding("runs", "warning", f"{what}, and no process of it is known", CLOSER)
    if not odd:
        yield Finding("runs", "ok", f"{len(records)} under way")


def mlflow_runs(look: Examination) -> Iterator[Finding]:
    """MLflow's runs that are open although their Dagster run has ended."""
    if look.here.mlflow_tracking_uri:
        yield Finding("MLflow's runs", "ok", "kept elsewhere (MLFLOW_TRACKING_URI), so not looked at")
        return
    found = open_runs(look.here)
    stale = [one for one in found if look.instance and _has_ended(look.instance, one.dagster_run)]
    for one in stale:
        what = f"run {one.run_id[:8]} of {one.experiment} is RUNNING, but Dagster's run {one.dagster_run[:8]} has ended"
        yield Finding("MLflow's runs", "warning", what, f"`mlops run {one.experiment}`, or wait: {CLOSER}")
    if not stale:
        yield Finding("MLflow's runs", "ok", f"{len(found)} open")


def holders(paths: Iterable[Path]) -> dict[Path, int]:
    """Which of these files some process has locked, and the process's id.

    Reads what the kernel lists: to try the locks would make others, who try them at that moment, believe they are held.
    """
    if not _LOCKS.exists():
        return {}
    held: dict[tuple[int, int, int], int] = {}
    for line in _LOCKS.read_text(encoding="ascii").splitlines():
        fields = line.split()
        if "->" not in fields and fields[1] == "FLOCK":
            major, minor, inode = fields[5].split(":")
            held[int(major, 16), int(minor, 16), int(inode)] = int(fields[4])
    found = {}
    for path in paths:
        with suppress(FileNotFoundError):
            status = path.stat()
            pid = held.get((os.major(status.st_dev), os.minor(status.st_dev), status.st_ino))
            if pid is not None:
                found[path] = pid
    return found


def stands_still(pid: int) -> bool:
    """Whether a process was stopped, as by Ctrl-Z: it keeps its locks and does nothing."""
    try:
        return psutil.Process(pid).status() in {psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP}
    except psutil.Error:
        return False


def _listener(port: int) -> psutil.Process | None:
    """The process that listens on a port, where this system tells."""
    with suppress(psutil.Error):
        for connection in psutil.net_connections("tcp"):
            listens = connection.status == psutil.CONN_LISTEN and getattr(connection.laddr, "port", None) == port
            if listens and connection.pid:
                return psutil.Process(connection.pid)
    return None


def _named(pid: int) -> str:
    try:
        words = psutil.Process(pid).cmdline()
    except psutil.Error:
        words = []
    command = " ".join(words)
    return f"process {pid}" + (f" ({command[:60]})" if command else "")


def _pipeline(run: dg.DagsterRun) -> str:
    """The pipeline that a run is of, also when somebody launched it in the UI; empty when it does not tell."""
    from mlops_assets.provenance import PIPELINE_TAG

    selected = sorted(key.path[0] for key in run.asset_selection or ())
    return run.tags.get(PIPELINE_TAG) or (selected[0] if selected else "")


def _has_ended(instance: dg.DagsterInstance, run_id: str) -> bool:
    run = instance.get_run_by_id(run_id)
    return run is not None and run.is_finished
