"""From a condition and paired predictions to a verdict that people can read.

Belongs here: which interval a clause gets, three-valued logic, and the sentence. Not here: the intervals themselves,
the condition's grammar, what a promotion does.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, assert_never, get_args

import numpy as np
from numpy.typing import NDArray

from mlops_assets.gate import GateError
from mlops_assets.gate.condition import Clause, Condition
from mlops_assets.gate.intervals import Interval, empirical_bernstein, tango, wilson

Mode = Literal["fp-free", "fn-free"]
Verdict = Literal["true", "false", "unknown", "by hand"]
ClauseVerdict = Literal["true", "false", "unknown", "skipped"]

# Beyond this the normal approximation behind the score intervals means nothing on test sets of a usual size.
_MOST_RELIABLE: Final = 0.999999

_NAMES: Final = {
    "n": "accuracy",
    "o": "accuracy of the champion",
    "d": "share of differing predictions",
    "n - o": "difference",
    "o - n": "difference",
}


@dataclass(frozen=True, eq=False)
class Paired:
    """What two models said about the same test rows, in the same order.

    Attributes:
        label: True classes, shape (rows,), numbers or text.
        new: Classes that the new model predicted, shape (rows,), of the same kind as the labels.
        old: Classes that the champion predicted, likewise; None when there is no champion.
    """

    label: NDArray[Any]
    new: NDArray[Any]
    old: NDArray[Any] | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be compared row by row.

        Raises:
            GateError: Not one value per row, no rows, a missing value, or numbers beside text.
        """
        columns = {"labels": self.label, "new model's predictions": self.new}
        if self.old is not None:
            columns["champion's predictions"] = self.old
        kinds = {name: _kind(name, values) for name, values in columns.items()}
        rows = {name: len(values) for name, values in columns.items()}
        if len(set(rows.values())) > 1:
            told = ", ".join(f"{count} {name}" for name, count in rows.items())
            message = f"the test rows do not match ({told}): pair predictions of one and the same test set"
            raise GateError(message)
        if not len(self.label):
            message = "there are no test rows to judge by: give the gate at least one"
            raise GateError(message)
        if len(set(kinds.values())) > 1:
            told = ", ".join(f"{name} are {kind}" for name, kind in kinds.items())
            message = f"the classes do not match ({told}): write the classes of all of them in one way"
            raise GateError(message)

    def __len__(self) -> int:
        """Return the number of test rows."""
        return len(self.label)


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
        method: Name of the interval.
        rows: Test rows it rests on.
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


