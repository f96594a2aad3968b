"""What every stage has in common: read inputs that may be read, reuse what the store has, record provenance.

Belongs here: the contract between a stage's asset and the event log. Does not: what any one stage computes.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Final

import dagster as dg

from mlops_assets.errors import MlopsError
from mlops_assets.fingerprint import Recipe
from mlops_assets.liveness import hold
from mlops_assets.pipeline import BLOCKING_CHECKS, DECISIONS, INPUTS, STAGES, Pipeline, Stage
from mlops_assets.provenance import asset_key, provenance_metadata, read_state
from mlops_assets.resources.store import StoreResource
from mlops_assets.settings import settings
from mlops_assets.staleness import Materialization, State, Wanted, recipe, why_stale
from mlops_assets.store import Entry, Store

log = logging.getLogger("mlops_assets")
"""What a person wants to follow while a run goes on; Dagster copies it into the run's own log."""

TICK_TAG: Final = "mlops/tick"
TRIAL_TAG: Final = "mlops/trial"
"""On a run that trains otherwise than `defs.yaml` says: the options of `training` that it sets, as JSON."""

PROGRESS_SECONDS: Final = 2.0
"""How often a long stage tells how far it is."""


def stage_asset(
    pipeline: Pipeline, stage: Stage, *, kinds: set[str], deps: Sequence[dg.AssetKey], description: str
) -> Callable[[Callable[..., Any]], dg.AssetsDefinition]:
    """`@dg.asset` with what all stages share."""
    try:
        code_version = pipeline.code_version(stage)
    except MlopsError:
        code_version = None  # a file that does not parse is an error of its pipeline's runs, not of the code location
    return dg.asset(
        key=asset_key(pipeline.name, stage),
        deps=deps,
        description=description,
        group_name=pipeline.name,
        code_version=code_version,
        kinds=kinds,
        owners=pipeline.spec.owners,
        tags={"mlops/stage": stage},
        output_required=False,  # a stage whose recipe is unchanged yields nothing: early cutoff inside one run
    )


class InputRefused(MlopsError):
    """A stage will not read what is upstream."""


def is_lost(store: Store, pipeline: str, stage: Stage, state: State) -> bool:
    """Whether a stage was materialized and the store does not have its output any more; decisions are not stored."""
    return stage not in DECISIONS and stage in state and store.find(f"{pipeline}/{stage}", state[stage].recipe) is None


@contextmanager
def plain_failures() -> Iterator[None]:
    """Turn the errors that a user can mend into a failure with their one sentence, which nothing retries."""
    try:
        yield
    except MlopsError as error:
        raise dg.Failure(description=str(error), allow_retries=False) from error


@dataclass(frozen=True)
class Output:
    """What a stage makes: files for the store, the digest of the whole, and facts for metadata."""

    digest: str
    files: Mapping[str, bytes]
    info: Mapping[str, Any] = field(default_factory=dict)

    def with_files(self, more: Mapping[str, bytes]) -> Output:
        """The same output with files beside it that its digest does not cover."""
        return replace(self, files={**self.files, **more})


