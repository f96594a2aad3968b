"""What is stale, and why: a pure comparison of what was materialized with what is wanted now.

Belongs here: the level-triggered decision, over plain values. Does not: reading Dagster's or Oxen's state
(`provenance.py`), and asking for runs (`sensors/rematerialize.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from mlops_assets.fingerprint import Recipe, digest
from mlops_assets.pipeline import BLOCKING_CHECKS, ENVIRONMENT, INPUTS, SOURCE, STAGES, TICK, Pipeline, Stage


@dataclass(frozen=True)
class Materialization:
    """The newest materialization of a stage, as its own metadata tells."""

    event_id: int
    recipe: str
    """Key of the recipe it was made by: where the store keeps it."""
    digest: str
    code_version: str
    inputs: Mapping[str, str]
    checks: Mapping[str, bool] = field(default_factory=dict)
    """Blocking checks that were evaluated on this very materialization, and whether each passed."""


@dataclass(frozen=True)
class Wanted:
    """What the world asks for now: the data's digest and each stage's code version."""

    source: str
    code_versions: Mapping[Stage, str]
    environment: str

    @classmethod
    def of(cls, pipeline: Pipeline, source: str) -> Wanted:
        """Read the code versions from disk.

        Raises:
            SourceError: A source file is missing or does not parse.
        """
        return cls(source, {stage: pipeline.code_version(stage) for stage in STAGES}, pipeline.environment_digest)


State = Mapping[Stage, Materialization]


@dataclass(frozen=True)
class Plan:
    """Which stages to materialize, in the order of the graph, and the reason for each."""

    stale: Mapping[Stage, str]
    blocked: str | None = None
    """Why nothing further down is asked for, when a blocking check stands in the way."""

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages to select for one run."""
        return tuple(self.stale)

    @property
    def reason(self) -> str:
        """One line for people: the causes, without the stages that merely hang on them."""
        stages_by_cause: dict[str, list[str]] = {}
        for stage, why in self.stale.items():
            if not why.startswith(FOLLOWS):
                stages_by_cause.setdefault(why, []).append(stage)
        return "; ".join(f"{', '.join(stages)}: {why}" for why, stages in stages_by_cause.items())

    def run_key(self, wanted: Wanted, state: State) -> str:
        """The same wish from the same starting point has one key; a return to an earlier state is a new wish.

        A stage that only lacks a check's result stands with its digest, not its event: a check that dies with its
        process would otherwise make a new starting point, and so a new wish, for ever.
        """
        events = {
            stage: one.digest if self.stale.get(stage, "").startswith(UNCHECKED) else one.event_id
            for stage, one in state.items()
        }
        return digest([self.stages, wanted.source, dict(wanted.code_versions), wanted.environment, events])


FOLLOWS: Final = "hangs on "
UNCHECKED: Final = "no result yet of check "


def recipe(stage: Stage, pipeline_name: str, wanted: Wanted, state: State, tick: str) -> Recipe | None:
    """The recipe that a stage would have if it ran now; None while an input was never materialized.

    The tick sticks: without a new one the model keeps the one it was trained with.
    """
    inputs: dict[str, str] = {}
    for upstream in INPUTS[stage]:
        if upstream not in state:
            return None
        inputs[upstream] = state[upstream].digest
    if stage == "dataset":
        inputs[SOURCE] = wanted.source
    if stage == "model":
        inputs[ENVIRONMENT] = wanted.environment
        inputs[TICK] = tick or (state["model"].inputs.get(TICK, "") if "model" in state else "")
    return Recipe(f"{pipeline_name}/{stage}", wanted.code_versions[stage], inputs)


def plan(pipeline_name: str, wanted: Wanted, state: State) -> Plan:
    """Decide what one run should materialize.

    A stage is stale when it was never materialized, when its recipe differs from the one it was made by, or when a
    blocking check has no result on its newest materialization. What hangs on a stale stage goes into the same run:
    there it turns out unchanged and yields nothing, or runs. Past a failed blocking check nothing is asked for.
    """
    stale: dict[Stage, str] = {}
    blocked: str | None = None
    for stage in STAGES:
        failed = [
            f"{upstream}'s check '{name}' failed"
            for upstream in INPUTS[stage]
            if upstream in state and upstream not in stale
            for name, passed in state[upstream].checks.items()
            if not passed
        ]
        if failed or (blocked and set(INPUTS[stage]) - set(stale)):
            blocked = blocked or failed[0]
            continue
        why = why_stale(stage, pipeline_name, wanted, state)
        follows = [upstream for upstream in INPUTS[stage] if upstream in stale]
        if why:
            stale[stage] = why
        elif follows:
            stale[stage] = FOLLOWS + " and ".join(follows)
    return Plan(stale, blocked)


def why_stale(stage: Stage, pipeline_name: str, wanted: Wanted, state: State) -> str | None:
    """Why a stage's newest materialization is not what is wanted, looking at the stage alone; None when it is."""
    made = state.get(stage)
    if made is None:
        return "never materialized"
    if made.code_version != wanted.code_versions[stage]:
        return f"code changed ({_change(made.code_version, wanted.code_versions[stage])})"
    now = recipe(stage, pipeline_name, wanted, state, tick="")
    if now is None:
        return None  # an input vanished; that stage is stale itself, and this one follows it
    changed = [name for name in now.inputs if made.inputs.get(name) != now.inputs[name]]
    if changed:
        return ", ".join(
            f"{'data' if name == SOURCE else name} changed ({_change(made.inputs.get(name, ''), now.inputs[name])})"
            for name in changed
        )
    unchecked = [name for name in BLOCKING_CHECKS[stage] if name not in made.checks]
    if unchecked:
        return f"{UNCHECKED}'{unchecked[0]}'"
    return None


def _change(before: str, after: str) -> str:
    return f"{_short(before) or 'none'} -> {_short(after)}"


def _short(digest: str) -> str:
    return digest.rpartition("-")[2][:8]  # Oxen's digests say what they are of: "file-...", "dir-..."
