"""A model beside the champion as Markdown, for whoever reads a pull request.

Belongs here: what is told, and in which order. Not here: gathering it (`comparison.py`), and the long report
(`html.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from mlops_assets.evaluation.facts import VERDICTS, Facts, judged
from mlops_assets.evaluation.markdown import cell, markdown_confusion, table
from mlops_assets.evaluation.metrics import Evaluation
from mlops_assets.evaluation.slices import SliceFigures
from mlops_assets.gate.intervals import Interval

_MEASURES: Final = (
    ("balanced_accuracy", "balanced accuracy"),
    ("macro_f1", "macro F1"),
    ("log_loss", "log loss"),
    ("brier", "Brier score"),
    ("ece", "expected calibration error"),
)
_MOST_SLICES: Final = 50

_UNPAID: Final = (
    "Nothing was promoted, and no look at the test rows was charged. Whoever picks among several models by such "
    "figures looks at the test rows that often: the gate's stated error holds for what is merged only if it was not "
    "picked by them."
)


@dataclass(frozen=True)
class Compared:
    """A model beside the champion.

    Attributes:
        facts: The model, and what the gate would decide.
        promotes: Whether it would promote the model.
        sitting: Whether the model is the champion already.
        new: The model on the rows that both judged; all test rows without a champion.
        old: The champion on the same rows; None without one, and for one that gives no probabilities.
        difference: Of the accuracies, with its two-sided 95 % interval; None without a champion.
        old_slices: The champion's accuracy by groups of rows.
    """

    facts: Facts
    promotes: bool
    sitting: bool
    new: Evaluation
    old: Evaluation | None = None
    difference: Interval | None = None
    old_slices: tuple[SliceFigures, ...] = ()


def markdown_comparison(compared: Compared) -> str:
    """Write the comparison.

    Args:
        compared: What to tell.

    Returns:
        Markdown with a heading of the second level.
    """
    facts = compared.facts
    parts = [f"## {facts.name}: {_headline(compared)}", f"{_flat(facts.outcome)}.", *_clauses(facts)]
    parts += [*_measures(compared), *_slices(compared), *_folded("Confusion", markdown_confusion(facts.evaluation))]
    rows = [[label, _fact(str(value))] for label, value in facts.provenance.items()]
    parts += [*_folded("Provenance", table(["fact", "value"], rows)), f"<sub>{_UNPAID}</sub>"]
    return "\n\n".join(parts) + "\n"


def _headline(compared: Compared) -> str:
    if compared.sitting:
        return "the champion already"
    if compared.promotes:
        return "the gate would promote it"
    words = {"false": "the gate would refuse it", "unknown": "the test rows cannot decide"}
    return words.get(compared.facts.decision.verdict, "left to a person")


def _clauses(facts: Facts) -> Iterable[str]:
    body = []
    for one in judged(facts):
        result, numbers = one.result, ["", ""]
        if result.estimate is not None and result.lower is not None and result.upper is not None:
            numbers = [
                f"{result.estimate:.3f} ({result.lower:.3f} to {result.upper:.3f})",
                f"{cell(result.method or '')}, {result.rows:,} rows",
            ]
        body.append([_code(result.text), VERDICTS[result.verdict], *numbers])
        if one.remedy:
            body.append(["", one.remedy, "", ""])
    if body:
        yield table(["clause", "verdict", "estimate (bounds)", "method"], body)
    else:
        yield f"The rule {_code(facts.rule.condition)} was not asked."


def _measures(compared: Compared) -> Iterable[str]:
    new, old, was = compared.new, compared.old, compared.facts.champion_accuracy
    accuracy = ["accuracy (95 % interval)", _between(new.accuracy, new.accuracy_lower, new.accuracy_upper)]
    if was is None or compared.difference is None:
        body = [accuracy, *([said, f"{getattr(new, name):.3f}"] for name, said in _MEASURES)]
        yield table([f"on {new.rows:,} test rows", "this model"], body)
        return
    gap = compared.difference
    shown = f"{gap.estimate:+.3f} ({gap.lower:+.3f} to {gap.upper:+.3f})"
    body = [[*accuracy, _between(was.estimate, was.lower, was.upper), shown]]
    for name, said in _MEASURES if old else ():
        value, before = getattr(new, name), getattr(old, name)
        body.append([said, f"{value:.3f}", f"{before:.3f}", f"{value - before:+.3f}"])
    champion = f"champion, version {compared.facts.champion}"
    yield table([f"on {new.rows:,} test rows", "this model", champion, "difference"], body)


def _slices(compared: Compared) -> Iterable[str]:
    before = {(one.column, one.value): one for one in compared.old_slices}
    body = []
    for one in compared.facts.slices[:_MOST_SLICES]:
        old = before.get((one.column, one.value))
        was = _between(old.accuracy, old.lower, old.upper) if old else ""
        now = _between(one.accuracy, one.lower, one.upper)
        body.append([cell(one.column), cell(one.value), f"{one.rows:,}", now, was])
    if body:
        titles = ["column", "value", "rows", "accuracy (95 % interval)", "champion's"]
        yield from _folded(f"Slices: {len(compared.facts.slices)}", table(titles, body))


def _folded(title: str, text: str) -> Iterable[str]:
    yield f"<details><summary>{title}</summary>"
    yield text
    yield "</details>"


def _between(value: float, lower: float, upper: float) -> str:
    return f"{value:.3f} ({lower:.3f} to {upper:.3f})"


def _flat(text: str) -> str:
    return " ".join(text.split()).replace("<", "\\<")


def _code(text: str) -> str:
    """Text as code that ends neither itself nor its cell."""
    flat = " ".join(text.split()).replace("`", "'").replace("|", "\\|")
    return f"`{flat}`" if flat else ""


def _fact(text: str) -> str:
    """A value as code; an address as a link."""
    return f"<{text}>" if re.fullmatch(r"https?://[^\s<>|`]+", text) else _code(text)
