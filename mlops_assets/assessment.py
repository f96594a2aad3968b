"""A pipeline now: what Oxen has, what was materialized, and what is stale.

Belongs here: gathering what the decision in `staleness.py` rests on. Shared by the sensor, the push and `mlops status`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Final

import dagster as dg

from mlops_assets.oxen.repository import Repository
from mlops_assets.oxen.tree import Commit
from mlops_assets.pipeline import STAGES, Pipeline, Stage
from mlops_assets.provenance import IN_PROGRESS, PIPELINE_TAG, asset_key, job_name, read_state
from mlops_assets.staleness import Materialization, Plan, Wanted, plan

REASON_TAG: Final = "mlops/reason"
COMMIT_TAG: Final = "mlops/oxen_commit"
WISH_TAG: Final = "mlops/wish"
"""The identity of what was asked for, on every run that was asked for it."""


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


@dataclass(frozen=True)
class Assessment:
    """A pipeline now: its data, its newest materializations, and what is stale."""

    pipeline: Pipeline
    head: Head
    state: dict[Stage, Materialization]
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


def active_run(instance: dg.DagsterInstance, pipeline: str) -> dg.DagsterRun | None:
    """A run that is queued or under way and touches the pipeline."""
    keys = {asset_key(pipeline, stage) for stage in STAGES}
    for run in instance.get_runs(dg.RunsFilter(statuses=IN_PROGRESS)):
        if run.job_name == job_name(pipeline) or keys & (run.asset_selection or set()):
            return run
    return None
