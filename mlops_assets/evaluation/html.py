"""The evaluation report: one HTML file that needs nothing beside it.

Belongs here: what the page shows, and where a bar's marks lie. Not here: how the page looks (`report.html.j2`), the
facts themselves.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from mlops_assets.evaluation.facts import ADAPTIVITY, MODES, VERDICTS, Facts, Judged, judged, not_asked
from mlops_assets.evaluation.metrics import ClassReport
from mlops_assets.gate.clauses import Clause
from mlops_assets.gate.decide import ClauseResult

if TYPE_CHECKING:
    from jinja2 import Environment

_TEMPLATE: Final = "report.html.j2"
_CLASSES_SHOWN: Final = 20
_PAIRS_SHOWN: Final = 10
_LONGEST_NAME: Final = 80

_WIDTH: Final = 300.0
"""Of a clause's drawing; the template draws in the same units."""
_INSET: Final = 12.0
_SPREAD: Final = 0.15
"""What the axis shows beyond the outermost mark, as a part of the distance between the marks."""


class Bar(NamedTuple):
    """A clause as a drawing: horizontal places from 0 to 300.

    Attributes:
        lower: Where the interval begins; the edge for one that has no end there.
        upper: Where it ends.
        estimate: Where the estimate is.
        threshold: Where the threshold is.
        holds: Where the region begins in which the clause holds, and how wide that is.
    """

    lower: float
    upper: float
    estimate: float
    threshold: float
    holds: tuple[float, float]


class _Drawn(NamedTuple):
    judged: Judged
    bar: Bar | None


def report_html(facts: Facts, pictures: Mapping[str, bytes] | None = None) -> bytes:
    """Write the report.

    Args:
        facts: What it tells.
        pictures: PNG images for it: `confusion`, `calibration`, `mistakes`; none is needed.

    Returns:
        The page in UTF-8. It refers to nothing outside itself and runs no script.
    """
    evaluation = facts.evaluation
    images = {name: base64.b64encode(data).decode() for name, data in (pictures or {}).items()}
    worst = sorted((one for one in evaluation.classes if one.recall is not None), key=lambda one: one.recall or 0.0)
    page = _environment().get_template(_TEMPLATE)
    columns: dict[str, list[object]] = {}
    for one in facts.slices:
        columns.setdefault(one.column, []).append(one)
    return page.render(
        facts=facts,
        evaluation=evaluation,
        images=images,
        clauses=[_Drawn(one, bar(one.clause, one.result)) for one in judged(facts)],
        verdicts=VERDICTS,
        mode=MODES.get(facts.rule.mode, ""),
        adaptivity=ADAPTIVITY.get(facts.rule.adaptivity, ""),
        not_asked=not_asked(facts),
        worst_classes=worst[:_CLASSES_SHOWN] if len(evaluation.classes) > _CLASSES_SHOWN else None,
        recall_floor=_floor([one.recall_lower for one in evaluation.classes]),
        columns=columns,
        slice_floor=_floor([one.lower for one in facts.slices]),
        provenance={"data": facts.dataset, "commit of the data": facts.commit or "unknown", **facts.provenance},
        confused=_confused(evaluation.classes, evaluation.confusion),
    ).encode()


def bar(clause: Clause, result: ClauseResult) -> Bar | None:
    """Lay a clause out on an axis of its own; None for one without numbers."""
    if result.estimate is None or result.lower is None or result.upper is None:
        return None
    marks = [one for one in (result.lower, result.upper, result.estimate, result.threshold) if math.isfinite(one)]
    room = (max(marks) - min(marks)) * _SPREAD or 0.01
    low, high = min(marks) - room, max(marks) + room

    def place(value: float) -> float:
        inside = min(max(value, low), high)
        return round(_INSET + (inside - low) / (high - low) * (_WIDTH - 2 * _INSET), 1)

    threshold = place(result.threshold)
    above = clause.direction in {">", ">="}
    holds = (threshold, round(_WIDTH - threshold, 1)) if above else (0.0, threshold)
    return Bar(place(result.lower), place(result.upper), place(result.estimate), threshold, holds)


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"decimals": _decimals, "short": _short}
    return environment


def _decimals(value: float | None, digits: int = 3) -> str:
    """Write a number; a dash for one that does not exist, a true minus for the eye."""
    if value is None:
        return "–"  # noqa: RUF001  (what a table shows for nothing)
    rounded = round(value, digits) + 0.0  # no negative zero
    return f"{rounded:.{digits}f}".replace("inf", "∞").replace("-", "−")  # noqa: RUF001


def _short(text: object) -> str:
    """Leave out the middle of a long name: names of one family differ at either end."""
    flat = str(text)
    if len(flat) <= _LONGEST_NAME:
        return flat
    half = _LONGEST_NAME // 2
    return f"{flat[:half]}…{flat[1 - half :]}"


def _floor(bounds: Sequence[float | None]) -> float:
    """Where the axis of shares begins, so that the lowest bound is on it."""
    lowest = min((one for one in bounds if one is not None), default=0.0)
    return min(math.floor(lowest * 10) / 10, 0.9)


def _confused(classes: Sequence[ClassReport], confusion: Sequence[Sequence[int]]) -> list[tuple[int, str, str, float]]:
    """The pairs of classes most often confused: rows, true class, predicted class, share of the true class."""
    pairs = [
        (count, classes[true].name, classes[predicted].name, count / classes[true].support)
        for true, row in enumerate(confusion)
        for predicted, count in enumerate(row)
        if count and true != predicted
    ]
    return sorted(pairs, key=lambda pair: -pair[0])[:_PAIRS_SHOWN]