@dataclass(frozen=True)
class Decision:
    """The gate's answer.

    Attributes:
        promote: Whether the new model becomes champion without a hand.
        verdict: "false" if any clause is, else "unknown" if any is, else "true"; "by hand" if none could be judged.
        reason: One sentence for people.
        clauses: Every clause of the condition, in its order.
    """

    promote: bool
    verdict: Verdict
    reason: str
    clauses: tuple[ClauseResult, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the decision as what JSON can hold."""
        return {**asdict(self), "clauses": [asdict(clause) for clause in self.clauses]}


def decide(condition: Condition, predictions: Paired, *, reliability: float, mode: Mode = "fp-free") -> Decision:
    """Judge a new model.

    A clause is true when its bound lies beyond the threshold, false when the opposite bound lies short of it, else
    unknown. The permitted error, 1 - reliability, is split evenly over the clauses that are judged (union bound), so
    that it limits both kinds of error of the whole: a condition that fails called true, one that holds called false.
    The tolerance of a clause takes no part.

    Args:
        condition: What has to hold.
        predictions: What the models said on the test rows; without a champion, clauses on `o` or `d` are skipped.
        reliability: One-sided confidence in the verdict, from 0.5 to 0.999999.
        mode: "fp-free" promotes on "true" alone, "fn-free" also on "unknown".

    Returns:
        The decision; without a champion and without a clause on `n` alone it is "by hand".

    Raises:
        GateError: The reliability or the mode is none.
    """
    _check_reliability(reliability)
    if mode not in get_args(Mode):
        message = f"the gate's mode '{mode}' is unknown: choose fp-free or fn-free"
        raise GateError(message)
    judged = condition.clauses if predictions.old is not None else condition.absolute
    if not judged:
        rule = " ".join(condition.text.split())
        reason = f"there is no champion yet that '{rule}' could compare with: the first promotion needs a hand"
        return Decision(False, "by hand", reason, tuple(_skipped(c, predictions) for c in condition.clauses))
    level = _level(reliability, len(judged))
    results = tuple(
        _judge(clause, predictions, level) if clause in judged else _skipped(clause, predictions)
        for clause in condition.clauses
    )
    verdicts = {result.verdict for result in results}
    verdict: Verdict = "false" if "false" in verdicts else "unknown" if "unknown" in verdicts else "true"
    promote = verdict == "true" or (verdict == "unknown" and mode == "fn-free")
    return Decision(promote, verdict, _reason(results, condition, verdict, mode), results)


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
    bound = tango(each, each, rows, _level(reliability, clauses)).lower
    hundredths = max(1, math.floor(-bound * 100))
    while not bound > -hundredths / 100:
        hundredths += 1
    return hundredths / 100


def _judge(clause: Clause, predictions: Paired, level: float) -> ClauseResult:
    interval, method = _interval(clause, predictions, level)
    return ClauseResult(
        text=clause.text,
        verdict=_verdict(clause, interval),
        estimate=interval.estimate,
        lower=interval.lower,
        upper=interval.upper,
        threshold=clause.threshold,
        level=level,
        method=method,
        rows=len(predictions),
    )


def _skipped(clause: Clause, predictions: Paired) -> ClauseResult:
    return ClauseResult(clause.text, "skipped", None, None, None, clause.threshold, None, None, len(predictions))


def _interval(clause: Clause, predictions: Paired, level: float) -> tuple[Interval, str]:
    """Bound the clause's linear form by the sharpest interval that fits it."""
    rows = len(predictions)
    columns = _columns(predictions)
    factors = clause.coefficients
    if len(factors) == 1:
        ((name, factor),) = factors.items()
        return _scaled(wilson(int(columns[name].sum()), rows, level), factor), "Wilson score"
    if set(factors) == {"n", "o"} and factors["n"] == -factors["o"]:
        gains = int((columns["n"] & ~columns["o"]).sum())
        losses = int((columns["o"] & ~columns["n"]).sum())
        return _scaled(tango(gains, losses, rows, level), factors["n"]), "Tango score"
    values = np.zeros(rows)
    for name, factor in factors.items():
        values += factor * columns[name]
    lowest, highest = clause.range
    # The range is rounded once, the values at every addition.
    return empirical_bernstein(values.clip(lowest, highest), lowest, highest, level), "empirical Bernstein"


def _columns(predictions: Paired) -> dict[str, NDArray[np.bool_]]:
    """Return, per variable of a condition, what each row contributes to it; shape (rows,)."""
    columns = {"n": predictions.new == predictions.label}
    if predictions.old is not None:
        columns["o"] = predictions.old == predictions.label
        columns["d"] = predictions.new != predictions.old
    return columns


def _scaled(interval: Interval, factor: float) -> Interval:
    estimate, first, second = (value * factor for value in interval)
    return Interval(estimate, min(first, second), max(first, second))


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


def _reason(results: tuple[ClauseResult, ...], condition: Condition, verdict: Verdict, mode: Mode) -> str:
    """Say what decided: the false clauses if any, else the unknown ones if any, else all true ones."""
    deciding = [
        _sentence(result, clause)
        for result, clause in zip(results, condition.clauses, strict=True)
        if result.verdict == verdict
    ]
    if verdict == "unknown":
        deciding.append("fn-free mode promotes all the same" if mode == "fn-free" else "more test rows would decide it")
    skipped = [result.text for result in results if result.verdict == "skipped"]
    if skipped:
        deciding.append(f"skipped for want of a champion: {', '.join(skipped)}")
    return "; ".join(deciding)


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
    rows = f"{result.rows} {'rows' if set(clause.coefficients) == {'n'} else 'paired rows'}"
    estimate = _shown(result.estimate, clause.threshold)
    confidence = f"{100 * result.level:.6g} % confidence"
    return f"{result.text} {said}: {name} {estimate}, {bounds} with {confidence} ({result.method}, {rows})"


def _shown(value: float, threshold: float) -> str:
    """Write a number with three decimals, or with as many as show on which side of the threshold it lies."""
    for decimals in range(3, 10):
        rounded = round(value, decimals)
        if (rounded > threshold) == (value > threshold) and (rounded < threshold) == (value < threshold):
            break
    return f"{rounded + 0.0:.{decimals}f}"


def _level(reliability: float, clauses: int) -> float:
    return 1 - (1 - reliability) / clauses


def _check_reliability(reliability: float) -> None:
    if not 0.5 <= reliability <= _MOST_RELIABLE:
        message = f"a reliability of {reliability} is impossible: choose one from 0.5 to {_MOST_RELIABLE}, such as 0.95"
        raise GateError(message)


def _kind(name: str, values: NDArray[Any]) -> str:
    """Tell numbers from text, having refused whatever is neither, or missing."""
    if values.ndim != 1:
        message = f"the {name} have shape {values.shape}: pass one predicted class per row, not probabilities"
        raise GateError(message)
    kind = values.dtype.kind
    if kind == "O":
        missing = any(value is None or value != value for value in values)  # noqa: PLR0124  (NaN alone differs from itself)
        text = all(isinstance(value, str) for value in values)
    else:
        missing = kind == "f" and bool(np.isnan(values).any())
        text = kind in "UT"
    if missing:
        message = f"a value is missing among the {name}: predict every test row, and label each"
        raise GateError(message)
    if not text and kind not in "biuf":
        message = f"the {name} are neither numbers nor text: pass classes of one kind"
        raise GateError(message)
    return "text" if text else "numbers"
