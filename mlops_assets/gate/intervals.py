"""One-sided confidence bounds for what a condition compares.

Belongs here: the published intervals, as functions of counts or of one number per row. Not here: which of them a clause
needs, and what follows from the bounds.

Every function takes `level`, the confidence of *each* bound by itself: at 0.975 the two bounds together are the usual
95 % interval. Functions of counts take integers, or integer arrays that broadcast with each other and with `level`, and
return numbers or arrays accordingly.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlops_assets.gate import GateError
from mlops_assets.gate.trinomial import tail

Counts = int | NDArray[np.integer[Any]]
Level = float | NDArray[np.float64]

# Enough halvings of [-1, 1] to leave nothing but rounding.
_HALVINGS: Final = 60

# Of the permitted error, what the bound on the share of differing rows takes: with fewer than 200 rows less costs
# power, with many 0.02 to 0.2 are equally good.
_NUISANCE: Final = 0.2

# Rows of the rarer kind from which on normal approximations hold well enough.
_ENOUGH: Final = 25

# How far a bet of `betting` may be from the best one, as a factor, and from where to where bets are tried.
_BETS: Final = np.geomspace(1 / 3, 27, 8)
_BOLDEST: Final = 0.99


class Interval(NamedTuple):
    """An estimate between two bounds, each of which holds at the level asked for; numbers, or arrays of one shape."""

    estimate: Any
    lower: Any
    upper: Any


def wilson(successes: Counts, rows: Counts, level: Level) -> Interval:
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
    k, n, error = _proportion(successes, rows, level)
    z = _quantile(error)
    share = k / n
    centre = share + z**2 / (2 * n)
    half = z * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    shrink = 1 + z**2 / n
    # At the ends one bound is the end itself, which rounding would miss by a hair.
    lower = np.where(k == 0, 0.0, (centre - half) / shrink)
    upper = np.where(k == n, 1.0, (centre + half) / shrink)
    return _interval(share, lower, upper)


def clopper_pearson(successes: Counts, rows: Counts, level: Level) -> Interval:
    """Bound a proportion by inverting the exact binomial test: never wrong more often than stated, at any row count.

    Args:
        successes: Rows that count, of `rows`.
        rows: Rows in all, at least one.
        level: One-sided confidence, from 0.5 to below 1.

    Returns:
        The share of successes and its bounds, within [0, 1].

    Raises:
        GateError: The counts or the level are impossible.

    Source: Clopper and Pearson, "The use of confidence or fiducial limits illustrated in the case of the binomial",
    Biometrika 26 (1934), 404-413.
    """
    k, n, error = _proportion(successes, rows, level)
    return _interval(k / n, 1 - _highest_share(n - k, n, error), _highest_share(k, n, error))


def tango(gains: Counts, losses: Counts, rows: Counts, level: Level) -> Interval:
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
    b, c, n, error = _difference(gains, losses, rows, level)
    z = _quantile(error)
    # Which of the two models is called the first is a matter of sign.
    return _interval((b - c) / n, _tango_lower(b, c, n, z), -_tango_lower(c, b, n, z))


def certified_difference(gains: Counts, losses: Counts, rows: Counts, level: Level) -> Interval:
    """Bound the difference of two paired proportions with a guarantee that is strict at any number of rows.

    A difference is excluded when `gains - losses` would be as large with a probability of at most the permitted error,
    whatever the share of rows that differ. That share is first bounded from above by Clopper and Pearson, with a
    fifth of the permitted error; up to a half the probability only grows with it (see `trinomial`), so that the
    bound itself is the worst case. Where the share may exceed a half, Hoeffding's inequality takes over.

    Of the valid bounds tried, this is the sharpest. At 2,000 and 10,000 rows, shares of 2 % to 30 %, margins of 0.01
    and 0.02 and levels from 0.95 to 0.999999, an estimate has to lie 1.1 times as far beyond the margin as with Tango's
    interval (median; 1.5 at most); it is 1.2 times (2.1) with Clopper and Pearson's bounds for the share of differing
    rows and for that of gains among them, which are a tenth sharper only where there is no margin, and 1.5 times (2.2)
    with Bennett's inequality or a mixture of bets.

    Args:
        gains: Rows that only the first counts.
        losses: Rows that only the second counts.
        rows: Rows in all, those on which both agree included, at least one.
        level: One-sided confidence, from 0.5 to below 1.

    Returns:
        `(gains - losses) / rows` and its bounds, within [-1, 1].

    Raises:
        GateError: The counts or the level are impossible.

    Source: Berger and Boos, "P values maximized over a confidence set for the nuisance parameter", JASA 89 (1994),
    1012-1016, applied to the exact trinomial test; Hoeffding, JASA 58 (1963), 13-30.
    """
    b, c, n, error = _difference(gains, losses, rows, level)
    # Repeated simulations give the same counts over and over.
    columns = np.stack([np.ravel(one) for one in (b, c, n, error)], axis=1)
    different, places = np.unique(columns, axis=0, return_inverse=True)
    b_, c_, n_, error_ = different.T
    lower, upper = _certified_lower(b_, c_, n_, error_), -_certified_lower(c_, b_, n_, error_)
    places = places.reshape(b.shape)
    return _interval((b - c) / n, lower[places], upper[places])


def certified_exceeds(gains: Counts, losses: Counts, rows: Counts, level: Level, margin: Level) -> Any:
    """Tell whether the lower bound of `certified_difference` exceeds a margin, without the search for the bound.

    Args:
        gains: Rows that only the first counts.
        losses: Rows that only the second counts.
        rows: Rows in all.
        level: One-sided confidence, from 0.5 to below 1.
        margin: What the difference is to exceed, from -1 to 1.

    Returns:
        A truth value, or an array of them.

    Raises:
        GateError: The counts or the level are impossible.
    """
    b, c, n, error = _difference(gains, losses, rows, level)
    b, c, n, error, m = np.broadcast_arrays(b, c, n, error, np.asarray(margin, dtype=np.float64))
    columns = np.stack([np.ravel(one) for one in (b, c, n, error, m)], axis=1)
    different, places = np.unique(columns, axis=0, return_inverse=True)
    b_, c_, n_, error_, m_ = different.T
    share = _highest_share(b_ + c_, n_, _NUISANCE * error_)
    found = _excluded(m_, b_ - c_, n_, share, error_)[places.reshape(b.shape)]
    return bool(found) if found.ndim == 0 else found


def betting(values: NDArray[np.float64], lowest: float, highest: float, level: float) -> Interval:
    """Bound the mean of bounded values, whatever their distribution, by what betting against it would have earned.

    A mean is excluded when a fixed mixture of bets that it is higher (for the other bound: lower) would have multiplied
    its stake by 1 / (1 - level): with fair odds that has at most the permitted probability. The bets are the same for
    all rows, so that the order of the rows does not matter.

    Args:
        values: One number per row, shape (rows,), independent draws.
        lowest: The least that a value can be.
        highest: The most that a value can be, above `lowest`.
        level: One-sided confidence, from 0.5 to below 1; the guarantee is strict at any number of rows.

    Returns:
        The mean and its bounds, within [lowest, highest], in the unit of the values.

    Raises:
        GateError: No rows, a value outside the range, or an impossible level.

    Source: Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting", JRSS B 86 (2024), 1-27.
    """
    _check(np.asarray(len(values)), np.asarray(level))
    if not (lowest < highest and np.all((values >= lowest) & (values <= highest))):
        message = f"a value lies outside the range from {lowest} to {highest}: pass finite values of that range"
        raise GateError(message)
    different, counts = np.unique(values, return_counts=True)
    share = (different - lowest) / (highest - lowest)
    lower = _betting_lower(share, counts, 1 - level)
    upper = 1 - _betting_lower(1 - share, counts, 1 - level)
    mean = float(np.mean(values))
    width = highest - lowest
    return Interval(mean, min(mean, lowest + width * lower), max(mean, lowest + width * upper))


def efficient_is_sound(gains: float | NDArray[Any], losses: float | NDArray[Any], rows: Counts, margin: Level) -> Any:
    """Tell whether Tango's interval errs hardly more often than it says, so that no strict one is needed.

    Where it does, and the strict one takes over elsewhere, the error is at most 1.2 times the permitted one, for levels
    from 0.8 to 0.9999, 500 to 10,000 rows and shares of differing rows from 0.1 % on (summed over all outcomes).

    Args:
        gains: Rows that only the first counts, measured or expected.
        losses: Rows that only the second counts.
        rows: Rows in all.
        margin: What the difference is compared with.

    Returns:
        A truth value, or an array of them.
    """
    differing = np.asarray(gains) + np.asarray(losses)
    sound = (differing >= _ENOUGH) & (differing >= 3 * np.abs(margin) * np.asarray(rows))
    return bool(sound) if sound.ndim == 0 else sound


def wilson_is_sound(rows: Counts, threshold: Level, *, above: bool) -> Any:
    """Tell whether Wilson's interval seldom calls a proportion beyond a threshold that is not.

    Where it does not look at the short tail, and rows of both kinds are expected, it errs at most 1.2 times as often as
    permitted, for levels from 0.8 to 0.9999 and 500 rows or more, and 1.3 times with fewer.

    Args:
        rows: Rows in all.
        threshold: What the proportion is compared with.
        above: Whether the claim is that it is higher.

    Returns:
        A truth value, or an array of them.
    """
    rarer = 1 - np.asarray(threshold) if above else np.asarray(threshold)
    sound = (rarer <= 0.5) & (np.asarray(rows) * rarer >= _ENOUGH)
    return bool(sound) if sound.ndim == 0 else sound


def _certified_lower(
    gains: NDArray[np.float64], losses: NDArray[np.float64], rows: NDArray[np.float64], error: NDArray[np.float64]
) -> NDArray[np.float64]:
    share = _highest_share(gains + losses, rows, _NUISANCE * error)
    seen = gains - losses
    # Hoeffding's bound is excluded already, and so is what the share of differing rows does not leave room for.
    hoeffding = seen / rows - np.sqrt(-2 * np.log((1 - _NUISANCE) * error) / rows)
    lower = np.maximum(-share, hoeffding)
    upper = np.where(share > 0.5, lower, np.maximum(lower, seen / rows))
    for _ in range(_HALVINGS // 2):
        middle = (lower + upper) / 2
        excluded = _excluded(middle, seen, rows, share, error)
        lower, upper = np.where(excluded, middle, lower), np.where(excluded, upper, middle)
    return lower


def _excluded(
    difference: NDArray[np.float64],
    seen: NDArray[np.float64],
    rows: NDArray[np.float64],
    share: NDArray[np.float64],
    error: NDArray[np.float64],
) -> NDArray[np.bool_]:
    """Tell whether `gains - losses` as seen excludes a difference; `share` is the most that rows may differ."""
    left = (1 - _NUISANCE) * error
    far = seen - rows * difference >= np.sqrt(-2 * np.log(left) * rows)
    # Below these the worst case might not be the highest share.
    exact = (share <= 0.5) & (np.abs(difference) <= share) & (seen >= (rows - 1) * difference + 2)
    found = far | (difference < -share)
    ask = exact & ~found
    found[ask] = tail(seen[ask], difference[ask], share[ask], rows[ask]) <= left[ask]
    return found


def _betting_lower(share: NDArray[np.float64], counts: NDArray[np.int64], error: float) -> float:
    """Find the highest mean that a mixture of bets on a higher one excludes; values lie in [0, 1]."""
    # The best bet is about sqrt(2 log(1 / error) / rows) times mean / deviation, which is not known beforehand.
    bets = np.minimum(_BOLDEST, np.sqrt(-2 * np.log(error) / counts.sum()) * _BETS)
    lower, upper = 0.0, float(counts @ share / counts.sum())
    for _ in range(_HALVINGS // 2):
        middle = (lower + upper) / 2
        capitals = counts @ np.log1p(np.outer(share / middle - 1, bets)) if middle else np.full(len(bets), np.inf)
        if np.logaddexp.reduce(capitals) - np.log(len(bets)) >= -np.log(error):
            lower = middle
        else:
            upper = middle
    return lower


def _tango_lower(
    gains: NDArray[np.float64], losses: NDArray[np.float64], rows: NDArray[np.float64], z: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Find where Tango's statistic falls through z, between -1 and the estimate, of which z rejects only the first."""
    lower, upper = np.full(gains.shape, -1.0), (gains - losses) / rows
    for _ in range(_HALVINGS):
        delta = (lower + upper) / 2.0
        a = 2.0 * rows
        b = -gains - losses + (2.0 * rows - gains + losses) * delta
        c = -losses * delta * (1.0 - delta)
        # The share of losses that is likeliest if the difference were delta.
        share = (np.sqrt(np.maximum(0.0, b * b - 4.0 * a * c)) - b) / (2.0 * a)
        variance = np.maximum(0.0, 2.0 * share + delta * (1.0 - delta))
        rejected = gains - losses - rows * delta > z * np.sqrt(rows * variance)
        lower, upper = np.where(rejected, delta, lower), np.where(rejected, upper, delta)
    return lower


