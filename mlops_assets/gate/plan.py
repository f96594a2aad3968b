"""How many test rows a condition needs, so that each clause is decided with the precision after its `+/-`.

Belongs here: sizes of test sets, and the bounds that they come from. Not here: the bounds that a decision uses
(`intervals.py`), and what a test set may still be asked (`budget.py`).

A clause counts as decided when an estimate that lies its tolerance beyond the threshold makes it true, and one that
lies as far short of it makes it false: ease.ml/ci's notion of precision, written for one-sided bounds. The permitted
errors get as small as 1e-16 (`full` halves them at every step), so they are handled as logarithms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from mlops_assets.gate import GateError
from mlops_assets.gate.bounds import CLOPPER_PEARSON, MOST_EFFICIENT, TANGO, TRINOMIAL, WILSON, Method
from mlops_assets.gate.budget import Adaptivity, Budget
from mlops_assets.gate.clauses import Clause, Condition, Slice, Term, decimal
from mlops_assets.gate.intervals import (
    certified_exceeds,
    clopper_pearson,
    efficient_is_sound,
    tango,
    wilson,
    wilson_is_sound,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Counts = NDArray[np.int64]

USUAL_DISAGREEMENT: Final = 0.1
"""Assumed share of rows on which exactly one of two models is right, where neither condition nor user names one."""

# Beyond this many rows a number is of no use to anybody, and counts no longer fit the intervals.
_MOST_ROWS: Final = 10**9

# Counts are whole, so whether n rows suffice flickers, about as often as a tolerance adds up to one more row: only what
# holds for so many of these turns counts.
_FLICKER: Final = 4

# Nearer to one a level is no longer told from one: 1 - 1e-15 is off by a tenth already.
_SMALLEST_ERROR: Final = 1e-15

# Shares of rows, by the rows that they are shares of.
_SHARES: Final = {
    "": "rows",
    "accuracy": "labelled rows",
    "selection_rate": "rows",
    "recall": "labelled rows of the positive class",
    "false_negative_rate": "labelled rows of the positive class",
    "false_positive_rate": "labelled rows of the negative class",
}

_HOEFFDING: Final = "Hoeffding 1963, two-sided"
_CHERNOFF: Final = "Chernoff with Kullback-Leibler divergence, one-sided (Hoeffding 1963, theorem 1)"
_BENNETT: Final = "Bennett, two-sided, variance at most {} (ease.ml/ci, Renggli et al. 2019: d is tested first)"


_TOO_STRICT: Final = "the gate itself cannot decide so finely with so small an error"


@dataclass(frozen=True)
class Size:
    """A number of rows, and the bound that makes them enough, with its source."""

    rows: int
    bound: str


@dataclass(frozen=True)
class ClausePlan:
    """What one clause needs.

    Attributes:
        text: The clause as written.
        unit: Which rows are counted.
        certified: What suffices whatever the distribution; None where no number can be given.
        efficient: What suffices for the default method of the gate; None likewise.
        alternatives: Other bounds that were considered, by the rows that they need.
        note: What the numbers assume, or why there are none.
    """

    text: str
    unit: str
    certified: Size | None
    efficient: Size | None
    alternatives: tuple[Size, ...]
    note: str


@dataclass(frozen=True)
class Plan:
    """What a condition needs.

    Attributes:
        reliability: One-sided confidence over all steps.
        steps: How many decisions the test set is for.
        adaptivity: What may be learnt from a decision before the next one.
        log_error: Natural logarithm of the error permitted to one clause of one decision.
        clauses: Every clause, in the order of the condition.
    """

    reliability: float
    steps: int
    adaptivity: Adaptivity
    log_error: float
    clauses: tuple[ClausePlan, ...]

    @property
    def certified(self) -> int | None:
        """Rows that suffice for all clauses on whole test sets with `certified`; None when none has a number."""
        return max((c.certified.rows for c in self.clauses if c.certified and c.unit in _WHOLE), default=None)

    @property
    def efficient(self) -> int | None:
        """The same with `efficient`."""
        return max((c.efficient.rows for c in self.clauses if c.efficient and c.unit in _WHOLE), default=None)

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as what JSON can hold."""
        return {**asdict(self), "certified": self.certified, "efficient": self.efficient}


