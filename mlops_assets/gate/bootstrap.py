"""Bounds for whatever has no interval of its own: the paired bootstrap.

Belongs here: resampling test rows, and bounds from resamples. Not here: what is measured on them (`metrics.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mlops_assets.gate.intervals import Interval
from mlops_assets.gate.metrics import Statistic, Weights

FEWEST_ROWS: Final = 30
"""Fewer test rows than that, or than `FEWEST_OF_A_GROUP` of a class or a group, do not show how a metric varies."""

FEWEST_OF_A_GROUP: Final = 20
"""With fewer a bound at 95 % was found to err in up to 37 % of simulated test sets, with so many in 3 % to 15 %."""

FEWEST_OF_AN_OUTCOME: Final = 5
"""A share that is compared between groups needs rows that count and rows that do not: without, it does not vary."""

_SEED: Final = 20_260_101
_FEWEST_RESAMPLES, _MOST_RESAMPLES = 2_000, 10_000
# That many resamples should lie beyond a bound, and at least so many have to.
_BEYOND, _LEAST_BEYOND = 100, 5
# Weights that are in memory at once (more would not stay in the processor's cache), and groups of rows that the
# jackknife leaves out where there are many cells.
_WEIGHTS: Final = 500_000
_GROUPS: Final = 500


def bca(terms: Mapping[Statistic, float], level: float, span: tuple[float, float]) -> tuple[Interval, str]:
    """Bound a linear combination of metrics by the paired BCa bootstrap: bias-corrected and accelerated.

    Rows are drawn with replacement, together with what all models said about them, and with the same seed every time.
    The bounds are approximate: they err as often as stated only as rows become many.

    Args:
        terms: Metrics and their factors.
        level: One-sided confidence of each bound.
        span: The lowest and the highest value that the combination can have.

    Returns:
        Value and bounds, and "" or why the bounds are all that is possible: too few rows in all or in a group that is
        divided by, all resamples equal, or a level that resamples do not reach.

    Source: Efron, "Better bootstrap confidence intervals", JASA 82 (1987), 171-185.
    """
    statistic, cell, counts = _cells(terms)
    value = float(statistic(counts[None, :])[0])
    whole = Interval(value, *span)
    scarce, rares = min(term.scarce for term in terms), [term.rare for term in terms if term.rare is not None]
    if counts.sum() < FEWEST_ROWS or scarce < FEWEST_OF_A_GROUP or min(rares, default=len(cell)) < FEWEST_OF_AN_OUTCOME:
        return whole, "small group"
    resamples = min(_MOST_RESAMPLES, max(_FEWEST_RESAMPLES, math.ceil(_BEYOND / (1 - level))))
    if resamples * (1 - level) < _LEAST_BEYOND:
        return whole, "its level is beyond what a bootstrap can tell"
    rng = np.random.default_rng(_SEED)
    drawn = np.sort(_resampled(statistic, cell, counts, resamples, rng))
    if drawn[0] == drawn[-1]:
        return whole, "all resamples are equal"
    if any(term.kinked for term in terms):
        # The correction for bias would go the wrong way; of both plain bounds, the wider is taken.
        low, high = (float(np.quantile(drawn, share)) for share in (1 - level, level))
        lower, upper = min(low, 2 * value - high), max(high, 2 * value - low)
    else:
        lower, upper = _bounds(drawn, value, _acceleration(statistic, cell, counts, rng), level)
    return Interval(value, max(span[0], lower), min(span[1], upper)), ""


def estimate(terms: Mapping[Statistic, float]) -> float:
    """Compute a linear combination of metrics on the test rows themselves."""
    statistic, _, counts = _cells(terms)
    return float(statistic(counts[None, :])[0])


def _cells(
    terms: Mapping[Statistic, float],
) -> tuple[Callable[[Weights], NDArray[np.float64]], NDArray[np.intp], NDArray[np.float64]]:
    """The combination as a function of weights of cells, each row's cell, and how many rows each cell has.

    Rows that are alike to every metric are one cell.
    """
    rows = np.logical_or.reduce([term.rows for term in terms])
    codes = np.stack([term.codes[rows] for term in terms], axis=1)
    _, first, cell, counts = np.unique(codes, axis=0, return_index=True, return_inverse=True, return_counts=True)
    places = np.flatnonzero(rows)[first]
    parts = [(term.on(places), factor) for term, factor in terms.items()]

    def statistic(weights: Weights) -> NDArray[np.float64]:
        return np.asarray(sum(factor * part(weights) for part, factor in parts))

    return statistic, cell.reshape(-1), counts.astype(np.float64)


def _resampled(
    statistic: Callable[[Weights], NDArray[np.float64]],
    cell: NDArray[np.intp],
    counts: NDArray[np.float64],
    resamples: int,
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """Draw as many rows as there are, again and again; shape (resamples,)."""
    rows, cells = len(cell), len(counts)
    at_once = max(1, _WEIGHTS // max(rows, cells))
    values = []
    for start in range(0, resamples, at_once):
        size = min(at_once, resamples - start)
        # Drawing per cell is quicker than per row where there are few cells.
        if 25 * cells < rows:
            weights = np.asarray(rng.multinomial(rows, counts / rows, size=size), dtype=np.float64)
        else:
            drawn = [np.bincount(cell[rng.integers(rows, size=rows)], minlength=cells) for _ in range(size)]
            weights = np.stack(drawn).astype(np.float64)
        values.append(statistic(weights))
    return np.concatenate(values)


def _acceleration(
    statistic: Callable[[Weights], NDArray[np.float64]],
    cell: NDArray[np.intp],
    counts: NDArray[np.float64],
    rng: np.random.Generator,
) -> float:
    """Skewness of what rows contribute, from leaving out one cell's row, or one group of rows, at a time."""
    cells = len(counts)
    left_out, times = np.eye(min(cells, _GROUPS)), counts
    if cells > _GROUPS:
        group = rng.permutation(len(cell)) % _GROUPS
        drawn = np.bincount(group * cells + cell, minlength=_GROUPS * cells)
        left_out, times = drawn.reshape(_GROUPS, cells).astype(np.float64), np.ones(_GROUPS)
    at_once = max(1, _WEIGHTS // cells)
    values = np.concatenate(
        [statistic(counts - left_out[start : start + at_once]) for start in range(0, len(left_out), at_once)]
    )
    influence = np.average(values, weights=times) - values
    spread = float(times @ influence**2)
    return float(times @ influence**3) / (6 * spread**1.5) if spread > 0 else 0.0


def _bounds(drawn: NDArray[np.float64], value: float, acceleration: float, level: float) -> tuple[float, float]:
    from scipy.special import ndtr, ndtri

    below = np.mean(drawn < value) + np.mean(drawn == value) / 2
    bias = float(ndtri(np.clip(below, 1 / len(drawn), 1 - 1 / len(drawn))))
    bounds = []
    for z in (float(ndtri(1 - level)), float(ndtri(level))):
        stretch = 1 - acceleration * (bias + z)
        # Beyond its pole the correction means nothing; the outermost resample is what is left.
        share = float(ndtr(bias + (bias + z) / stretch)) if stretch > 0 else float(z > 0)
        bounds.append(float(np.quantile(drawn, share)))
    return min(bounds[0], value), max(bounds[1], value)
