"""The report and the model card of a decision, gathered from what the stages and MLflow know."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dagster as dg

from mlops_assets.assets.evaluation import REPORT
from mlops_assets.assets.stage import StageRun
from mlops_assets.pipeline import DECISIONS
from mlops_assets.settings import settings
from mlops_assets.tracking import tags as keys

if TYPE_CHECKING:
    from mlops_assets.assets.judgement import Answer
    from mlops_assets.evaluation.facts import Accuracy, Facts
    from mlops_assets.evaluation.metrics import Evaluation
    from mlops_assets.registry.aliases import Version
    from mlops_assets.tracking.runs import Tracking

REPORT_PATH = "report/report.html"
CARD_PATH = "report/README.md"


def documents(
    run: StageRun, tracking: Tracking, answer: Answer, *, challenger: Version, champion: Version | None, outcome: str
) -> dict[str, Any]:
    """Write both beside the challenger's MLflow run; returns how Dagster shows them.

    A version that others registered without a run, or that gives no probabilities, has none.
    """
    from mlops_assets.evaluation import plots
    from mlops_assets.evaluation.card import model_card
    from mlops_assets.evaluation.html import report_html

    evaluation = _evaluation(run, challenger, answer)
    if evaluation is None or not challenger.run_id:
        return {}
    facts = _facts(run, tracking, answer, evaluation, challenger=challenger, champion=champion, outcome=outcome)
    pictures = {"confusion": plots.confusion_png(evaluation), "calibration": plots.calibration_png(evaluation)}
    card = model_card(facts)
    tracking.log_evaluation(
        challenger.run_id,
        metrics={} if challenger.recipe else evaluation.scalars(),
        tags={},
        artifacts={REPORT_PATH: report_html(facts, pictures), CARD_PATH: card.encode()},
    )
    page = f"{tracking.run_url(challenger.run_id, settings().mlflow_page)}/artifacts/{REPORT_PATH}"
    return {"report": dg.MetadataValue.url(page), "model card": dg.MetadataValue.md(card.split("---\n", 2)[-1])}


def _evaluation(run: StageRun, challenger: Version, answer: Answer) -> Evaluation | None:
    import numpy as np

    from mlops_assets.evaluation.metrics import Evaluation, evaluate

    if challenger.recipe:
        return Evaluation.from_dict(run.input("evaluation").json(REPORT))
    rows, classes = answer.rows, run.pipeline.spec.data.classes
    if rows.new.scores is None or rows.keys is None:
        return None
    labels = np.asarray([classes.index(label) for label in rows.label.tolist()])
    return evaluate(labels, rows.new.scores, class_names=classes, keys=rows.keys)


def _facts(
    run: StageRun,
    tracking: Tracking,
    answer: Answer,
    evaluation: Evaluation,
    *,
    challenger: Version,
    champion: Version | None,
    outcome: str,
) -> Facts:
    from mlops_assets.evaluation.facts import Cost, Facts, Rule
    from mlops_assets.evaluation.slices import slice_figures

    pipeline, judged, rows = run.pipeline, answer.judged, answer.rows
    spec, gate = pipeline.spec, pipeline.spec.gate
    tags = tracking.run_tags(challenger.run_id)
    commit = tags.get(keys.OXEN_COMMIT, "")
    provenance = {
        "Oxen commit": commit,
        **{f"{stage}'s digest": made.digest for stage, made in run.state.items() if stage not in DECISIONS},
        **{f"{stage}'s code version": made.code_version for stage, made in run.state.items() if stage not in DECISIONS},
        "git revision": tags.get(keys.GIT_REVISION, ""),
        "MLflow run": tracking.run_url(challenger.run_id, settings().mlflow_page),
        "Dagster run of the training": tags.get(keys.DAGSTER_RUN, ""),
        "Dagster run of the decision": run.context.run.run_id,
    }
    return Facts(
        name=pipeline.name,
        version=challenger.number,
        evaluation=evaluation,
        decision=judged.decision,
        rule=Rule(gate.condition, gate.reliability, gate.mode, gate.method, gate.steps, gate.adaptivity),
        outcome=outcome,
        task="tabular-classification" if spec.data.images is None else "image-classification",
        dataset=f"{pipeline.repository}/{spec.data.path}",
        commit=commit,
        description=spec.description,
        owners=tuple(spec.owners),
        champion=champion.number if champion else 0,
        champion_accuracy=_accuracy(answer.old) if champion else None,
        anchor=answer.anchor,
        cost=Cost(judged.look, judged.rows, judged.spent, judged.left),
        slices=tuple(slice_figures(rows.label, rows.new.predicted, rows.slices)),
        parameters={**spec.training.model_dump(exclude_defaults=True), **spec.parameters} if challenger.recipe else {},
        provenance={label: value for label, value in provenance.items() if value},
        onnx=bool(challenger.recipe),
    )


def _accuracy(figures: dict[str, Any]) -> Accuracy | None:
    from mlops_assets.evaluation.facts import Accuracy

    if not figures:
        return None
    return Accuracy(
        figures["accuracy"], figures["accuracy_lower"], figures["accuracy_upper"], int(figures["test rows"])
    )