_WHOLE: Final = frozenset({"rows", "labelled rows"})


def plan(
    condition: Condition,
    *,
    reliability: float,
    steps: int = 1,
    adaptivity: Adaptivity = "none",
    disagreement: float | None = None,
) -> Plan:
    """Size a test set.

    Args:
        condition: What will be asked.
        reliability: One-sided confidence that no decision of all the steps is wrong, from 0.5 to below 1.
        steps: How many decisions.
        adaptivity: What those who make models learn from the decisions (see `Budget`).
        disagreement: Expected share of rows on which exactly one of the two models is right, above 0 to 1; default:
            what a clause on `d` leaves, else `USUAL_DISAGREEMENT`.

    Returns:
        The sizes, clause by clause.

    Raises:
        GateError: An argument is out of its range, or a decision would have to be all but certain.
    """
    if disagreement is not None and not 0 < disagreement <= 1:
        message = f"a disagreement of {disagreement} is impossible: give a share of rows, such as 0.08"
        raise GateError(message)
    log_error = math.log(Budget(reliability, steps, adaptivity).error / len(condition.clauses))
    sized = tuple(_sized(clause, condition, log_error, disagreement) for clause in condition.clauses)
    return Plan(reliability, steps, adaptivity, log_error, sized)


def exceeds(
    gains: Counts, losses: Counts, rows: Counts, margin: float, *, level: float, method: Method
) -> NDArray[np.bool_]:
    """Apply the gate's rule for `n - o > margin` to many test sets at once.

    Args:
        gains: Rows that only the new model has right, shape (sets,).
        losses: Rows that only the old one has right, shape (sets,).
        rows: Rows of each test set, shape (sets,).
        margin: What is to be exceeded.
        level: One-sided confidence.
        method: The gate's method; where `efficient` is not sound, the gate falls back on `certified`.

    Returns:
        Whether each comes out true, shape (sets,).
    """
    found = np.zeros(len(gains), dtype=bool)
    sound = np.full(len(gains), method == "efficient" and level <= MOST_EFFICIENT)
    sound &= efficient_is_sound(gains, losses, rows, margin)
    found[sound] = tango(gains[sound], losses[sound], rows[sound], level).lower > margin
    found[~sound] = certified_exceeds(gains[~sound], losses[~sound], rows[~sound], level, margin)
    return found


def share_exceeds(
    successes: Counts, rows: Counts, threshold: float, *, level: float, method: Method, claimed: bool = True
) -> NDArray[np.bool_]:
    """Apply the gate's rule for `n > threshold` to many test sets at once.

    Args:
        successes: Rows that the new model has right, shape (sets,).
        rows: Rows of each test set, shape (sets,).
        threshold: What is to be exceeded.
        level: One-sided confidence.
        method: The gate's method, as for `exceeds`.
        claimed: Whether that is what the clause claims, rather than what refutes it.

    Returns:
        Whether each comes out true, shape (sets,).
    """
    found = np.zeros(len(rows), dtype=bool)
    sound = np.full(len(rows), method == "efficient" and level <= MOST_EFFICIENT)
    sound &= wilson_is_sound(rows, threshold, above=claimed)
    for which, bounds in ((sound, wilson), (~sound, clopper_pearson)):
        found[which] = bounds(successes[which], rows[which], level).lower > threshold
    return found


