"""Which interval a clause gets, and how many more rows would settle it.

Belongs here: the choice between intervals, by what a clause measures and by the method asked for. Not here: the
intervals themselves, what is measured, and verdicts over several clauses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from mlops_assets.gate.bootstrap import bca, estimate
from mlops_assets.gate.clauses import Clause, Term
from mlops_assets.gate.gaps import Gap
from mlops_assets.gate.intervals import (
    Interval,
    betting,
    certified_difference,
    certified_exceeds,
    clopper_pearson,
    efficient_is_sound,
    tango,
    wilson,
    wilson_is_sound,
)
from mlops_assets.gate.metrics import Measure, RowMean, Statistic

Method = Literal["efficient", "certified"]

WILSON: Final = "Wilson score 1927"
CLOPPER_PEARSON: Final = "Clopper-Pearson 1934"
TANGO: Final = "Tango score 1998"
TRINOMIAL: Final = "exact trinomial test, Berger and Boos 1994"
BETTING: Final = "betting, Waudby-Smith and Ramdas 2024"
BCA: Final = "BCa bootstrap, Efron 1987"
NONE: Final = "no interval"

MOST_EFFICIENT: Final = 0.9999
"""Up to this level the approximate intervals were found to err about as often as they say."""

_TOO_STRICT: Final = f"certified, since nothing else is sound beyond {100 * MOST_EFFICIENT} % confidence"
_TOO_FEW: Final = "certified, since too few rows {} for an approximation"

# More rows than that are no advice.
_MOST_ROWS: Final = 10**8


@dataclass(frozen=True)
class Counts:
    """A proportion, or a difference of two on the same rows, times a factor, as counts.

    Attributes:
        gains: Rows that count.
        losses: Rows that count against; None for a proportion.
        rows: Rows in all.
        factor: What the share is multiplied by.
    """

    gains: int
    losses: int | None
    rows: int
    factor: float

    def bounds(self, clause: Clause, level: float, method: Method) -> Bounds:
        """Bound the share, by the sharpest interval that is sound for this clause."""
        note = _TOO_STRICT if method == "efficient" and level > MOST_EFFICIENT else ""
        approximate = method == "efficient" and not note
        if approximate and not self._sound(self.rows, clause):
            approximate, note = False, _TOO_FEW.format("count" if self.losses is None else "differ")
        if self.losses is None:
            name, of_share = (WILSON, wilson) if approximate else (CLOPPER_PEARSON, clopper_pearson)
            found = of_share(self.gains, self.rows, level)
        else:
            name, of_difference = (TANGO, tango) if approximate else (TRINOMIAL, certified_difference)
            found = of_difference(self.gains, self.losses, self.rows, level)
        return Bounds(_scaled(found, self.factor), name, self.rows, note, self)

    def more_rows(self, clause: Clause, level: float, method: Method) -> int | None:
        """Find how many more rows settle the clause if they are like these, to the percent; None if none do."""
        fewest, enough = self.rows, _MOST_ROWS
        while enough > 1.01 * fewest and enough - fewest > 1:
            sizes = np.unique(np.geomspace(fewest, enough, 65).round().astype(np.int64))[1:]
            # Counts are whole, so that whether a size suffices flickers: what counts is that larger ones do.
            short = sizes[~self._settled(sizes, clause, level, method)]
            if len(short) and short[-1] == sizes[-1]:
                return None
            fewest = int(short[-1]) if len(short) else fewest
            enough = int(sizes[sizes > fewest][0])
        return enough - self.rows

    def _settled(self, sizes: NDArray[np.int64], clause: Clause, level: float, method: Method) -> NDArray[np.bool_]:
        """Tell for which numbers of rows the bound on the estimate's side would lie beyond the threshold."""
        threshold = clause.threshold / self.factor
        above = (self.gains - (self.losses or 0)) / self.rows > threshold
        sound = self._sound(sizes, clause) & (method == "efficient" and level <= MOST_EFFICIENT)
        gains, losses = (
            np.round((part or 0) * (sizes / self.rows)).astype(np.int64) for part in (self.gains, self.losses)
        )
        if self.losses is None:
            score, exact = wilson(gains, sizes, level), clopper_pearson(gains, sizes, level)
            lower, upper = (np.where(sound, one, other) for one, other in zip(score[1:], exact[1:], strict=True))
            return np.asarray(lower > threshold if above else upper < threshold)
        first, second, margin = (gains, losses, threshold) if above else (losses, gains, -threshold)
        approximate = tango(first, second, sizes, level).lower > margin
        return np.asarray(np.where(sound, approximate, certified_exceeds(first, second, sizes, level, margin)))

    def _sound(self, rows: int | NDArray[np.int64], clause: Clause) -> NDArray[np.bool_]:
        """Tell whether the approximate interval would do with so many rows like these."""
        threshold = clause.threshold / self.factor
        if self.losses is None:
            above = (clause.direction in {">", ">="}) == (self.factor > 0)
            return np.asarray(wilson_is_sound(rows, threshold, above=above))
        gains, losses = (np.asarray(rows) * (part / self.rows) for part in (self.gains, self.losses))
        return np.asarray(efficient_is_sound(gains, losses, rows, threshold))


