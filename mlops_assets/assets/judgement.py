"""What the champion's stage asks the gate: the challenger against champion and anchor, on the test rows of today."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from mlops_assets.assets.content import table_of
from mlops_assets.assets.evaluation import PREDICTIONS_TAG
from mlops_assets.assets.model import parts_of
from mlops_assets.assets.stage import InputRefused, StageRun
from mlops_assets.errors import MlopsError
from mlops_assets.fingerprint import digest
from mlops_assets.store import Entry
from mlops_assets.tracking import tags as keys

if TYPE_CHECKING:
    import polars as pl
    from numpy.typing import NDArray

    from mlops_assets.gate.rows import Paired
    from mlops_assets.registry.aliases import Version
    from mlops_assets.registry.champion import Champions
    from mlops_assets.registry.promotion import Judged
    from mlops_assets.tracking.runs import Tracking


@dataclass(frozen=True)
class Answer:
    """What the gate said of a challenger.

    Attributes:
        judged: The decision and its cost.
        rows: What the models said of the test rows.
        new: The challenger's accuracy on the test rows with its two-sided 95 % interval, as metadata.
        old: The champion's; empty without one, and where it could not be asked.
        anchor: The version that `a` stood for; 0 for none.
    """

    judged: Judged
    rows: Paired
    new: dict[str, Any]
    old: dict[str, Any] = field(default_factory=dict)
    anchor: int = 0


def newest(run: StageRun, tracking: Tracking) -> Version:
    """The registry's version of the newest model.

    Raises:
        InputRefused: MLflow has none, or model, features and evaluation do not belong together.
    """
    from mlops_assets.registry import aliases

    pipeline = run.pipeline.name
    run.consistent()
    if run.state["evaluation"].inputs["model"] != run.state["model"].digest:
        raise InputRefused(f"{pipeline}/evaluation is of another model than today's; run `mlops run {pipeline}`")
    found = aliases.find(tracking, run.pipeline.model_name, run.state["model"].recipe)
    if found is None:
        raise InputRefused(f"MLflow has no version of {pipeline}/model; run `mlops run {pipeline}`")
    return found


def recognised(tracking: Tracking, version: Version) -> Version:
    """A version that others registered: with our provenance where it is a model of ours, else with a digest of its own.

    So a bar also holds for the same model under another number, and our own model is judged as what it is.

    Raises:
        ForeignModelError: Its files cannot be read.
    """
    from mlops_assets.evaluation.foreign import files_digest
    from mlops_assets.registry import aliases

    if version.recipe or version.model_digest:
        return version
    twin = aliases.of_the_same_files(tracking, version)
    if twin:
        tags = {keys.RECIPE: twin.recipe, keys.MODEL_DIGEST: twin.model_digest}
    else:
        tags = {keys.MODEL_DIGEST: files_digest(tracking, version)}
    aliases.tag_version(tracking, version, tags)
    return replace(version, recipe=twin.recipe if twin else "", model_digest=tags[keys.MODEL_DIGEST])


def mark(tracking: Tracking, version: Version, verdict: str, outcome: str) -> None:
    """Note on a version that the gate has judged it, and on its run what came of that, if there is an outcome."""
    from mlops_assets.registry import aliases

    if version.run_id and outcome:
        tags = {keys.GATE: verdict, keys.GATE_OUTCOME: outcome}
        tracking.log_evaluation(version.run_id, metrics={}, tags=tags, artifacts={})
    aliases.tag_version(tracking, version, {keys.GATE: verdict})


def prepare(run: StageRun, tracking: Tracking, challenger: Version, champion: Version | None) -> None:
    """Make the predictions that `ask` will want, before the ledger is held: whoever wants to go back must not wait.

    Raises:
        MlopsError: The challenger's cannot be made; what is wrong with the champion's is for `ask` to tell.
    """
    predictions_of(run, tracking, challenger)
    with suppress(MlopsError):
        if champion:
            predictions_of(run, tracking, champion)


def ask(
    run: StageRun, tracking: Tracking, champions: Champions, challenger: Version, champion: Version | None
) -> Answer:
    """Let the gate judge a challenger.

    The champion itself is judged by the clauses on `n` alone and at no cost, since nothing follows from it.
    """
    from mlops_assets.evaluation.foreign import ForeignModelError
    from mlops_assets.evaluation.pairing import TooFewPairs, pair
    from mlops_assets.gate.budget import Looks
    from mlops_assets.gate.condition import parse
    from mlops_assets.gate.decide import decide
    from mlops_assets.registry.history import history
    from mlops_assets.registry.promotion import Judged, by_hand, judge

    name, gate = run.pipeline.name, run.pipeline.spec.gate
    condition, classes, slices = parse(gate.condition), run.pipeline.spec.data.classes, _slices(run)
    new = predictions_of(run, tracking, challenger)
    rows = pair(new, classes=classes, slices=slices)
    figures = _accuracy(rows.new.predicted, rows.label)
    hand = f"`mlops promote {name} {challenger.number} --reason ...`"
    if champion and champion.number == challenger.number:
        decision = decide(condition, rows, reliability=gate.reliability, mode=gate.mode, method=gate.method)
        return Answer(Judged(decision, rows=len(rows)), rows, figures, figures)
    if champions.is_barred(challenger):
        reason = f"version {challenger.number} was rolled back and is barred"
        return Answer(
            by_hand(f"{reason} until `mlops ledger clear {name} {challenger.number} --reason ...`"), rows, figures
        )
    if champion is None and any(reign.version for reign in history(champions.ledger.records())):
        return Answer(
            by_hand(f"the champion was taken away in MLflow, so the next one needs a hand: {hand}"), rows, figures
        )
    if champion is None and gate.cold_start == "hand":
        return Answer(by_hand(f"the first champion is made by hand: {hand}"), rows, figures)
    pinned = champions.anchor() if champion and "a" in {term.model for term in condition.terms} else None
    try:
        old = predictions_of(run, tracking, champion) if champion else None
        anchor = _predictions_of_anchor(run, tracking, pinned) if pinned else None
        rows = pair(new, old, anchor, classes=classes, slices=slices)
    except (TooFewPairs, ForeignModelError) as error:
        return Answer(by_hand(f"{error}, so a promotion needs a hand: {hand}"), rows, figures)
    # All that the answer depends on: the same question is answered again at no cost.
    asked = {term.slice.column for term in condition.terms if term.slice}
    question = digest(
        [
            str(condition),
            gate.model_dump(exclude={"condition", "champion_alias", "cold_start"}),
            [one.digest if one else "" for one in (new, old, anchor)],
            {column: digest(rows.slices[column].tolist()) for column in sorted(asked)},
        ]
    )
    facts = {"challenger": challenger.number, "champion": champion.number if champion else 0, "anchor": pinned or 0}
    judged = judge(gate, rows, Looks(champions.ledger), question, {**facts, "dagster_run": run.context.run.run_id})
    return Answer(
        judged,
        rows,
        _accuracy(rows.new.predicted, rows.label),
        _accuracy(rows.old.predicted, rows.label) if rows.old else {},
        pinned or 0,
    )


def _predictions_of_anchor(run: StageRun, tracking: Tracking, number: int) -> Entry:
    from mlops_assets.evaluation.pairing import TooFewPairs
    from mlops_assets.registry import aliases

    version = aliases.get(tracking, run.pipeline.model_name, number)
    if version is None:
        name = run.pipeline.name
        raise TooFewPairs(f"the anchor, version {number}, is gone (`mlops anchor {name} VERSION` pins another)")
    return predictions_of(run, tracking, version)


def accuracy_of(run: StageRun, tracking: Tracking, version: Version) -> dict[str, Any]:
    """A version's accuracy on the test rows, as metadata.

    Raises:
        MlopsError: It cannot be told.
    """
    from mlops_assets.evaluation.pairing import pair

    rows = pair(predictions_of(run, tracking, version))
    return _accuracy(rows.new.predicted, rows.label)


def predictions_of(run: StageRun, tracking: Tracking, version: Version) -> Entry:
    """A version on today's test rows, or as it was evaluated itself, where today's features mean something else.

    Raises:
        TooFewPairs: The store has neither the version nor its predictions.
    """
    from mlops_assets.evaluation.foreign import predict_foreign
    from mlops_assets.evaluation.pairing import TooFewPairs
    from mlops_assets.evaluation.predictions import predict_stored

    pipeline = run.pipeline
    test = parts_of(run.input("features"), pipeline, "test")["test"]
    if not version.recipe:
        return predict_foreign(run.store, tracking, version, test, pipeline.spec.data.classes)
    model = run.store.find(f"{pipeline.name}/model", version.recipe)
    # The same code over other data, not only columns of the same names: a column may have changed its unit.
    if (
        model
        and model.info["features code"] == run.state["features"].code_version
        and model.info["shape"] == list(test.x.shape[1:])
    ):
        return predict_stored(run.store, pipeline.name, model, test, pipeline.spec.data.classes)
    kept = tracking.run_tags(version.run_id).get(PREDICTIONS_TAG, "") if version.run_id else ""
    predictions = run.store.find(f"{pipeline.name}/predictions", kept) if kept else None
    if predictions is None:
        raise TooFewPairs(f"the store has neither version {version.number} nor its predictions")
    return predictions


def _slices(run: StageRun) -> pl.DataFrame | None:
    """The dataset's columns by whose values rows are told apart, beside its key."""
    import polars as pl

    columns = run.pipeline.spec.slices
    if not columns:
        return None
    table = table_of(run.input("dataset"))
    missing = [column for column in columns if column not in table.columns]
    if missing:
        known = ", ".join(table.columns)
        raise InputRefused(
            f"{run.pipeline.name}'s `slices` name {missing[0]}, which is no column of the data ({known})"
        )
    return table.select(pl.col(run.pipeline.spec.data.key).cast(pl.String).alias("key"), *columns)


def _accuracy(predicted: NDArray[Any], label: NDArray[Any]) -> dict[str, Any]:
    """Accuracy with its two-sided 95 % interval, as metadata."""
    from mlops_assets.gate.intervals import wilson

    interval = wilson(int((predicted == label).sum()), len(label), 0.975)
    return {
        "accuracy": float(interval.estimate),
        "accuracy_lower": float(interval.lower),
        "accuracy_upper": float(interval.upper),
        "test rows": len(label),
    }
