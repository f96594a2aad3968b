"""The model card: Markdown with the metadata that Hugging Face reads, from the facts of the evaluation report.

Belongs here: the card's front matter and wording. Not here: the facts, and publishing a model.

Source: Mitchell et al., "Model Cards for Model Reporting", FAT* 2019, for what a card tells.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any, Final

import yaml

from mlops_assets.evaluation.facts import ADAPTIVITY, MODES, VERDICTS, Facts, judged, not_asked
from mlops_assets.evaluation.markdown import table
from mlops_assets.evaluation.metrics import Evaluation

SMALL_SLICE: Final = 30
"""A group with fewer test rows is called small: the 95 % interval of its accuracy is at least 0.11 wide."""

_MOST_CLASSES: Final = 50
_MOST_NAMED: Final = 10

_METRICS: Final = (
    ("accuracy", "accuracy", "accuracy"),
    ("balanced_accuracy", "balanced_accuracy", "balanced accuracy"),
    ("f1", "macro_f1", "macro F1"),
    ("log_loss", "log_loss", "log loss"),
    ("brier_score", "brier", "Brier score"),
    ("expected_calibration_error", "ece", "expected calibration error"),
)
"""Type for Hugging Face, attribute of the evaluation, and name for people."""


def model_card(facts: Facts) -> str:
    """Write the model card of a version.

    Args:
        facts: What it tells.

    Returns:
        Markdown below a YAML front matter. No licence is named, since nobody told it.
    """
    parts = [
        f"---\n{_front_matter(facts)}---",
        f"# {_text(facts.name)}, version {facts.version}",
        *_purpose(facts),
        *_data(facts),
        *_evaluation(facts),
        *_limits(facts),
        *_choice(facts),
        *_usage(facts),
        *_provenance(facts),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(facts: Facts) -> str:
    evaluation, name, dataset = facts.evaluation, _flat(facts.name), _flat(facts.dataset)
    result = {
        "task": {"type": facts.task},
        "dataset": {
            "name": dataset,
            "type": dataset,
            "split": "test",
            **({"revision": _flat(facts.commit)} if facts.commit else {}),
        },
        "metrics": [
            {"type": kind, "value": getattr(evaluation, attribute), "name": said} for kind, attribute, said in _METRICS
        ],
    }
    metadata: dict[str, Any] = {
        **({"library_name": "onnx"} if facts.onnx else {}),
        "pipeline_tag": facts.task,
        "tags": ["mlflow", *(["onnx"] if facts.onnx else []), name],
        "datasets": [dataset],
        "metrics": [kind for kind, _, _ in _METRICS],
        "model-index": [{"name": name, "results": [result]}],
    }
    # Unfolded, so that no line within a text can look like the end of the front matter.
    written: str = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True, width=float("inf"))
    return written


def _purpose(facts: Facts) -> Iterable[str]:
    yield "## What it is for"
    kind = "images" if facts.task == "image-classification" else "table rows"
    classes = [report.name for report in facts.evaluation.classes]
    yield _text(facts.description) or "The pipeline gives no description."
    yield f"It sorts {kind} into {len(classes)} classes: {_listed(classes)}."
    if facts.owners:
        yield f"Owners: {_listed(facts.owners)}."


def _data(facts: Facts) -> Iterable[str]:
    yield "## Data"
    commit = f" at commit {_text(facts.commit)}" if facts.commit else ""
    yield (
        f"Training and test rows are parts of {_text(facts.dataset)}{commit}, split by a hash of each row's key or by "
        f"the data's own split. All figures are on the {facts.evaluation.rows:,} test rows."
    )


def _evaluation(facts: Facts) -> Iterable[str]:
    evaluation = facts.evaluation
    yield "## Evaluation"
    accuracy = _between(evaluation.accuracy, evaluation.accuracy_lower, evaluation.accuracy_upper)
    rows = [["accuracy (95 % interval)", accuracy]]
    if facts.champion_accuracy and facts.champion != facts.version:
        old = facts.champion_accuracy
        of_it = f"{_between(old.estimate, old.lower, old.upper)} on {old.rows:,} rows"
        rows.append([f"accuracy of the champion before, version {facts.champion}", of_it])
    rows += [[said, f"{getattr(evaluation, attribute):.3f}"] for _, attribute, said in _METRICS[1:]]
    yield table(["measure", "value"], rows)
    yield from _classes(evaluation)
    if facts.slices:
        yield "### Slices"
        weak = facts.weak_slices
        body = [
            [
                _text(one.column),
                _text(one.value),
                f"{one.rows:,}",
                _between(one.accuracy, one.lower, one.upper),
                "below" if one in weak else "",
            ]
            for one in facts.slices
        ]
        yield table(["column", "value", "rows", "accuracy (95 % interval)", "against all rows"], body)


def _classes(evaluation: Evaluation) -> Iterable[str]:
    reports = list(evaluation.classes)
    yield "### Classes"
    if len(reports) > _MOST_CLASSES:
        reports = sorted(reports, key=lambda one: 2.0 if one.recall is None else one.recall)[:_MOST_CLASSES]
        yield f"The {_MOST_CLASSES} of {len(evaluation.classes)} with the lowest recall."
    body = [
        [
            _text(one.name),
            f"{one.support:,}",
            _share(one.precision),
            _between(one.recall, one.recall_lower, one.recall_upper),
            _share(one.f1),
        ]
        for one in reports
    ]
    yield table(["class", "rows", "precision", "recall (95 % interval)", "F1"], body)


def _limits(facts: Facts) -> Iterable[str]:
    yield "## Limits"
    limits = ["The test rows come from where the training rows come from: of other data the figures say nothing."]
    unseen = [one.name for one in facts.evaluation.classes if not one.support]
    if unseen:
        limits.append(f"There are no test rows of {_listed(unseen)}.")
    weak = [f"{one.column} = {one.value}" for one in facts.weak_slices]
    if weak:
        limits.append(f"The accuracy is lower than on all rows for {_listed(weak)}.")
    small = [f"{one.column} = {one.value}" for one in facts.slices if one.rows < SMALL_SLICE]
    if small:
        limits.append(f"Fewer than {SMALL_SLICE} test rows, and therefore little is known, for {_listed(small)}.")
    if not facts.slices:
        limits.append("No groups of rows were told apart, so whether it serves all of them alike is unknown.")
    missing = not_asked(facts)
    if missing:
        limits.append(f"The gate did not ask about {'; '.join(missing)}.")
    yield "\n".join(f"* {one}" for one in limits)


def _choice(facts: Facts) -> Iterable[str]:
    rule = facts.rule
    yield "## How it was chosen"
    yield f"The gate's condition, with a reliability of {100 * rule.reliability:.6g} % over {rule.steps:,} decisions:"
    yield f"    {_flat(rule.condition)}"  # as code: nothing in one indented line ends it
    yield f"Outcome: {_text(facts.outcome)}."
    clauses = judged(facts)
    if clauses:
        body = []
        for one in clauses:
            result = one.result
            numbers = ["", ""]
            if result.estimate is not None and result.lower is not None and result.upper is not None:
                numbers = [
                    f"{_between(result.estimate, result.lower, result.upper)}",
                    f"{_text(result.method or '')}, {result.rows:,} rows",
                ]
            body.append([_text(one.meaning), VERDICTS[result.verdict], *numbers])
        yield table(["clause", "verdict", "estimate (bounds)", "method"], body)
    else:
        yield "No clause was judged."
    undecided = [f"* {_text(one.meaning)}: {one.remedy}." for one in clauses if one.remedy]
    if undecided:
        yield "\n".join(undecided)
    yield (
        f"Mode {rule.mode}: {MODES[rule.mode]}. Method {rule.method}. "
        f"Adaptivity {rule.adaptivity}: {ADAPTIVITY[rule.adaptivity]}."
    )


def _usage(facts: Facts) -> Iterable[str]:
    yield "## How to use it"
    uri = f"models:/{_flat(facts.name)}/{facts.version}"
    if not facts.onnx:
        yield _python("import mlflow", "", f"model = mlflow.pyfunc.load_model({_quoted(uri)})")
        return
    rows = (
        "uint8, shape (rows, height, width, channels)"
        if facts.task == "image-classification"
        else "the features, float32, shape (rows, features)"
    )
    classes = [report.name for report in facts.evaluation.classes]
    name = _quoted(_flat(facts.name))
    yield "Through ONNX Runtime, with MLflow's address in `MLFLOW_TRACKING_URI`:"
    yield _python(
        "import mlflow",
        "import onnxruntime",
        "",
        f'version = mlflow.MlflowClient().get_model_version({name}, "{facts.version}")',
        'path = mlflow.artifacts.download_artifacts(f"runs:/{version.run_id}/onnx/model.onnx")',
        "session = onnxruntime.InferenceSession(path)",
        f'(logits,) = session.run(["logits"], {{"input": rows}})  # rows: {rows}',
        f"classes = {_quoted(classes)}",
        "predicted = [classes[index] for index in logits.argmax(axis=1)]",
    )
    yield "Through MLflow alone, which takes the same rows and returns the logits:"
    yield _python("import mlflow", "", f"logits = mlflow.pyfunc.load_model({_quoted(uri)}).predict(rows)")


def _provenance(facts: Facts) -> Iterable[str]:
    yield "## Provenance"
    if facts.provenance:
        body = [[_text(label), _text(str(value))] for label, value in facts.provenance.items()]
        yield table(["fact", "value"], body)
    if facts.parameters:
        yield "### Training parameters"
        body = [[_text(name), _text(str(value))] for name, value in facts.parameters.items()]
        yield table(["parameter", "value"], body)
    if not (facts.provenance or facts.parameters):
        yield "Nothing is known."


def _python(*lines: str) -> str:
    return "\n".join(("```python", *lines, "```"))


def _quoted(value: str | Sequence[str]) -> str:
    """Write a literal that Python reads, on one line."""
    return json.dumps(value)


def _listed(names: Sequence[str]) -> str:
    said = ", ".join(map(_text, names[:_MOST_NAMED]))
    return f"{said} and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else said


def _flat(text: str) -> str:
    return " ".join(text.split())


def _text(text: str) -> str:
    """Keep a text from meaning anything in Markdown: one line, each mark behind a backslash; an address is a link."""
    flat = _flat(text)
    if re.fullmatch(r"https?://[^\s<>|`]+", flat):
        return f"<{flat}>"
    return re.sub(r"([\\`*_|\[\]<$~&]|^[-+=#>])", r"\\\1", flat)


def _share(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"


def _between(value: float | None, lower: float | None, upper: float | None) -> str:
    return "none" if value is None else f"{value:.3f} ({lower:.3f} to {upper:.3f})"
