"""From a condition and paired predictions to a verdict that people can read.

Belongs here: three-valued logic over clauses, and the sentence. Not here: which interval a clause gets (`bounds.py`),
the condition's grammar, what a promotion does.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Literal, Self, assert_never, get_args

import numpy as np

from mlops_assets.gate import GateError
from mlops_assets.gate.bounds import MOST_EFFICIENT, Method, bound, more_rows
from mlops_assets.gate.clauses import Clause, Condition
from mlops_assets.gate.intervals import Interval, certified_exceeds, efficient_is_sound, tango
from mlops_assets.gate.metrics import Meter
from mlops_assets.gate.rows import Paired

Mode = Literal["fp-free", "fn-free"]
Verdict = Literal["true", "false", "unknown", "by hand"]
ClauseVerdict = Literal["true", "false", "unknown", "skipped"]

# Closer to one a float does not tell levels apart.
_MOST_RELIABLE: Final = 1 - 1e-15
_HIGHEST_LEVEL: Final = 1 - 2.0**-53

_NAMES: Final = {
    "n": "accuracy",
    "o": "accuracy of the champion",
    "d": "share of differing predictions",
    "a": "accuracy of the anchor",
    "n - o": "difference",
    "n - a": "difference",
    "o - n": "difference",
}


@dataclass(frozen=True)
class ClauseResult:
    """One clause, judged.

    Attributes:
        text: The clause as written.
        verdict: "skipped" when it needs a champion and there is none; the numbers are None then.
        estimate: Value of the clause's linear form on the test rows.
        lower: What it is at least, at `level`.
        upper: What it is at most, at `level`.
        threshold: What it is compared with.
        level: One-sided confidence of each bound.
        method: Name of the interval, with its source.
        rows: Test rows it rests on.
        note: Why the interval is not the usual one, what it is worth, that the rows are too few for the clause's
            tolerance; else "".
        more_rows: How many more labelled rows would settle an unknown clause at today's estimate and disagreement; None
            where it is settled, or where that cannot be told.
    """

    text: str
    verdict: ClauseVerdict
    estimate: float | None
    lower: float | None
    upper: float | None
    threshold: float
    level: float | None
    method: str | None
    rows: int
    note: str = ""
    more_rows: int | None = None


@dataclass(frozen=True)
class Decision:
    """The gate's answer.

    Attributes:
        promote: Whether the new model becomes champion without a hand.
        verdict: "false" if any clause is, else "unknown" if any is, else "true"; "by hand" if none could be judged.
        reason: One sentence for people.
        clauses: Every clause of the condition, in its order.
        disagree: Rows on which the new model and the champion differ.
    """

    promote: bool
    verdict: Verdict
    reason: str
    clauses: tuple[ClauseResult, ...]
    disagree: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return the decision as what JSON can hold; a bound at infinity is None."""
        stored = asdict(self)
        for clause in stored["clauses"]:
            clause |= {end: None for end in ("lower", "upper") if not math.isfinite(clause[end] or 0.0)}
        return {**stored, "clauses": list(stored["clauses"])}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Self:
        """Read what `to_dict` wrote.

        Args:
            stored: The dictionary, as it came out of JSON.

        Returns:
            An equal decision.

        Raises:
            GateError: A part is missing or unknown.
        """
        try:
            clauses = tuple(_unbounded(ClauseResult(**clause)) for clause in stored["clauses"])
            return cls(**{**stored, "clauses": clauses})
        except (KeyError, TypeError) as error:
            message = f"this stored decision cannot be read ({error}): let the gate decide again"
            raise GateError(message) from error