def _highest_share(
    successes: NDArray[np.float64], rows: NDArray[np.float64], error: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Clopper and Pearson's upper bound."""
    from scipy.special import betainccinv

    # The formula has no value where all rows count.
    some = np.minimum(successes, rows - 1)
    return np.where(successes == rows, 1.0, betainccinv(some + 1, rows - some, error))


def _quantile(error: NDArray[np.float64]) -> NDArray[np.float64]:
    """How many standard deviations a normal variable exceeds with probability `error`."""
    from scipy.special import ndtri

    return np.asarray(-ndtri(error))


def _proportion(successes: Counts, rows: Counts, level: Level) -> tuple[NDArray[np.float64], ...]:
    k, n, confidence = (np.asarray(one, dtype=np.float64) for one in (successes, rows, level))
    _check(n, confidence)
    if np.any((k < 0) | (k > n)):
        message = f"{successes} successes in {rows} rows are impossible: pass counts of the same rows"
        raise GateError(message)
    return tuple(np.broadcast_arrays(k, n, 1 - confidence))


def _difference(gains: Counts, losses: Counts, rows: Counts, level: Level) -> tuple[NDArray[np.float64], ...]:
    b, c, n, confidence = (np.asarray(one, dtype=np.float64) for one in (gains, losses, rows, level))
    _check(n, confidence)
    if np.any((b < 0) | (c < 0) | (b + c > n)):
        message = f"{gains} gains and {losses} losses in {rows} rows are impossible: pass counts of the same rows"
        raise GateError(message)
    return tuple(np.broadcast_arrays(b, c, n, 1 - confidence))


def _check(rows: NDArray[Any], level: NDArray[Any]) -> None:
    if np.any(rows < 1):
        message = "there are no test rows to judge by: give the gate at least one"
        raise GateError(message)
    if not np.all((level >= 0.5) & (level < 1.0)):
        message = f"a confidence level of {level} is impossible: choose one from 0.5 to below 1"
        raise GateError(message)


def _interval(*values: NDArray[np.float64]) -> Interval:
    return Interval(*(float(value) if np.ndim(value) == 0 else value for value in values))