def _sized(clause: Clause, condition: Condition, log_error: float, disagreement: float | None) -> ClausePlan:
    if clause.tolerance is None:
        return _without(clause, "no number without a precision: write +/- and one behind the clause")
    factors = clause.coefficients
    slices = {term.slice for term in factors}
    metrics = {term.metric for term in factors}
    models = {term.model for term in factors}
    if len(factors) == 1:
        ((term, factor),) = factors.items()
        if unit := _unit(term):
            return _of_a_share(clause, unit, factor, log_error)
    elif len(slices) == len(metrics) == 1 and len(models) == 2 and not sum(factors.values()):
        term, factor = next(iter(factors.items()))
        if unit := _unit(term):
            # What a clause says of `d` bounds the rows on which one of these two is right, and no others.
            bounded = models == {"n", "o"} and metrics == {"accuracy"}
            shares = _disagreement(condition.clauses if bounded else (), term.slice, disagreement)
            return _of_a_difference(clause, unit, abs(factor), log_error, shares)
    elif len(slices) == 1 and metrics <= {"accuracy", ""}:
        return _of_a_mean(clause, next(iter(factors)), log_error)
    return _without(clause, "no number before there are predictions: how far this metric varies depends on them")


def _of_a_share(clause: Clause, unit: str, factor: float, log_error: float) -> ClausePlan:
    assert clause.tolerance is not None
    threshold, tolerance = clause.threshold / factor, clause.tolerance / abs(factor)
    above, below = min(1.0, threshold + tolerance), max(0.0, threshold - tolerance)
    claims_more = (clause.direction in {">", ">="}) == (factor > 0)

    def enough(method: Method) -> int | None:
        def decides(rows: Counts, level: float) -> NDArray[np.bool_]:
            rule = partial(share_exceeds, level=level, method=method)
            high = rule(_ceil_counts(rows * above), rows, threshold, claimed=claims_more)
            # Short of a share is beyond the share of all others.
            low = rule(_ceil_counts(rows * (1 - below)), rows, 1 - threshold, claimed=not claims_more)
            return high & low

        return _smallest(decides, log_error, tolerance)

    closed = [Size(_ceil((math.log(2) - log_error) / (2 * tolerance**2)), _HOEFFDING)]
    nearest = min((_divergence(end, threshold) for end in (above, below) if 0 < threshold < 1), default=0.0)
    if nearest:
        closed.append(Size(_ceil(-log_error / nearest), _CHERNOFF))
    note = "needs no labels" if unit.startswith("rows") else ""
    return _clause_plan(clause, unit, (CLOPPER_PEARSON, WILSON), enough, closed=closed, note=note)


def _of_a_difference(
    clause: Clause, unit: str, factor: float, log_error: float, assumed: tuple[float, float]
) -> ClausePlan:
    assert clause.tolerance is not None
    threshold, tolerance = clause.threshold / factor, clause.tolerance / factor
    # A difference takes at least as many rows that differ.
    most, usual = (min(1.0, max(share, abs(threshold) + tolerance)) for share in assumed)

    def enough(method: Method) -> int | None:
        def decides(rows: Counts, level: float) -> NDArray[np.bool_]:
            gains, losses = _counts(rows, usual, threshold + tolerance)
            high = exceeds(gains, losses, rows, threshold, level=level, method=method)
            gains, losses = _counts(rows, usual, threshold - tolerance)
            return high & exceeds(losses, gains, rows, -threshold, level=level, method=method)

        return _smallest(decides, log_error, tolerance)

    ratio = tolerance / most
    exponent = most * ((1 + ratio) * math.log1p(ratio) - ratio)
    two_sided = math.log(2) - log_error
    closed = [
        Size(_ceil(two_sided / exponent), _BENNETT.format(decimal(round(most, 6)))),
        Size(_ceil(2 * two_sided / tolerance**2), _HOEFFDING),
    ]
    note = f"if exactly one of the models is right on {100 * usual:.6g} % of the rows"
    return _clause_plan(clause, unit, (TRINOMIAL, TANGO), enough, closed=closed, note=note)


def _of_a_mean(clause: Clause, term: Term, log_error: float) -> ClausePlan:
    assert clause.tolerance is not None
    lowest, highest = clause.range
    rows = _ceil((math.log(2) - log_error) * (highest - lowest) ** 2 / (2 * clause.tolerance**2))
    note = "for the worst case; the gate's own interval uses the spread that it measures, and mostly needs fewer"
    return ClausePlan(clause.text, _unit(term), Size(rows, _HOEFFDING), None, (), note)


