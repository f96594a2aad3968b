"""`NAME/champion`: the gate's decision, and the version that answers users."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import dagster as dg

from mlops_assets.assets.evaluation import PREDICTIONS_TAG
from mlops_assets.assets.model import part_of
from mlops_assets.assets.stage import InputRefused, StageRun, log, plain_failures, stage_asset
from mlops_assets.pipeline import Pipeline
from mlops_assets.provenance import asset_key, latest_metadata
from mlops_assets.resources.mlflow import MLflowResource
from mlops_assets.resources.store import StoreResource
from mlops_assets.settings import settings
from mlops_assets.store import Entry

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mlops_assets.gate.decide import Decision, Paired
    from mlops_assets.registry.aliases import Version
    from mlops_assets.tracking.runs import Tracking

OUTCOME: Final = "outcome"
PROMOTED: Final = "promoted"
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
        return dg.AssetCheckResult(
            passed=bool(made[PROMOTED].value),
            severity=dg.AssetCheckSeverity.WARN,
            description=str(made[OUTCOME].value),
            metadata={CLAUSES: made[CLAUSES]},
        )

    return [champion, gate_check]


def _decided(run: StageRun, tracking: "Tracking") -> dg.MaterializeResult[Any]:
    from mlops_assets.gate.condition import parse
    from mlops_assets.gate.decide import decide
    from mlops_assets.registry import aliases

    gate, name = run.pipeline.spec.gate, run.pipeline.model_name
    challenger = aliases.find(tracking, name, run.state["model"].recipe)
    if challenger is None:
        raise InputRefused(f"MLflow has no version of {run.pipeline.name}/model; run `mlops run {run.pipeline.name}`")
    if run.state["evaluation"].inputs["model"] != run.state["model"].digest:
        raise InputRefused(f"{run.pipeline.name}/evaluation is of another model than today's; materialize it first")
    before = aliases.current(tracking, name, gate.champion_alias)
    paired = _paired(run, tracking, before if before and before.number != challenger.number else None)
    decision = decide(parse(gate.condition), paired, reliability=gate.reliability, mode=gate.mode)
    if before and before.number == challenger.number:
        promoted, outcome = True, f"kept version {before.number}, because it is the champion already"
    elif decision.promote:
        aliases.point(tracking, name, gate.champion_alias, challenger.number)
        promoted, outcome = True, f"promoted version {challenger.number}, because {decision.reason}"
    else:
        kept = f"kept version {before.number}" if before else "no champion yet"
        promoted, outcome = False, f"{kept}, because {decision.reason}"
    verdict = {"mlops.gate": decision.verdict, "mlops.gate_outcome": outcome}
    tracking.log_evaluation(challenger.run_id, metrics={}, tags=verdict, artifacts={})
    log.info("%s: %s", run.name, outcome)
    now = challenger if promoted else before
    figures = _accuracy(paired.new if promoted else paired.old, paired.label)
    return run.result(
        now.model_digest or f"version {now.number}" if now else "none",
        {
            OUTCOME: outcome,
            PROMOTED: promoted,
            "champion": now.number if now else 0,
            "challenger": challenger.number,
            "before": before.number if before else 0,
            CLAUSES: _table(decision),
            **figures,
            **(
                {"MLflow run": dg.MetadataValue.url(tracking.run_url(now.run_id, settings().mlflow_url))} if now else {}
            ),
        },
    )


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


def _paired(run: StageRun, tracking: "Tracking", champion: "Version | None") -> "Paired":
    """The challenger's and the champion's predictions on the rows that both judged."""
    from mlops_assets.evaluation.predictions import pair

    new = run.store.get(f"{run.pipeline.name}/predictions", run.input("evaluation").info["predictions"])
    return pair(new, _champion_predictions(run, tracking, champion) if champion else None)


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
    """The champion on today's test rows; where its features are others than today's, as it was evaluated itself.

    Raises:
        InputRefused: The store has lost both the champion and its predictions.
    """
    from mlops_assets.evaluation.predictions import predict_stored

    pipeline = run.pipeline
    model = run.store.find(f"{pipeline.name}/model", champion.recipe)
    test = part_of(run.input("features"), pipeline, "test")
    if model and list(model.info["features"]) == test.features:
        return predict_stored(run.store, pipeline.name, model, test, pipeline.spec.data.classes)
    kept = tracking.client.get_run(champion.run_id).data.tags.get(PREDICTIONS_TAG, "")
    predictions = run.store.find(f"{pipeline.name}/predictions", kept) if kept else None
    if predictions is None:
        raise InputRefused(
            f"the store has neither version {champion.number} of {pipeline.name} nor its predictions, so nothing "
            f"compares with it; remove the alias '{pipeline.spec.gate.champion_alias}' in MLflow to start anew"
        )
    return predictions