@dataclass
class StageRun:
    """One execution of one stage: the pipeline as it is on disk, and the state of the world when it began."""

    context: dg.AssetExecutionContext | dg.AssetCheckExecutionContext
    pipeline: Pipeline
    stage: Stage
    store: Store
    source: str = ""
    """Digest of the data in Oxen; only the first stage knows it."""

    @classmethod
    def start(
        cls,
        context: dg.AssetExecutionContext | dg.AssetCheckExecutionContext,
        pipeline: Pipeline,
        stage: Stage,
        store: StoreResource,
    ) -> StageRun:
        """Begin a stage with the pipeline as its files are now.

        Raises:
            SpecError: The `defs.yaml` is not usable any more.
        """
        hold(settings().home, context.run.run_id)
        trial = json.loads(context.run.tags.get(TRIAL_TAG, "{}"))
        return cls(context, Pipeline.load(pipeline.folder).trial(trial), stage, store.open())

    @cached_property
    def state(self) -> Mapping[Stage, Materialization]:
        """The newest materializations, read once."""
        return read_state(self.context.instance, self.pipeline.name)

    @cached_property
    def wanted(self) -> Wanted:
        """The code versions, read once, before anything is imported."""
        return Wanted.of(self.pipeline, self.source)

    @property
    def tick(self) -> str:
        """The tick of the schedule that launched this run, or an empty text."""
        return self.context.run.tags.get(TICK_TAG, "")

    @cached_property
    def recipe(self) -> Recipe:
        """What this execution would make its output by.

        Raises:
            InputRefused: An input was never materialized, or may not be read.
        """
        for upstream in INPUTS[self.stage]:
            self._require_readable(upstream)
        found = recipe(self.stage, self.pipeline.name, self.wanted, self.state, self.tick)
        assert found is not None
        return found

    def input(self, upstream: Stage) -> Entry:
        """The stored output of an upstream stage.

        Raises:
            InputRefused: It was never materialized, or one of its blocking checks failed or is missing.
            EntryMissing: The store has lost it.
        """
        self._require_readable(upstream)
        return self._stored(upstream)

    @property
    def recipe_read(self) -> str:
        """The recipe of what a check of this stage reads, for its result to name."""
        return self.state[self.stage].recipe

    def consistent(self) -> None:
        """Check that the newest model was trained on the newest features.

        Raises:
            InputRefused: It was not; somebody materialized one of them alone.
        """
        if self.state["model"].inputs["features"] != self.state["features"].digest:
            name = self.pipeline.name
            raise InputRefused(
                f"{name}/model was trained on other features than {name}/features now holds; run `mlops run {name}`"
            )

    def output(self) -> Entry:
        """The stored output of this stage's newest materialization, for its checks."""
        if self.stage not in self.state:
            raise InputRefused(f"{self.name} was never materialized; run `mlops run {self.pipeline.name}`")
        return self._stored(self.stage)

    def nothing_to_do(self) -> bool:
        """Whether this stage and everything behind it is as wanted, so that yielding nothing loses nothing.

        A stage that is unchanged itself still yields when something behind it is stale: Dagster skips what follows a
        step that yields nothing.
        """
        made = self.state.get(self.stage)
        if made is None or made.recipe != self.recipe.key:
            return False
        return not any(
            why_stale(stage, self.pipeline.name, self.wanted, self.state) or self._lost(stage)
            for stage in STAGES[STAGES.index(self.stage) :]
        )

    def run(
        self,
        compute: Callable[[], Output],
        describe: Callable[[Entry], Mapping[str, Any]],
    ) -> Iterator[dg.MaterializeResult[Any]]:
        """Materialize the stage: nothing when its recipe is unchanged, from the store when it is there, else computed.

        Args:
            compute: Makes the output; called only when the store does not have it.
            describe: Dagster metadata of the stored output.
        """
        with plain_failures():
            if self.nothing_to_do():
                log.info("%s: unchanged (recipe %s), nothing to do", self.name, self.recipe.key[:8])
                return
            with self.store.making(self.recipe):
                entry = self.store.find(self.name, self.recipe.key)
                reused = entry is not None
                if entry is None:
                    output = compute()
                    self.require_unchanged_source()
                    entry = self.store.put(self.recipe, output.digest, output.info, output.files)
            metadata = describe(entry)
            log.info("%s: %s %s", self.name, "taken from the store," if reused else "made,", entry.digest[:8])
            result = self.result(entry.digest, {"from store": reused, **metadata})
        yield result

    def result(self, digest: str, metadata: Mapping[str, Any]) -> dg.MaterializeResult[Any]:
        """A materialization that records its own provenance."""
        return dg.MaterializeResult(
            asset_key=asset_key(self.pipeline.name, self.stage),
            data_version=dg.DataVersion(digest),
            metadata={**metadata, **provenance_metadata(self.recipe, digest)},
        )

    def result_as_before(self, digest: str, metadata: Mapping[str, Any]) -> dg.MaterializeResult[Any]:
        """A materialization that leaves open what was open: it records the provenance of the one before it."""
        made = self.state.get(self.stage)
        kept = Recipe(self.name, made.code_version, made.inputs) if made else Recipe(self.name, "", {})
        return dg.MaterializeResult(
            asset_key=asset_key(self.pipeline.name, self.stage),
            data_version=dg.DataVersion(digest),
            metadata={**metadata, **provenance_metadata(kept, digest)},
        )

    def require_unchanged_source(self) -> None:
        """Refuse to record an output under a code version that may not be what ran.

        Raises:
            InputRefused: A source file changed since this execution hashed it.
        """
        if self.pipeline.code_version(self.stage) != self.wanted.code_versions[self.stage]:
            raise InputRefused(
                f"the source of {self.name} changed while it ran, so its result is dropped; run it again"
            )

    def _stored(self, stage: Stage) -> Entry:
        made = self.state[stage]
        entry = self.store.get(f"{self.pipeline.name}/{stage}", made.recipe)
        if entry.digest != made.digest:
            raise InputRefused(
                f"the store's {self.pipeline.name}/{stage} is {entry.digest[:8]}, not {made.digest[:8]} as recorded; "
                f"delete {entry.url} and run `mlops run {self.pipeline.name}`"
            )
        return entry

    def _lost(self, stage: Stage) -> bool:
        return is_lost(self.store, self.pipeline.name, stage, self.state)

    def _require_readable(self, upstream: Stage) -> None:
        name = f"{self.pipeline.name}/{upstream}"
        made = self.state.get(upstream)
        if made is None:
            raise InputRefused(
                f"{self.name} needs {name}, which was never materialized; run `mlops run {self.pipeline.name}`"
            )
        for check in BLOCKING_CHECKS[upstream]:
            if check not in made.checks:
                raise InputRefused(
                    f"{self.name} refuses {name} {made.digest[:8]}: its check '{check}' has not run on this version; "
                    f"materialize {name} together with its checks"
                )
            if not made.checks[check]:
                raise InputRefused(
                    f"{self.name} refuses {name} {made.digest[:8]}: its check '{check}' failed; "
                    f"commit data that passes (the check's metadata names the rows)"
                )

    @property
    def name(self) -> str:
        """The asset's name, as people write it."""
        return f"{self.pipeline.name}/{self.stage}"
