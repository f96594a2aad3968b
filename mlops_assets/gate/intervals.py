"""One-sided confidence bounds for what a condition compares.

Belongs here: the published intervals, as functions of counts or of one number per row. Not here: which of them a clause
needs, and what follows from the bounds.

Every function takes `level`, the confidence of *each* bound by itself: at 0.975 the two bounds together are the usual
95 % interval.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlops_assets.gate import GateError

# Enough halvings of [-1, 1] to leave nothing but rounding.
_HALVINGS = 60


class Interval(NamedTuple):
    """An estimate between two bounds, each of which holds at the level asked for."""

    estimate: float
    lower: float
    upper: float


def wilson(successes: int, rows: int, level: float) -> Interval:
    """Bound a proportion by Wilson's score interval.

    The error is nominal on average over proportions and swings around it for a given one, most near 0 and 1: it is no
    strict guarantee.

    Args:
        successes: Rows that count, of `rows`.
        rows: Rows in all, at least one.
        level: One-sided confidence, from 0.5 to below 1.

    Returns:
        The share of successes and its bounds, within [0, 1].

    Raises:
        GateError: The counts or the level are impossible.

    Source: Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927), 209-212.
    """
    _check(rows, level)
    if not 0 <= successes <= rows:
        message = f"{successes} successes in {rows} rows are impossible: pass counts of the same rows"
        raise GateError(message)
    z = NormalDist().inv_cdf(level)
    share = successes / rows
    centre = share + z**2 / (2 * rows)
    half = z * math.sqrt(share * (1 - share) / rows + z**2 / (4 * rows**2))
    shrink = 1 + z**2 / rows
    # At the ends one bound is the end itself, which rounding would miss by a hair.
    lower = 0.0 if successes == 0 else (centre - half) / shrink
    upper = 1.0 if successes == rows else (centre + half) / shrink
    return Interval(share, lower, upper)


def tango(gains: int, losses: int, rows: int, level: float) -> Interval:
    """Bound the difference of two paired proportions by Tango's score interval.

    Args:
        gains: Rows that only the first counts (the new model right, the old one wrong).
        losses: Rows that only the second counts.
        rows: Rows in all, those on which both agree included, at least one.
        level: One-sided confidence, from 0.5 to below 1.

    Returns:
        `(gains - losses) / rows` and its bounds, within [-1, 1].

    Raises:
        GateError: The counts or the level are impossible.

    Source: Tango, "Equivalence test and confidence interval for the difference in proportions for the paired-sample
    design", Statistics in Medicine 17 (1998), 891-908.
    """
    _check(rows, level)
    if gains < 0 or losses < 0 or gains + losses > rows:
        message = f"{gains} gains and {losses} losses in {rows} rows are impossible: pass counts of the same rows"
        raise GateError(message)
    z = NormalDist().inv_cdf(level)
    lower = _tango_lower(gains, losses, rows, z)
    # Which of the two models is called the first is a matter of sign.
    upper = -_tango_lower(losses, gains, rows, z)
    return Interval((gains - losses) / rows, lower, upper)


def empirical_bernstein(values: NDArray[np.float64], lowest: float, highest: float, level: float) -> Interval:
    """Bound the mean of bounded values, whatever their distribution, using their variance.

    Args:
        values: One number per row, shape (rows,), independent draws.
        lowest: The least that a value can be.
        highest: The most that a value can be, above `lowest`.
        level: One-sided confidence, from 0.5 to below 1; the guarantee is strict at any number of rows.

    Returns:
        The mean and its bounds, within [lowest, highest], in the unit of the values.

    Raises:
        GateError: No rows, a value outside the range, or an impossible level.

    Source: Maurer and Pontil, "Empirical Bernstein bounds and sample variance penalization", COLT 2009, theorem 4.
    """
    rows = len(values)
    _check(rows, level)
    if not (lowest < highest and np.all((values >= lowest) & (values <= highest))):
        message = f"a value lies outside the range from {lowest} to {highest}: pass finite values of that range"
        raise GateError(message)
    mean = float(np.mean(values))
    if rows == 1:
        return Interval(mean, lowest, highest)
    log = math.log(2 / (1 - level))
    spread = math.sqrt(2 * float(np.var(values, ddof=1)) * log / rows)
    half = spread + (highest - lowest) * 7 * log / (3 * (rows - 1))
    return Interval(mean, max(lowest, mean - half), min(highest, mean + half))


def _tango_lower(gains: int, losses: int, rows: int, z: float) -> float:
    """Find where Tango's statistic falls through z, between -1 and the estimate, of which z rejects only the first."""

    def excess(delta: float) -> float:
        """Return numerator minus z times denominator of Tango's statistic, positive where delta is rejected."""
        a = 2.0 * rows
        b = -gains - losses + (2.0 * rows - gains + losses) * delta
        c = -losses * delta * (1.0 - delta)
        # The share of losses that is likeliest if the difference were delta.
        share = (math.sqrt(max(0.0, b * b - 4.0 * a * c)) - b) / (2.0 * a)
        variance = max(0.0, 2.0 * share + delta * (1.0 - delta))
        return gains - losses - rows * delta - z * math.sqrt(rows * variance)

    lower, upper = -1.0, (gains - losses) / rows
    for _ in range(_HALVINGS):
        middle = (lower + upper) / 2.0
        if excess(middle) > 0.0:
            lower = middle
        else:
            upper = middle
    return lower


def _check(rows: int, level: float) -> None:
    if rows < 1:
        message = "there are no test rows to judge by: give the gate at least one"
        raise GateError(message)
    if not 0.5 <= level < 1.0:
        message = f"a confidence level of {level} is impossible: choose one from 0.5 to below 1"
        raise GateError(message)
