"""Close the MLflow runs whose Dagster run is over: those of killed processes, and parents of multi-process runs.

Belongs here: `python -m mlops_assets.resources.mlflow_status`, which a sensor starts as a child process so that the
code server never imports MLflow, and `reconcile` for direct use. Not here: ends that the run's own process can tell.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mlops_assets.errors import MlopsError
from mlops_assets.tracking.runs import Status, Tracking
from mlops_assets.tracking.store import default_home, may_have_open_runs

if TYPE_CHECKING:
    from dagster import DagsterInstance

ENDS: Final[dict[str, Status]] = {"SUCCESS": "FINISHED", "FAILURE": "FAILED", "CANCELED": "KILLED"}


@dataclass(frozen=True)
class Closed:
    """An MLflow run that was given its final status."""

    run_id: str
    dagster_run_id: str
    status: Status


def reconcile(tracking: Tracking, instance: DagsterInstance) -> list[Closed]:
    """Give every open MLflow run of this Dagster instance whose Dagster run has ended its true status.

    A parent ends as its Dagster run did. A model's run that is still open lost its process: KILLED. So is one of a
    Dagster run that was deleted. Runs of other Dagster instances that share the MLflow server are left alone.

    Raises:
        TrackingError: MLflow cannot be reached.
    """
    from mlops_assets.resources.mlflow import instance_id

    here = instance_id(instance)
    closed = []
    for run in tracking.open_runs():
        dagster_run = instance.get_run_by_id(run.dagster_run_id)
        if dagster_run is None and run.dagster_instance != here:
            continue
        end = ENDS.get(dagster_run.status.value) if dagster_run else "KILLED"
        if end is not None:
            status: Status = end if run.parent else "KILLED"
            tracking.close(run.run_id, status)
            closed.append(Closed(run.run_id, run.dagster_run_id, status))
    return closed


def main(arguments: Sequence[str] | None = None) -> int:
    """The command: prints one line per run that it closed; returns 0, or 1 after one sentence on what is wrong."""
    parser = argparse.ArgumentParser(prog="python -m mlops_assets.resources.mlflow_status", description=__doc__)
    parser.add_argument(
        "--tracking-uri", default=os.environ.get("MLFLOW_TRACKING_URI", ""), help="empty: the embedded store"
    )
    parser.add_argument("--home", type=Path, default=default_home(), help="the platform's home")
    given = parser.parse_args(arguments)
    if not given.tracking_uri and not may_have_open_runs(given.home):
        return 0
    from dagster import DagsterInstance
    from dagster._core.errors import DagsterHomeNotSetError

    try:
        tracking = Tracking(given.tracking_uri) if given.tracking_uri else Tracking.embedded(given.home)
        with DagsterInstance.get() as instance:
            for run in reconcile(tracking, instance):
                sys.stdout.write(f"{run.run_id} {run.status} (Dagster run {run.dagster_run_id})\n")
    except DagsterHomeNotSetError:
        sys.stderr.write("No Dagster instance: set DAGSTER_HOME to the folder that holds it.\n")
        return 1
    except MlopsError as exc:
        sys.stderr.write(f"{exc}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