def decide(
    condition: Condition,
    paired: Paired,
    *,
    reliability: float,
    mode: Mode = "fp-free",
    method: Method = "efficient",
) -> Decision:
    """Judge a new model.

    A clause is true when its bound lies beyond the threshold, false when the opposite bound lies short of it, else
    unknown. The permitted error, 1 - reliability, is split evenly over the clauses that are judged (union bound), so
    that it limits both kinds of error of the whole: a condition that fails called true, one that holds called false.
    The tolerance of a clause takes no part.

    Args:
        condition: What has to hold.
        paired: What the models said on the test rows; clauses on a model that is not there are skipped.
        reliability: One-sided confidence in the verdict, from 0.5 to 1 - 1e-15.
        mode: "fp-free" promotes on "true" alone, "fn-free" also on "unknown".
        method: "efficient" takes score intervals where they err at most a quarter more often than stated in the
            direction of the claim, and the bootstrap, which promises no such thing, for metrics that have no interval;
            "certified" takes those alone that never err more often, on any test set, and leaves a clause without one
            unknown.

    Returns:
        The decision; "by hand" when no clause can be judged, for want of a champion or of an anchor.

    Raises:
        ConditionError: A metric, class or slice is not there; points at the term.
        GateError: The reliability, the mode or the method is none, or a label is none of the classes.
    """
    _check_reliability(reliability)
    _check_choice("mode", mode, get_args(Mode))
    _check_choice("method", method, get_args(Method))
    meter = Meter(condition, paired)
    disagree = 0 if paired.old is None else int((paired.new.predicted != paired.old.predicted).sum())
    missing = _missing(paired)
    judged = [clause for clause in condition.clauses if not clause.models & set(missing)]
    if not judged:
        rule = " ".join(condition.text.split())
        wanted = " and ".join(_wanted(condition.clauses, missing)).removeprefix("a ").removeprefix("an ")
        reason = f"there is no {wanted} yet that '{rule}' could compare with: the first promotion needs a hand"
        skipped = tuple(_skipped(clause, len(paired)) for clause in condition.clauses)
        return Decision(False, "by hand", reason, skipped, disagree)
    level = _level(reliability, len(judged))
    results = tuple(
        _skipped(clause, len(paired)) if clause.models & set(missing) else _judge(clause, meter, level, method)
        for clause in condition.clauses
    )
    verdicts = {result.verdict for result in results}
    verdict: Verdict = "false" if "false" in verdicts else "unknown" if "unknown" in verdicts else "true"
    promote = verdict == "true" or (verdict == "unknown" and mode == "fn-free")
    without = [clause for clause in condition.clauses if clause not in judged]
    reason = _reason(results, condition, verdict, mode, _wanted(without, missing))
    return Decision(promote, verdict, reason, results, disagree)