def _clause_plan(
    clause: Clause,
    unit: str,
    names: tuple[str, str],
    enough: Callable[[Method], int | None],
    *,
    closed: list[Size],
    note: str,
) -> ClausePlan:
    """Put a clause's sizes together: beyond what the gate can decide, the best of those in closed form."""
    others = sorted(closed, key=lambda size: size.rows)
    exact, score = enough("certified"), enough("efficient")
    if exact is None or score is None:
        return ClausePlan(clause.text, unit, others[0], None, tuple(others[1:]), f"{note}; {_TOO_STRICT}".lstrip("; "))
    # The same size means that the gate falls back on the exact bound.
    efficient = Size(score, names[1] if score != exact else names[0])
    return ClausePlan(clause.text, unit, Size(exact, names[0]), efficient, tuple(others), note)


def _without(clause: Clause, note: str) -> ClausePlan:
    return ClausePlan(clause.text, "rows", None, None, (), note)


def _unit(term: Term) -> str:
    """Say which rows a term is a share of; empty when it is none."""
    metric, _, of_class = term.metric.partition("_") if term.metric.startswith("recall_") else (term.metric, "", "")
    unit = f"labelled rows of class {of_class}" if of_class else _SHARES.get(metric, "")
    return f"{unit} in {term.slice}" if unit and term.slice else unit


def _disagreement(clauses: Iterable[Clause], where: Slice | None, given: float | None) -> tuple[float, float]:
    """Return on what share of rows models may differ at most, and do when the clauses on `d` come out true."""
    most = usual = given or USUAL_DISAGREEMENT
    for clause in clauses:
        factor = clause.coefficients.get(Term("d", "", where), 0.0)
        if len(clause.coefficients) == 1 and factor and (factor > 0) == (clause.direction in {"<", "<="}):
            threshold, tolerance = clause.threshold / factor, (clause.tolerance or 0.0) / abs(factor)
            if given is None or threshold < given:
                given, most, usual = threshold, threshold, max(0.0, threshold - tolerance)
    return most, usual


def _counts(rows: Counts, differ: float, difference: float) -> tuple[Counts, Counts]:
    """Return gains and losses at a difference, rounded away from zero, and a disagreement."""
    gap = _ceil_counts(rows * abs(difference))
    losses = np.maximum(0, (np.rint(rows * differ).astype(np.int64) - gap + 1) // 2)
    return (losses + gap, losses) if difference >= 0 else (losses, losses + gap)


def _smallest(decides: Callable[[Counts, float], NDArray[np.bool_]], log_error: float, tolerance: float) -> int | None:
    """Find the smallest size from which on a clause is decided; None when the gate cannot tell its level from one."""
    error = math.exp(log_error)
    if error < _SMALLEST_ERROR:
        return None
    enough = 16
    while not decides(np.array([enough]), 1 - error)[0]:
        enough *= 2
        if enough > _MOST_ROWS:
            return None
    few = enough // 2
    while enough - few > 1:
        middle = (few + enough) // 2
        few, enough = (few, middle) if decides(np.array([middle]), 1 - error)[0] else (middle, enough)
    sizes = np.arange(enough, enough + math.ceil(_FLICKER / tolerance))
    undecided = sizes[~decides(sizes, 1 - error)]
    return int(undecided[-1]) + 1 if len(undecided) else enough


def _divergence(first: float, second: float) -> float:
    """Kullback-Leibler divergence between two coins, in nats; `second` strictly between 0 and 1."""
    return sum(p * math.log(p / q) for p, q in ((first, second), (1 - first, 1 - second)) if p > 0)


def _ceil(value: float) -> int:
    return math.ceil(value - 1e-9)


def _ceil_counts(values: NDArray[np.floating[Any]]) -> Counts:
    return np.asarray(np.ceil(values - 1e-9), dtype=np.int64)
