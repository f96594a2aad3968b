"""`NAME/champion`: the gate's decision, and the version that answers users."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import dagster as dg

from mlops_assets.assets.evaluation import PREDICTIONS_TAG
from mlops_assets.assets.model import parts_of
from mlops_assets.assets.stage import InputRefused, StageRun, log, plain_failures, stage_asset
from mlops_assets.pipeline import Pipeline
from mlops_assets.provenance import asset_key, latest_metadata
from mlops_assets.resources.mlflow import MLflowResource
from mlops_assets.resources.store import StoreResource
from mlops_assets.settings import settings
from mlops_assets.store import Entry

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mlops_assets.gate.decide import Decision
    from mlops_assets.registry.aliases import Version
    from mlops_assets.tracking.runs import Tracking

OUTCOME: Final = "outcome"
PASSED: Final = "gate passed"
CLAUSES: Final = "clauses"


def build_champion(pipeline: Pipeline) -> list[Any]:
    """The champion, and the gate as a check that never blocks: a refusal is a normal outcome."""
    key = asset_key(pipeline.name, "champion")

    @stage_asset(
        pipeline,
        "champion",
        kinds={"mlflow"},
        deps=[asset_key(pipeline.name, "evaluation")],
        description=f"The version that answers users: the challenger replaces it when `{pipeline.spec.gate.condition}` "
        f"holds with {pipeline.spec.gate.reliability:.4g} confidence on paired predictions.",
    )
    def champion(
        context: dg.AssetExecutionContext, store: StoreResource, mlflow: MLflowResource
    ) -> Iterator[dg.MaterializeResult[Any]]:
        with plain_failures():
            run = StageRun.start(context, pipeline, "champion", store)
            if run.nothing_to_do():
                log.info("%s: unchanged, nothing to decide", run.name)
                return
            result = _decided(run, mlflow.tracking())
        yield result

    @dg.asset_check(asset=key, name="gate", description=f"`{pipeline.spec.gate.condition}`, on paired predictions.")
    def gate_check(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        (made,) = latest_metadata(context.instance, [key])
        if OUTCOME not in made:
            with plain_failures():
                raise InputRefused(f"the gate of {pipeline.name} has not decided yet; run `mlops run {pipeline.name}`")
        return dg.AssetCheckResult(
            passed=bool(made[PASSED].value),
            severity=dg.AssetCheckSeverity.WARN,
            description=str(made[OUTCOME].value),
            metadata={CLAUSES: made[CLAUSES]},
        )

    return [champion, gate_check]


def _decided(run: StageRun, tracking: "Tracking") -> dg.MaterializeResult[Any]:
    """Judge the challenger, move the alias, and tell why."""
    from mlops_assets.registry import aliases

    name, alias = run.pipeline.model_name, run.pipeline.spec.gate.champion_alias
    challenger = _challenger(run, tracking)
    before = aliases.current(tracking, name, alias)
    sitting = before is not None and before.number == challenger.number
    decision, figures = _judged(run, tracking, None if sitting else before, sitting=sitting)
    now = challenger if sitting or decision.promote else before
    if sitting:
        outcome = f"kept version {challenger.number}, which is the champion already"
        outcome += f", though {decision.reason}" if decision.verdict == "false" else ""
    elif decision.promote:
        outcome = f"promoted version {challenger.number}, because {decision.reason}"
    else:
        outcome = f"{f'kept version {before.number}' if before else 'no champion yet'}, because {decision.reason}"
    metadata = {
        OUTCOME: outcome,
        PASSED: decision.promote or (sitting and decision.verdict != "false"),
        "champion": now.number if now else 0,
        "challenger": challenger.number,
        "before": before.number if before else 0,
        CLAUSES: _table(decision),
        **figures,
    }
    if now and now.run_id:
        metadata["MLflow run"] = dg.MetadataValue.url(tracking.run_url(now.run_id, settings().mlflow_url))
    if not sitting:
        verdict = {"mlops.gate": decision.verdict, "mlops.gate_outcome": outcome}
        tracking.log_evaluation(challenger.run_id, metrics={}, tags=verdict, artifacts={})
        if decision.promote:  # last, so that whatever failed before has promoted nothing
            aliases.point(tracking, name, alias, challenger.number)
    log.info("%s: %s", run.name, outcome)
    return run.result(now.model_digest or f"version {now.number}" if now else "none", metadata)


def _challenger(run: StageRun, tracking: "Tracking") -> "Version":
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


def _judged(
    run: StageRun, tracking: "Tracking", champion: "Version | None", *, sitting: bool
) -> "tuple[Decision, dict[str, Any]]":
    """The gate's decision, and the accuracy of whoever is champion after it, as metadata."""
    from mlops_assets.evaluation.predictions import TooFewPairs, pair
    from mlops_assets.gate.condition import parse
    from mlops_assets.gate.decide import Decision, decide

    gate = run.pipeline.spec.gate
    new = run.store.get(f"{run.pipeline.name}/predictions", run.input("evaluation").info["predictions"])
    try:
        paired = pair(new, _champion_predictions(run, tracking, champion) if champion else None)
    except TooFewPairs as error:
        reason = f"{error}, so a promotion needs a hand: set the alias '{gate.champion_alias}' in MLflow"
        return Decision(promote=False, verdict="by hand", reason=reason, clauses=()), {}
    decision = decide(parse(gate.condition), paired, reliability=gate.reliability, mode=gate.mode)
    return decision, _accuracy(paired.new if decision.promote or sitting else paired.old, paired.label)


