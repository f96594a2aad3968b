"""`NAME/evaluation`: the challenger on the test rows."""

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

import dagster as dg

from mlops_assets.assets.model import parts_of
from mlops_assets.assets.stage import InputRefused, Output, StageRun, plain_failures, stage_asset
from mlops_assets.fingerprint import digest
from mlops_assets.pipeline import Pipeline
from mlops_assets.provenance import asset_key
from mlops_assets.resources.mlflow import MLflowResource
from mlops_assets.resources.store import StoreResource
from mlops_assets.settings import settings
from mlops_assets.store import Entry

if TYPE_CHECKING:
    from mlops_assets.evaluation.metrics import Evaluation

REPORT: Final = "evaluation.json"
PREDICTIONS_TAG: Final = "mlops.predictions"
"""On a model's run: under which key the store keeps its predictions on the test rows of its day."""


def build_evaluation(pipeline: Pipeline) -> list[dg.AssetsDefinition]:
    """The evaluation of the challenger; the champion is no input of it."""

    @stage_asset(
        pipeline,
        "evaluation",
        kinds={"onnx", "mlflow"},
        deps=[asset_key(pipeline.name, "model"), asset_key(pipeline.name, "features")],
        description="Metrics with intervals, confusion matrix, calibration and worst mistakes on the test rows.",
    )
    def evaluation(
        context: dg.AssetExecutionContext, store: StoreResource, mlflow: MLflowResource
    ) -> Iterator[dg.MaterializeResult[Any]]:
        from mlops_assets.evaluation import markdown, metrics, plots, predictions
        from mlops_assets.registry import aliases

        with plain_failures():
            run = StageRun.start(context, pipeline, "evaluation", store)
            _ = run.recipe  # what may not be read is refused first
            run.consistent()

        def compute() -> Output:
            test = parts_of(run.input("features"), run.pipeline, "test")["test"]
            classes = run.pipeline.spec.data.classes
            predicted = predictions.predict_stored(run.store, run.pipeline.name, run.input("model"), test, classes)
            report = metrics.evaluate(test.y, predictions.probabilities(predicted), class_names=classes, keys=test.keys)
            data = json.dumps(report.to_dict(), sort_keys=True, indent=1).encode()
            return Output(digest([report.to_dict(), predicted.digest]), {REPORT: data}, {"predictions": predicted.key})

        def describe(entry: Entry) -> Mapping[str, Any]:
            report = metrics.Evaluation.from_dict(entry.json(REPORT))
            tracking = mlflow.tracking()
            version = aliases.find(tracking, run.pipeline.model_name, run.state["model"].recipe)
            if version is None:
                raise InputRefused(
                    f"MLflow has no version of {run.pipeline.name}/model; run `mlops run {run.pipeline.name}`"
                )
            model_run = version.run_id
            tracking.log_evaluation(
                model_run,
                metrics=report.scalars(),
                tags={PREDICTIONS_TAG: entry.info["predictions"], "mlops.evaluation": entry.digest},
                artifacts={
                    "evaluation/evaluation.json": entry.read(REPORT),
                    "evaluation/summary.md": markdown.markdown_summary(report).encode(),
                    "evaluation/confusion.png": plots.confusion_png(report),
                    "evaluation/calibration.png": plots.calibration_png(report),
                    **_mistakes(run, report),
                },
            )
            return {
                **report.scalars(),
                "summary": dg.MetadataValue.md(markdown.markdown_summary(report)),
                "confusion": dg.MetadataValue.md(markdown.markdown_confusion(report)),
                "MLflow run": dg.MetadataValue.url(tracking.run_url(model_run, settings().mlflow_page)),
            }

        yield from run.run(compute, describe)

    return [evaluation]


def _mistakes(run: StageRun, report: "Evaluation") -> dict[str, bytes]:
    """A picture of the surest mistakes, where rows are images and there are mistakes."""
    if run.pipeline.spec.data.images is None or not report.worst:
        return {}
    from mlops_assets.evaluation.plots import mistakes_png

    test = parts_of(run.input("features"), run.pipeline, "test")["test"]
    row = {key: number for number, key in enumerate(test.keys)}
    return {"evaluation/mistakes.png": mistakes_png(report.worst, [test.x[row[one.key]] for one in report.worst])}
