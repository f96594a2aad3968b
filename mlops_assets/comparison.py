"""The newest model of a pipeline beside a champion, without asking the gate: nothing is charged, nothing moves.

Belongs here: gathering what was evaluated, what the champion said of the same rows, and what the gate would say of
both. Not here: how that reads (`evaluation/summary.py`), and decisions that count (`assets/judgement.py`).

The event log, the store and the ledger are enough: no MLflow and no other server is asked. To the champion's home,
which may be another one than the model's, nothing is written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import dagster as dg

from mlops_assets.assets.content import table_of
from mlops_assets.assets.dataset import OXEN_COMMIT
from mlops_assets.assets.evaluation import REPORT
from mlops_assets.assets.model import parts_of
from mlops_assets.errors import MlopsError
from mlops_assets.fingerprint import Recipe, digest
from mlops_assets.pipeline import DECISIONS, INPUTS, STAGES, Pipeline, Stage
from mlops_assets.provenance import asset_key, latest_metadata, read_state
from mlops_assets.registry.history import bars, history, is_of, pinned
from mlops_assets.registry.ledger import Ledger, Record
from mlops_assets.staleness import Materialization
from mlops_assets.store import Entry, Store
from mlops_assets.tracking.tags import RECIPE

if TYPE_CHECKING:
    import polars as pl

    from mlops_assets.data.arrays import Arrays
    from mlops_assets.evaluation.facts import Accuracy, Facts
    from mlops_assets.evaluation.metrics import Evaluation
    from mlops_assets.evaluation.summary import Compared
    from mlops_assets.gate.rows import Outputs, Paired
    from mlops_assets.registry.promotion import Judged

MADE: Final[tuple[Stage, ...]] = tuple(stage for stage in STAGES if stage not in DECISIONS)
"""What must be there to be reported on."""

_TWO_SIDED_95: Final = 0.975


class NothingToReport(MlopsError):
    """There is no evaluated model."""


@dataclass(frozen=True)
class Throne:
    """Where a champion is looked for: the folder of ledgers, and the store with its model and predictions.

    Attributes:
        elsewhere: Whether that is another home than the model's, which is then no version of the champion's registry.
    """

    ledgers: Path
    store: Store
    elsewhere: bool


@dataclass(frozen=True)
class Comparison:
    """The newest model of a home, and the champion that it is put beside."""

    pipeline: Pipeline
    state: Mapping[Stage, Materialization]
    metadata: Mapping[Stage, Mapping[str, Any]]
    store: Store
    throne: Throne

    @classmethod
    def of(cls, pipeline: Pipeline, instance: dg.DagsterInstance, store: Store, throne: Throne) -> Comparison:
        """Read what was materialized.

        Raises:
            NothingToReport: A stage never was, or the newest outputs do not belong together.
        """
        name, state = pipeline.name, read_state(instance, pipeline.name)
        for stage in MADE:
            if stage not in state:
                raise NothingToReport(f"{name}/{stage} was never materialized; run `mlops run {name}`")
            for upstream in INPUTS[stage]:
                if state[stage].inputs.get(upstream) != state[upstream].digest:
                    raise NothingToReport(f"{name}/{stage} is not of today's {upstream}; run `mlops run {name}`")
        found = latest_metadata(instance, [asset_key(name, stage) for stage in MADE])
        metadata = {
            stage: {label: one.value for label, one in made.items()} for stage, made in zip(MADE, found, strict=True)
        }
        return cls(pipeline, state, metadata, store, throne)

    @property
    def version(self) -> int:
        """The model's version in the champion's registry; 0 for none."""
        return 0 if self.throne.elsewhere else int(self.metadata["model"].get("version", 0))

    @cached_property
    def test(self) -> Arrays:
        """Today's test rows."""
        return parts_of(self._entry("features"), self.pipeline, "test")["test"]

    @cached_property
    def ledger(self) -> Ledger:
        """The champions' record."""
        return Ledger(self.throne.ledgers, self.pipeline.name)

    @cached_property
    def records(self) -> Sequence[Record]:
        """Its entries."""
        return self.ledger.records()

    @cached_property
    def champion(self) -> Record | None:
        """What made the present champion one; None without a champion."""
        reigns = history(self.records)
        return reigns[-1].record if reigns and reigns[-1].version else None

    @cached_property
    def sitting(self) -> bool:
        """Whether the model is the champion, or has its weights."""
        return self.champion is not None and is_of(self.champion, self._own)

    def compared(self) -> Compared:
        """What there is to tell.

        Raises:
            MlopsError: Something that was kept is gone or damaged.
        """
        from mlops_assets.evaluation.metrics import Evaluation
        from mlops_assets.evaluation.slices import slice_figures
        from mlops_assets.evaluation.summary import Compared
        from mlops_assets.gate.intervals import tango

        rows, judged = self._asked()
        evaluation = Evaluation.from_dict(self._entry("evaluation").json(REPORT))
        new = self._evaluated(rows, rows.new)
        assert new is not None  # a model of ours gives probabilities
        facts = self._facts(evaluation, rows, judged)
        if rows.old is None:
            return Compared(facts, judged.decision.promote, self.sitting, new)
        right, was = rows.new.predicted == rows.label, rows.old.predicted == rows.label
        return Compared(
            facts,
            judged.decision.promote,
            self.sitting,
            new,
            self._evaluated(rows, rows.old),
            tango(int((right & ~was).sum()), int((was & ~right).sum()), len(rows), _TWO_SIDED_95),
            tuple(slice_figures(rows.label, rows.old.predicted, rows.slices)),
        )

    @property
    def _own(self) -> dict[str, Any]:
        return {"version": self.version, "model_digest": self.state["model"].digest}

    def _entry(self, stage: Stage) -> Entry:
        return self.store.get(f"{self.pipeline.name}/{stage}", self.state[stage].recipe)

    def _asked(self) -> tuple[Paired, Judged]:
        """What the models said of today's test rows, and what the gate would say of that."""
        from mlops_assets.evaluation.pairing import TooFewPairs, pair
        from mlops_assets.evaluation.predictions import predict_stored
        from mlops_assets.gate.condition import parse
        from mlops_assets.gate.decide import decide
        from mlops_assets.registry.promotion import Judged, by_hand

        gate, classes, slices = self.pipeline.spec.gate, self.pipeline.spec.data.classes, self._slices()
        condition = parse(gate.condition)
        new = predict_stored(self.store, self.pipeline.name, self._entry("model"), self.test, classes)
        alone = pair(new, classes=classes, slices=slices)
        if self.sitting:
            decision = decide(condition, alone, reliability=gate.reliability, mode=gate.mode, method=gate.method)
            return alone, Judged(replace(decision, promote=False), rows=len(alone))
        pinned_one = self._record_of(pinned(self.records)) if self.champion else None
        asks_anchor = "a" in {term.model for term in condition.terms}
        try:
            old = self._predictions(self.champion) if self.champion else None
            anchor = self._predictions(pinned_one) if pinned_one and asks_anchor else None
            rows = pair(new, old, anchor, classes=classes, slices=slices)
        except TooFewPairs as error:
            return alone, by_hand(f"{error}, so a promotion needs a hand")
        barred = next((bar for bar in bars(self.records).values() if is_of(bar, self._own)), None)
        if barred:
            return rows, by_hand(f"these weights were rolled back as version {barred.facts['version']} and are barred")
        if not self.champion and gate.cold_start == "hand":
            return rows, by_hand("the first champion is made by hand")
        if not self.champion and any(reign.version for reign in history(self.records)):
            return rows, by_hand("the champion was taken away in MLflow, so the next one needs a hand")
        return rows, self._judged(rows)

    def _judged(self, rows: Paired) -> Judged:
        """What the gate would say of the rows that have looks left, or said of those that it has looked at."""
        from mlops_assets.gate.budget import Budget, BudgetExhausted, Looks
        from mlops_assets.gate.condition import parse
        from mlops_assets.gate.decide import decide
        from mlops_assets.registry.promotion import Judged, by_hand

        assert rows.keys is not None
        gate, looks, ids = self.pipeline.spec.gate, Looks(self.ledger), Looks.row_ids(rows.keys)
        budget = Budget(gate.reliability, gate.steps, gate.adaptivity)
        champion = self.champion.facts["version"] if self.champion else 0
        known = [
            record
            for record in self.records
            if record.kind == "look"
            and (record.facts["challenger"], record.facts["champion"]) == (self.version, champion)
        ]
        try:
            asked = looks.rows_of(known[-1], ids) if known else looks.usable(ids, budget)
        except BudgetExhausted as error:
            return by_hand(str(error))
        decision = decide(
            parse(gate.condition), rows.take(asked), reliability=budget.level, mode=gate.mode, method=gate.method
        )
        seen = int(asked.sum())
        return Judged(
            decision, known[-1].number if known else 0, seen, len(rows) - seen, looks.left(ids[asked], budget)
        )

    def _record_of(self, version: int | None) -> Record | None:
        """The newest record that tells what a version is."""
        told = [one for one in self.records if one.kind in {"moved", "noticed", "anchored"}]
        return next((one for one in reversed(told) if version and one.facts["version"] == version), None)

    def _predictions(self, record: Record) -> Entry:
        """A version's predictions on today's test rows, or of its own day where today's features mean something else.

        Raises:
            TooFewPairs: Its store has neither the version nor its predictions.
        """
        from mlops_assets.evaluation.pairing import TooFewPairs
        from mlops_assets.evaluation.predictions import predict_stored
        from mlops_assets.upkeep import entries

        name, kept, classes = self.pipeline.name, self.throne.store, self.pipeline.spec.data.classes
        version, recipe = record.facts["version"], record.facts["tags"].get(RECIPE, "")
        if not recipe:  # registered by others; what it said was kept when it was judged
            uri = f"models:/{self.pipeline.model_name}/{version} {record.facts['run_id']}"
            inputs = {"version": uri, "test": self.test.digest, "classes": digest(list(classes))}
            asked = Recipe(f"{name}/predictions", "foreign-1", inputs)
            found = kept.find(asked.asset, asked.key)
        else:
            model = kept.find(f"{name}/model", recipe)
            same = model and model.info["features code"] == self.state["features"].code_version
            if model and same and model.info["shape"] == list(self.test.x.shape[1:]):
                return predict_stored(self.store, name, model, self.test, classes)
            weights = record.facts["model_digest"]
            slots = [
                one for one in entries(kept, f"{name}/evaluation") if one.entry and one.entry.inputs["model"] == weights
            ]
            last = max(slots, key=lambda one: one.made, default=None)
            found = kept.find(f"{name}/predictions", last.entry.info["predictions"]) if last and last.entry else None
        if found is None:
            raise TooFewPairs(f"the store has neither version {version} nor its predictions")
        return found

    def _slices(self) -> pl.DataFrame | None:
        """The dataset's columns by whose values rows are told apart, beside its key."""
        import polars as pl

        columns = self.pipeline.spec.slices
        if not columns:
            return None
        key = pl.col(self.pipeline.spec.data.key).cast(pl.String).alias("key")
        return table_of(self._entry("dataset")).select(key, *columns)

    def _evaluated(self, rows: Paired, outputs: Outputs) -> Evaluation | None:
        """All measures of what a model said; None for one that gives no probabilities."""
        import numpy as np

        from mlops_assets.evaluation.metrics import evaluate

        if outputs.scores is None or rows.keys is None:
            return None
        classes = self.pipeline.spec.data.classes
        label = np.asarray([classes.index(one) for one in rows.label.tolist()])
        return evaluate(label, outputs.scores, class_names=classes, keys=rows.keys)

    def _facts(self, evaluation: Evaluation, rows: Paired, judged: Judged) -> Facts:
        from mlops_assets.evaluation.facts import Cost, Facts, Rule
        from mlops_assets.evaluation.slices import slice_figures

        spec, gate = self.pipeline.spec, self.pipeline.spec.gate
        champion = int(self.champion.facts["version"]) if self.champion else 0
        commit = str(self.metadata["dataset"].get(OXEN_COMMIT, ""))
        url = "" if self.throne.elsewhere else str(self.metadata["model"].get("MLflow run", ""))
        provenance = {
            "data": f"{self.pipeline.repository}/{spec.data.path}",
            "Oxen commit": commit,
            **{f"{stage}'s code version": self.state[stage].code_version for stage in MADE},
            **{f"{stage}'s digest": self.state[stage].digest for stage in MADE},
            "MLflow run": url,
        }
        return Facts(
            name=self.pipeline.name,
            version=self.version,
            evaluation=evaluation,
            decision=replace(judged.decision, promote=False),  # whatever it says, nothing comes of it here
            rule=Rule(gate.condition, gate.reliability, gate.mode, gate.method, gate.steps, gate.adaptivity),
            outcome=self._outcome(judged, champion),
            task="tabular-classification" if spec.data.images is None else "image-classification",
            dataset=provenance["data"],
            commit=commit,
            description=spec.description,
            owners=tuple(spec.owners),
            champion=champion,
            champion_accuracy=_accuracy(rows, rows.old) if rows.old else None,
            cost=Cost(judged.look, judged.rows, judged.spent, judged.left),
            slices=tuple(slice_figures(rows.label, rows.new.predicted, rows.slices)),
            parameters={**spec.training.model_dump(exclude_defaults=True), **spec.parameters},
            provenance={label: value for label, value in provenance.items() if value},
        )

    def _outcome(self, judged: Judged, champion: int) -> str:
        which = f"version {self.version}" if self.version else "a trial, which is no version of the registry"
        if self.sitting:
            return f"{which}: it has the weights of the champion, version {champion}"
        if judged.decision.promote:
            return f"{which}: the gate would promote it, because {judged.decision.reason}"
        keeps = f"keep version {champion}" if champion else "leave the pipeline without a champion"
        return f"{which}: the gate would {keeps}, because {judged.decision.reason}"


def _accuracy(rows: Paired, outputs: Outputs) -> Accuracy:
    from mlops_assets.evaluation.facts import Accuracy
    from mlops_assets.gate.intervals import wilson

    found = wilson(int((outputs.predicted == rows.label).sum()), len(rows), _TWO_SIDED_95)
    return Accuracy(float(found.estimate), float(found.lower), float(found.upper), len(rows))