def _table(decision: "Decision") -> dg.MarkdownMetadataValue:
    """The clauses, and how each was decided."""
    lines = ["| clause | verdict | estimate | between | level | method | rows |", "|" + " --- |" * 7]
    for one in decision.clauses:
        values = (
            ["", "", "", ""]
            if one.estimate is None
            else [f"{one.estimate:.4f}", f"{one.lower:.4f} and {one.upper:.4f}", f"{one.level:.4g}", str(one.method)]
        )
        lines.append("| " + " | ".join([f"`{one.text}`", one.verdict, *values, str(one.rows)]) + " |")
    return dg.MetadataValue.md("\n".join(lines))


def _accuracy(predicted: "NDArray[Any] | None", label: "NDArray[Any]") -> dict[str, Any]:
    """The champion's accuracy with its two-sided 95 % interval, as metadata."""
    from mlops_assets.gate.intervals import wilson

    if predicted is None:
        return {}
    interval = wilson(int((predicted == label).sum()), len(label), 0.975)
    return {
        "accuracy": interval.estimate,
        "accuracy_lower": interval.lower,
        "accuracy_upper": interval.upper,
        "test rows": len(label),
    }


def _champion_predictions(run: StageRun, tracking: "Tracking", champion: "Version") -> Entry:
    """The champion on today's test rows, or as it was evaluated itself, where today's features mean something else.

    Raises:
        TooFewPairs: The store has neither the champion nor its predictions.
    """
    from mlops_assets.evaluation.predictions import TooFewPairs, predict_stored

    pipeline = run.pipeline
    model = run.store.find(f"{pipeline.name}/model", champion.recipe) if champion.recipe else None
    # The same code over other data, not only columns of the same names: a column may have changed its unit.
    if model and model.info["features code"] == run.state["features"].code_version:
        test = parts_of(run.input("features"), pipeline, "test")["test"]
        if model.info["shape"] == list(test.x.shape[1:]):
            return predict_stored(run.store, pipeline.name, model, test, pipeline.spec.data.classes)
    kept = tracking.run_tags(champion.run_id).get(PREDICTIONS_TAG, "") if champion.run_id else ""
    predictions = run.store.find(f"{pipeline.name}/predictions", kept) if kept else None
    if predictions is None:
        raise TooFewPairs(f"the store has neither the champion, version {champion.number}, nor its predictions")
    return predictions