@dataclass(frozen=True)
class Bounds:
    """What is known of a clause's linear form.

    Attributes:
        interval: Value and one-sided bounds.
        method: Name of the interval, with its source.
        rows: Test rows that it rests on.
        note: Why it is not the usual one, or what it is worth; else "".
        counts: What it was computed from, if from counts.
    """

    interval: Interval
    method: str
    rows: int
    note: str = ""
    counts: Counts | None = None


def bound(clause: Clause, measured: Mapping[Term, Measure], level: float, method: Method) -> Bounds:
    """Bound a clause's linear form.

    Args:
        clause: The clause.
        measured: What its terms measure.
        level: One-sided confidence of each bound.
        method: Whether an interval may be approximate.
    """
    gaps = [(one, clause.coefficients[term]) for term, one in measured.items() if isinstance(one, Gap)]
    if gaps:
        return _of_gaps(clause, gaps, level, alone=len(gaps) == len(measured))
    return _of_rows(clause, {term: one for term, one in measured.items() if not isinstance(one, Gap)}, level, method)


def _of_rows(clause: Clause, measured: Mapping[Term, RowMean | Statistic], level: float, method: Method) -> Bounds:
    means = [one for one in measured.values() if isinstance(one, RowMean)]
    same = all(np.array_equal(one.rows, means[0].rows) for one in means)
    if len(means) < len(measured) or not same:
        return _bootstrapped(clause, measured, level, method)
    rows = int(means[0].rows.sum())
    factors = [clause.coefficients[term] for term in measured]
    counts = _counts(means, factors, rows)
    if rows < 2:
        value = sum(factor * float(one.values.sum()) for one, factor in zip(means, factors, strict=True))
        return Bounds(Interval(value, *clause.range), NONE, rows, "a single row shows nothing")
    if counts is not None:
        return counts.bounds(clause, level, method)
    values = sum((factor * one.values[one.rows] for one, factor in zip(means, factors, strict=True)), np.zeros(rows))
    lowest, highest = clause.range
    # The range is rounded once, the values at every addition.
    return Bounds(betting(values.clip(lowest, highest), lowest, highest, level), BETTING, rows)


def more_rows(clause: Clause, found: Bounds, level: float, method: Method) -> int | None:
    """Tell how many more rows would settle an unknown clause, at today's estimate and disagreement.

    Returns:
        A number of rows; None where the estimate lies on the threshold, nothing bounds the form, or it would take more
        than a hundred million.
    """
    value, lower, upper = found.interval
    gap = value - clause.threshold
    if gap == 0 or found.method == NONE:
        return None
    if found.counts is not None:
        return found.counts.more_rows(clause, level, method)
    # Widths fall with the root of the number of rows.
    width = value - lower if gap > 0 else upper - value
    needed = math.floor(found.rows * min((width / gap) ** 2, _MOST_ROWS)) + 1
    return max(1, needed - found.rows) if needed <= _MOST_ROWS else None


def _bootstrapped(clause: Clause, measured: Mapping[Term, RowMean | Statistic], level: float, method: Method) -> Bounds:
    terms = {
        one if isinstance(one, Statistic) else one.statistic(): clause.coefficients[term]
        for term, one in measured.items()
    }
    rows = int(np.logical_or.reduce([one.rows for one in measured.values()]).sum())
    if method == "certified":
        note = "no finite-sample interval is known for it, so it cannot be certified"
        return Bounds(Interval(estimate(terms), *clause.range), NONE, rows, note)
    interval, trouble = bca(terms, level, clause.range)
    if trouble:
        return Bounds(interval, NONE, rows, trouble)
    return Bounds(interval, BCA, rows, "approximate")


def _of_gaps(clause: Clause, gaps: list[tuple[Gap, float]], level: float, *, alone: bool) -> Bounds:
    """Bound a sum of gaps by bounds of each, which share the permitted error."""
    parts = [_scaled(gap.interval(1 - (1 - level) / len(gaps)), factor) for gap, factor in gaps]
    value, lower, upper = (sum(ends) for ends in zip(*parts, strict=True))
    rows = max(gap.rows for gap, _ in gaps)
    if not alone:
        return Bounds(Interval(value, *clause.range), NONE, rows, "no interval is known for gaps beside other metrics")
    return Bounds(Interval(value, lower, upper), f"{CLOPPER_PEARSON}, by group", rows)


def _counts(means: list[RowMean], factors: list[float], rows: int) -> Counts | None:
    """What means of ones and zeros come to in counts; None for anything but a proportion or a plain difference."""
    if any(one.highest != 1.0 for one in means):
        return None
    if len(means) == 1:
        return Counts(int(means[0].values.sum()), None, rows, factors[0])
    if len(means) == 2 and factors[0] == -factors[1]:
        first, second = (one.values > 0 for one in means)
        return Counts(int((first & ~second).sum()), int((second & ~first).sum()), rows, factors[0])
    return None


def _scaled(interval: Interval, factor: float) -> Interval:
    share, first, second = (value * factor for value in interval)
    return Interval(share, min(first, second), max(first, second))