def smallest_margin(rows: int, *, reliability: float, disagreement: float, clauses: int = 2) -> float:
    """Find the margin that a test set can decide: how much worse `n - o > -margin` has to allow.

    Args:
        rows: Rows of the test set, at least one.
        reliability: As for `decide`.
        disagreement: Expected share of rows on which exactly one of the models is right, from 0 to 1.
        clauses: Clauses of the condition that share the permitted error.

    Returns:
        The smallest margin, in steps of 0.01, for which the clause comes out true when both models are equally good.

    Raises:
        GateError: An argument is out of its range.
    """
    _check_reliability(reliability)
    if not 0 <= disagreement <= 1 or clauses < 1:
        message = f"a disagreement of {disagreement} over {clauses} clauses is impossible: give a share and a count"
        raise GateError(message)
    each = min(round(disagreement * rows / 2), rows // 2)
    level = _level(reliability, clauses)
    # A difference is above -1 whatever the rows say.
    margins = np.arange(1, 102) / 100
    sound = efficient_is_sound(each, each, rows, margins) & (level <= MOST_EFFICIENT)
    enough = np.where(
        sound, tango(each, each, rows, level).lower > -margins, certified_exceeds(each, each, rows, level, -margins)
    )
    return float(margins[enough.argmax()])


def _judge(clause: Clause, meter: Meter, level: float, method: Method) -> ClauseResult:
    found = bound(clause, {term: meter.measure(term) for term in clause.coefficients}, level, method)
    verdict = _verdict(clause, found.interval)
    value, lower, upper = found.interval
    notes = [found.note] if found.note else []
    width = max(value - lower, upper - value)
    if clause.tolerance is not None and width > clause.tolerance:
        notes.append(f"too few rows for +/- {clause.tolerance:g}: they tell +/- {width:.2g}")
    return ClauseResult(
        text=clause.text,
        verdict=verdict,
        estimate=value,
        lower=lower,
        upper=upper,
        threshold=clause.threshold,
        level=level,
        method=found.method,
        rows=found.rows,
        note="; ".join(notes),
        more_rows=more_rows(clause, found, level, method) if verdict == "unknown" else None,
    )


def _skipped(clause: Clause, rows: int) -> ClauseResult:
    return ClauseResult(clause.text, "skipped", None, None, None, clause.threshold, None, None, rows)


def _unbounded(result: ClauseResult) -> ClauseResult:
    """Put back the infinity that JSON does not hold."""
    if result.estimate is None:
        return result
    return replace(
        result,
        lower=-math.inf if result.lower is None else result.lower,
        upper=math.inf if result.upper is None else result.upper,
    )


def _missing(paired: Paired) -> dict[str, str]:
    """The variables that nothing is known of, and what they stand for."""
    missing = {"o": "a champion", "d": "a champion"} if paired.old is None else {}
    return missing if paired.anchor is not None else missing | {"a": "an anchor"}


def _wanted(clauses: Iterable[Clause], missing: Mapping[str, str]) -> list[str]:
    """Name what is missing for clauses, each once."""
    models = {model for clause in clauses for model in clause.models}
    return list(dict.fromkeys(name for model, name in missing.items() if model in models))


def _verdict(clause: Clause, interval: Interval) -> ClauseVerdict:
    threshold = clause.threshold
    match clause.direction:
        case ">":
            holds, fails = interval.lower > threshold, interval.upper <= threshold
        case ">=":
            holds, fails = interval.lower >= threshold, interval.upper < threshold
        case "<":
            holds, fails = interval.upper < threshold, interval.lower >= threshold
        case "<=":
            holds, fails = interval.upper <= threshold, interval.lower > threshold
        case _:
            assert_never(clause.direction)
    return "true" if holds else "false" if fails else "unknown"


def _reason(
    results: tuple[ClauseResult, ...], condition: Condition, verdict: Verdict, mode: Mode, wanted: list[str]
) -> str:
    """Say what decided: the false clauses if any, else the unknown ones if any, else all true ones."""
    deciding = [
        _sentence(result, clause)
        for result, clause in zip(results, condition.clauses, strict=True)
        if result.verdict == verdict
    ]
    if verdict == "unknown":
        deciding.append("fn-free mode promotes all the same" if mode == "fn-free" else _advice(results))
    skipped = [result.text for result in results if result.verdict == "skipped"]
    if skipped:
        deciding.append(f"skipped for want of {' and '.join(wanted)}: {', '.join(skipped)}")
    return "; ".join(deciding)


def _advice(results: tuple[ClauseResult, ...]) -> str:
    """Say what would settle the unknown clauses."""
    needed = [result.more_rows for result in results if result.verdict == "unknown"]
    if None in needed:
        return "it cannot be told how many test rows would decide it"
    return f"about {max(rows for rows in needed if rows)} more labelled test rows like these would decide it"


def _sentence(result: ClauseResult, clause: Clause) -> str:
    assert result.estimate is not None
    assert result.lower is not None
    assert result.upper is not None
    assert result.level is not None
    lower, upper = (_shown(bound, clause.threshold) for bound in (result.lower, result.upper))
    grows = clause.direction in {">", ">="}
    if result.verdict == "unknown":
        said, bounds = "is undecided", f"at least {lower} and at most {upper}, each"
    elif result.verdict == "true":
        said, bounds = "holds", f"at least {lower}" if grows else f"at most {upper}"
    else:
        said, bounds = "fails", f"at most {upper}" if grows else f"at least {lower}"
    name = _NAMES.get(clause.form, "value")
    rows = f"{result.rows} {'rows' if len(clause.models) == 1 and 'd' not in clause.models else 'paired rows'}"
    estimate = _shown(result.estimate, clause.threshold)
    error = 1 - result.level
    confidence = f"{100 * result.level:.6g} % confidence" if error > 1e-7 else f"confidence 1 - {error:.1e}"
    note = f"; {result.note}" if result.note else ""
    return f"{result.text} {said}: {name} {estimate}, {bounds} with {confidence} ({result.method}, {rows}{note})"


def _shown(value: float, threshold: float) -> str:
    """Write a number with three decimals, or with as many as show on which side of the threshold it lies."""
    for decimals in range(3, 10):
        rounded = round(value, decimals)
        if (rounded > threshold) == (value > threshold) and (rounded < threshold) == (value < threshold):
            break
    return f"{rounded + 0.0:.{decimals}f}"


def _level(reliability: float, clauses: int) -> float:
    return min(_HIGHEST_LEVEL, 1 - (1 - reliability) / clauses)


def _check_reliability(reliability: float) -> None:
    if not 0.5 <= reliability <= _MOST_RELIABLE:
        message = f"a reliability of {reliability} is impossible: choose one from 0.5 to below 1, such as 0.95"
        raise GateError(message)


def _check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        message = f"the gate's {name} '{value}' is unknown: choose {' or '.join(known)}"
        raise GateError(message)
