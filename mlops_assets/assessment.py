"""A pipeline now: what Oxen has, what was materialized, and what is stale.

Belongs here: gathering what the decision in `staleness.py` rests on. Shared by the sensor, the push and `mlops status`.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

import dagster as dg

from mlops_assets.errors import MlopsError
from mlops_assets.oxen.repository import Repository
from mlops_assets.oxen.tree import Commit
from mlops_assets.pipeline import STAGES, NoDataYet, Pipeline, Stage, require_here
from mlops_assets.provenance import IN_PROGRESS, PIPELINE_TAG, asset_key, job_name, read_state, read_states
from mlops_assets.spec import SPEC_FILE
from mlops_assets.staleness import Materialization, Plan, Wanted, plan

REASON_TAG: Final = "mlops/reason"
COMMIT_TAG: Final = "mlops/oxen_commit"
WISH_TAG: Final = "mlops/wish"
"""The identity of what was asked for, on every run that was asked for it."""

MOST_CHILDREN: Final = 8
"""Heads that are read at once; each costs a short-lived process."""


class AssessmentFailed(MlopsError):
    """A pipeline that cannot be judged, for a reason that nobody foresaw."""


@dataclass(frozen=True)
class Head:
    """The data that a pipeline follows, as Oxen has it now."""

    commit: Commit
    digest: str


_heads: dict[tuple[str, str, str], tuple[str, Head]] = {}
"""By repository, branch and path: the change stamp under which the head was read, and the head.

A tick that finds the stamp unchanged starts no child process.
"""


def read_head(repository: Repository, branch: str, path: str) -> Head:
    """The head commit of a branch and the content digest of a path in it.

    Raises:
        OxenError: The repository, the branch or the path does not exist, or cannot be read.
    """
    key = (str(repository.path), branch, path)
    stamp = repository.change_stamp()
    known = _heads.get(key)
    if known and known[0] == stamp:
        return known[1]
    commit = repository.log(branch, limit=1)[0]
    head = Head(commit, repository.digest(path, commit.id))
    _heads[key] = (stamp, head)
    return head


def has_moved(repository: Repository, branch: str, path: str) -> bool:
    """Whether the repository may have changed since this process last read a head from it."""
    known = _heads.get((str(repository.path), branch, path))
    return known is not None and known[0] != repository.change_stamp()


@dataclass(frozen=True)
class Assessment:
    """A pipeline now: its data, its newest materializations, and what is stale."""

    pipeline: Pipeline
    head: Head
    state: Mapping[Stage, Materialization]
    wanted: Wanted

    @classmethod
    def of(cls, pipeline: Pipeline, repository: Repository, instance: dg.DagsterInstance) -> Assessment:
        """Read everything that the decision rests on.

        Raises:
            MlopsError: The data or a source file cannot be read.
        """
        data = pipeline.spec.data
        head = read_head(repository, data.branch, data.path)
        return cls(pipeline, head, read_state(instance, pipeline.name), Wanted.of(pipeline, head.digest))

    @cached_property
    def plan(self) -> Plan:
        """What one run should materialize."""
        return plan(self.pipeline.name, self.wanted, self.state)

    @property
    def run_key(self) -> str:
        """The identity of the wish."""
        return f"{self.pipeline.name}-{self.plan.run_key(self.wanted, self.state)}"

    @property
    def selection(self) -> list[dg.AssetKey]:
        """The assets to select."""
        return [asset_key(self.pipeline.name, stage) for stage in self.plan.stages]

    @property
    def tags(self) -> dict[str, str]:
        """Run tags that tell why."""
        return {
            PIPELINE_TAG: self.pipeline.name,
            REASON_TAG: self.plan.reason[:250],
            COMMIT_TAG: self.head.commit.id,
            WISH_TAG: self.run_key,
        }


def assess(
    folders: Sequence[Path], repository: Callable[[str], Repository], instance: dg.DagsterInstance
) -> dict[str, Assessment | MlopsError]:
    """Assess many pipelines, as their files are now; by name, with the error of each that cannot be.

    For a process that asks again and again: what has not changed since it last asked is not read again.
    """
    states = read_states(instance, [folder.name for folder in folders])

    def one(folder: Path) -> Assessment | MlopsError:
        try:
            pipeline, state = require_here(_current(folder)), states[folder.name]
            data, source = pipeline.spec.data, repository(pipeline.repository)
            if not state and _is_new(source):  # where something was made of data, they are lost
                return NoDataYet(pipeline)
            head = read_head(source, data.branch, data.path)
            return Assessment(pipeline, head, state, Wanted.of(pipeline, head.digest))
        except MlopsError as error:
            return error
        except Exception as error:  # noqa: BLE001  whatever it is, it must not stop the other pipelines
            place = traceback.extract_tb(error.__traceback__)[-1]
            what = f"{type(error).__name__}: {error}, at {place.filename}:{place.lineno}"
            return AssessmentFailed(f"{folder.name} cannot be assessed, by a fault of the platform ({what})")

    # Threads for the sake of Oxen's child processes, one for each head that has moved.
    with ThreadPoolExecutor(min(MOST_CHILDREN, os.cpu_count() or 1)) as pool:
        return {folder.name: now for folder, now in zip(folders, pool.map(one, folders), strict=True)}


def _is_new(repository: Repository) -> bool:
    """Whether there is none yet, or nothing was ever committed to it."""
    return not repository.path.exists() or (repository.exists() and not repository.heads())


_pipelines: dict[Path, tuple[bytes, Pipeline]] = {}
"""By folder: the text of its `defs.yaml`, and what that means."""


def _current(folder: Path) -> Pipeline:
    """`Pipeline.load`, which parses a text once."""
    file = folder / SPEC_FILE
    try:
        text = file.read_bytes()
    except OSError:
        return Pipeline.load(folder)  # says in a sentence what is wrong
    known = _pipelines.get(folder)
    if known and known[0] == text:
        return known[1]
    pipeline = Pipeline.load(folder)
    if file.read_bytes() == text:  # nobody wrote it between the two readings
        _pipelines[folder] = text, pipeline
    return pipeline


def active_runs(instance: dg.DagsterInstance, pipelines: Collection[str]) -> dict[str, dg.DagsterRun]:
    """By pipeline, a run that is queued or under way and touches it."""
    owners = {asset_key(name, stage): name for name in pipelines for stage in STAGES}
    jobs = {job_name(name): name for name in pipelines}
    found: dict[str, dg.DagsterRun] = {}
    for run in instance.get_runs(dg.RunsFilter(statuses=IN_PROGRESS)):
        touched = {owners[key] for key in run.asset_selection or () if key in owners}
        for name in touched | ({jobs[run.job_name]} if run.job_name in jobs else set()):
            found.setdefault(name, run)
    return found


def active_run(instance: dg.DagsterInstance, pipeline: str) -> dg.DagsterRun | None:
    """A run that is queued or under way and touches the pipeline."""
    return active_runs(instance, [pipeline]).get(pipeline)
