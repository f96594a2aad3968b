"""An evaluation as Markdown, for the places that show it beside an asset or a run.

Belongs here: tables, their cells, and wording. Not here: measuring.
"""

from __future__ import annotations

from typing import Final

from mlops_assets.evaluation.metrics import Evaluation

_WIDEST_TABLE: Final = 15
_MOST_CLASSES: Final = 50
_MOST_MISTAKES: Final = 5
_LONGEST_CELL: Final = 60


def markdown_confusion(evaluation: Evaluation) -> str:
    """Write the confusion matrix as a table, true classes downwards.

    Args:
        evaluation: What to show.

    Returns:
        A Markdown table; beyond 15 classes, which would be too wide to read, one of the pairs most often confused.
    """
    names = [cell(report.name) for report in evaluation.classes]
    if len(names) <= _WIDEST_TABLE:
        header = ["true \\ predicted", *names]
        body = [
            [f"**{name}**", *(str(count) for count in row)]
            for name, row in zip(names, evaluation.confusion, strict=True)
        ]
        return table(header, body)
    pairs = [
        (count, true, predicted)
        for true, row in enumerate(evaluation.confusion)
        for predicted, count in enumerate(row)
        if count and true != predicted
    ]
    if not pairs:
        return "No test row was confused."
    pairs.sort(key=lambda pair: -pair[0])
    return table(
        ["true", "predicted", "rows"],
        [[names[true], names[predicted], str(count)] for count, true, predicted in pairs[:_WIDEST_TABLE]],
    )


def markdown_summary(evaluation: Evaluation) -> str:
    """Write the measures, one row per class, and the surest mistakes.

    Args:
        evaluation: What to show.

    Returns:
        Markdown; of more than 50 classes those with the lowest recall.
    """
    measures = [
        ["test rows", f"{evaluation.rows:,}"],
        ["accuracy", _with_range(evaluation.accuracy, evaluation.accuracy_lower, evaluation.accuracy_upper)],
        ["balanced accuracy", f"{evaluation.balanced_accuracy:.3f}"],
        ["macro F1", f"{evaluation.macro_f1:.3f}"],
        ["log loss", f"{evaluation.log_loss:.3f}"],
        ["Brier score", f"{evaluation.brier:.3f}"],
        ["expected calibration error", f"{evaluation.ece:.3f}"],
    ]
    reports = list(evaluation.classes)
    if len(reports) > _MOST_CLASSES:
        reports = sorted(reports, key=lambda report: 2.0 if report.recall is None else report.recall)[:_MOST_CLASSES]
    classes = [
        [
            cell(report.name),
            str(report.support),
            _share(report.precision),
            _with_range(report.recall, report.recall_lower, report.recall_upper),
            _share(report.f1),
        ]
        for report in reports
    ]
    mistakes = [
        [cell(item.key), cell(item.label), cell(item.predicted), f"{item.probability:.3f}"]
        for item in evaluation.worst[:_MOST_MISTAKES]
    ]
    parts = [
        table(["measure", "value (95 % interval)"], measures),
        table(["class", "rows", "precision", "recall (95 % interval)", "F1"], classes),
    ]
    if mistakes:
        parts.append("Surest mistakes:\n\n" + table(["row", "true", "predicted", "probability"], mistakes))
    return "\n\n".join(parts)


def table(header: list[str], body: list[list[str]]) -> str:
    """Write a table of what `cell` made, or of text that is known to fit."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *body))


def _with_range(value: float | None, lower: float | None, upper: float | None) -> str:
    return "none" if value is None else f"{value:.3f} ({lower:.3f} to {upper:.3f})"


def _share(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"


def cell(text: str) -> str:
    """Keep a text from ending its cell, its row or the text around it, and shorten it to 60 characters."""
    flat = " ".join(text.split())
    if len(flat) > _LONGEST_CELL:
        flat = f"{flat[: _LONGEST_CELL - 3]}..."
    for character in "\\`*_|[<":
        flat = flat.replace(character, f"\\{character}")
    return flat
