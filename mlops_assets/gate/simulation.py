"""Whether the gate keeps its promise: its rules on test sets drawn from worlds whose truth is known.

Belongs here: the audit of one decision, over many worlds. Not here: sequences of decisions (`stress.py`), and the rules
themselves, which are called as they are.

On the boundary of a claim, where a promotion is an error and hardest to avoid, the chance of one is summed over every
possible test set (all but 1e-13 of either end) and drawn as well; elsewhere it is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from mlops_assets.gate import GateError
from mlops_assets.gate.intervals import wilson
from mlops_assets.gate.plan import exceeds, share_exceeds

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mlops_assets.gate.bounds import Method

SEED: Final = 20191121
EFFICIENT_EXCESS: Final = 1.25
"""By how much `efficient` may exceed the permitted error."""

METHODS: Final[tuple[Method, ...]] = ("certified", "efficient")
RELIABILITY: Final = 0.95
STRICT: Final = (0.9999, 1 - 1e-8)
"""Reliabilities too strict to be drawn, at which the errors are summed alone; the second as `full` asks for."""

ROWS: Final = (500, 1_000, 2_000, 5_000, 10_000)
DISAGREEMENTS: Final = (0.02, 0.05, 0.1, 0.2, 0.3)
MARGINS: Final = (-0.01, 0.0, 0.01, 0.02)
ACCURACIES: Final = (0.8, 0.9, 0.95, 0.98)

# Truths of the drawn worlds, from the margin on: half a point short of the claim, on its boundary, beyond it.
_OFFSETS: Final = (-0.005, 0.0, 0.01, 0.025)

# Unpaired rules depend on how accurate the champion is, paired ones do not. It is never so accurate that models would
# have to err on different rows to differ that often.
_CHAMPION: Final = 0.85

# Rarer by chance alone, a difference means that simulation and sum do not speak of the same.
_CHANCE: Final = 1e-6

_LEFT_OUT: Final = 1e-13

Progress = Callable[[int, int], None]


class World(NamedTuple):
    """A claim and what is true.

    Attributes:
        rows: Of the test set.
        disagreement: Share of rows on which exactly one model is right; 0 for a claim on `n` alone.
        margin: What is claimed to be exceeded.
        truth: What `n - o` is, or `n`.
    """

    rows: int
    disagreement: float
    margin: float
    truth: float

    @property
    def claim(self) -> str:
        """The condition."""
        return f"{'n - o' if self.disagreement else 'n'} > {self.margin:g}"

    @property
    def wrong(self) -> bool:
        """Whether a promotion is an error."""
        return self.truth <= self.margin


NAMED: Final = World(rows=10_000, disagreement=0.08, margin=0.02, truth=0.025)
NAMED_RELIABILITY: Final = 0.978
NAMED_POWER: Final = 0.35
"""What is promised of the power, and where."""


@dataclass(frozen=True)
class Cell:
    """What a rule did in a world.

    Attributes:
        world: The world.
        method: The gate's method.
        reliability: What it promised.
        drawn: Share of promotions among the drawn test sets; None where only summed.
        deviation: Monte Carlo standard error of `drawn`.
        exact: Chance of a promotion, summed; None off the boundary.
        unpaired: Share that the unpaired rule promoted; None for a claim on `n` alone, or where only summed.
        larger: Share that `new >= old` promoted; likewise.
    """

    world: World
    method: Method
    reliability: float
    drawn: float | None
    deviation: float | None
    exact: float | None
    unpaired: float | None = None
    larger: float | None = None


class Finding(NamedTuple):
    """A promise, and whether it was kept."""

    text: str
    holds: bool


@dataclass(frozen=True)
class Audit:
    """All cells, and what they say of the promises."""

    sims: int
    seed: int
    cells: tuple[Cell, ...]
    findings: tuple[Finding, ...]

    @property
    def holds(self) -> bool:
        """Whether every promise was kept."""
        return all(finding.holds for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Return the audit as what JSON can hold."""
        cells = [vars(cell) | {"world": {"claim": cell.world.claim, **cell.world._asdict()}} for cell in self.cells]
        findings = [finding._asdict() for finding in self.findings]
        return {"sims": self.sims, "seed": self.seed, "holds": self.holds, "findings": findings, "cells": cells}


def least_gains(
    differing: NDArray[np.int64], rows: int, margin: float, *, level: float, method: Method
) -> NDArray[np.int64]:
    """Find how many gains the gate wants for `n - o > margin`, by the number of rows on which one model is right.

    With that number given, more gains never turn a promotion back, so a few questions to the gate's own rule tell what
    it says of every test set.

    Args:
        differing: Gains and losses together, shape (numbers,).
        rows: Rows of the test set.
        margin: What is claimed to be exceeded.
        level: One-sided confidence.
        method: The gate's method.

    Returns:
        The smallest number of gains that is promoted, or one more than there can be, shape (numbers,).
    """
    too_few, enough = np.full_like(differing, -1), differing + 1
    while (open_ := enough - too_few > 1).any():
        middle = (too_few + enough)[open_] // 2
        sets = np.full_like(middle, rows)
        found = exceeds(middle, differing[open_] - middle, sets, margin, level=level, method=method)
        enough[open_] = np.where(found, middle, enough[open_])
        too_few[open_] = np.where(found, too_few[open_], middle)
    return enough


def chance(world: World, *, level: float, method: Method) -> float:
    """Sum the probability of all test sets on which `n - o > margin` is promoted; what is left out counts as promoted.

    Args:
        world: Which claim, and what is true.
        level: One-sided confidence.
        method: The gate's method.
    """
    numbers = _usual_numbers(world)
    return _summed(world, numbers, least_gains(numbers, world.rows, world.margin, level=level, method=method))


def audit(sims: int = 20_000, *, seed: int = SEED, progress: Progress | None = None) -> Audit:
    """Audit single decisions.

    Args:
        sims: Test sets drawn per world.
        seed: Of the draws.
        progress: Told how many parts are done, and of how many.

    Returns:
        The cells and the findings.

    Raises:
        GateError: Fewer than 100 draws per world.
    """
    if sims < 100:
        message = f"{sims} simulations per world say nothing: ask for at least 100, such as 20000"
        raise GateError(message)
    tasks: list[tuple[tuple[World, ...], float, int]]
    tasks = [(worlds, RELIABILITY, sims) for worlds in _worlds()] + [((NAMED,), NAMED_RELIABILITY, sims)]
    tasks += [
        (tuple(one for one in worlds if one.truth == one.margin), strict, 0)
        for worlds in _worlds()
        for strict in STRICT
    ]
    tasks.sort(key=lambda task: -task[0][0].rows * len(task[0]))  # the longest first, so that no core waits long
    seeds = np.random.SeedSequence(seed).spawn(len(tasks))
    cells: list[Cell] = []
    with ThreadPoolExecutor() as pool:
        parts = pool.map(lambda task, one: _examined(task[0], task[1], task[2], one), tasks, seeds)
        for done, found in enumerate(parts, start=1):
            cells += found
            if progress:
                progress(done, len(tasks))
    cells.sort(key=lambda cell: (cell.reliability, cell.world.claim, cell.world, cell.method))
    return Audit(sims, seed, tuple(cells), _findings(cells, sims))


def _worlds() -> Iterator[tuple[World, ...]]:
    """Yield the worlds, those of one claim and one number of rows together."""
    for rows in ROWS:
        for margin in MARGINS:
            yield tuple(
                World(rows, disagreement, margin, round(margin + offset, 3))
                for disagreement in DISAGREEMENTS
                for offset in _OFFSETS
                if abs(round(margin + offset, 3)) <= disagreement
            )
        for accuracy in ACCURACIES:
            yield (World(rows, 0.0, accuracy, accuracy),)


def _examined(worlds: tuple[World, ...], reliability: float, sims: int, seed: np.random.SeedSequence) -> list[Cell]:
    random = np.random.default_rng(seed)
    if worlds[0].disagreement:
        return _with_pairs(worlds, reliability, sims, random)
    return _with_new_alone(worlds[0], reliability, sims, random)


def _with_new_alone(world: World, reliability: float, sims: int, random: np.random.Generator) -> list[Cell]:
    from scipy.stats import binom

    successes = np.arange(world.rows + 1)
    chance = binom.pmf(successes, world.rows, world.truth)
    drawn = random.binomial(world.rows, world.truth, sims)
    cells = []
    for method in METHODS:
        sets = np.full_like(successes, world.rows)
        promoted = share_exceeds(successes, sets, world.margin, level=reliability, method=method)
        cells.append(_cell(world, method, reliability, promoted[drawn], float(chance @ promoted)))
    return cells


def _with_pairs(worlds: tuple[World, ...], reliability: float, sims: int, random: np.random.Generator) -> list[Cell]:
    rows, margin = worlds[0].rows, worlds[0].margin
    draws = {world: _drawn(world, sims, random) for world in worlds}
    seen = [gains + losses for gains, losses, _ in draws.values()]
    numbers = np.unique(np.concatenate([*seen, *(_usual_numbers(world) for world in worlds)]))
    cells = []
    for method in METHODS:
        least = least_gains(numbers, rows, margin, level=reliability, method=method)
        for world, (gains, losses, both) in draws.items():
            promoted = gains >= least[np.searchsorted(numbers, gains + losses)]
            exact = _summed(world, numbers, least) if world.truth == margin else None
            cell = _cell(world, method, reliability, promoted, exact)
            if sims:
                unpaired = _unpaired(gains + both, losses + both, rows, reliability) > margin
                cell = replace(cell, unpaired=float(unpaired.mean()), larger=float((gains >= losses).mean()))
            cells.append(cell)
    return cells


def _usual_numbers(world: World) -> NDArray[np.int64]:
    """Return the numbers of differing rows that have a probability worth counting."""
    from scipy.stats import binom

    first, last = binom.ppf([_LEFT_OUT, 1 - _LEFT_OUT], world.rows, world.disagreement).astype(int)
    return np.arange(max(0, first), last + 1)


def _summed(world: World, numbers: NDArray[np.int64], least: NDArray[np.int64]) -> float:
    from scipy.stats import binom

    differing = binom.pmf(numbers, world.rows, world.disagreement)
    reached = binom.sf(least - 1, numbers, (1 + world.truth / world.disagreement) / 2)
    return float(differing @ reached) + 2 * _LEFT_OUT


def _drawn(world: World, sims: int, random: np.random.Generator) -> NDArray[np.int64]:
    """Draw gains, losses, and rows that both models have right, shape (3, sims)."""
    gain, loss = (world.disagreement + world.truth) / 2, (world.disagreement - world.truth) / 2
    champion = min(_CHAMPION, (1 + math.sqrt(1 - 2 * world.disagreement)) / 2)
    shares = [gain, loss, champion - loss, max(0.0, 1 - champion - gain)]
    return random.multinomial(world.rows, shares, sims).T[:3]


def _cell(world: World, method: Method, reliability: float, promoted: NDArray[np.bool_], exact: float | None) -> Cell:
    if not len(promoted):
        return Cell(world, method, reliability, None, None, exact)
    share = float(promoted.mean())
    return Cell(world, method, reliability, share, math.sqrt(share * (1 - share) / len(promoted)), exact)


def _unpaired(new: NDArray[np.int64], old: NDArray[np.int64], rows: int, level: float) -> NDArray[np.float64]:
    """Bound a difference from below as if the models had been tested on different rows.

    Source: Newcombe, "Interval estimation for the difference between independent proportions", Statistics in Medicine
    17 (1998), 873-890, method 10: the distances to Wilson's bounds, added as squares.
    """
    sets = np.full_like(new, rows)
    ours, theirs = wilson(new, sets, level), wilson(old, sets, level)
    lower = ours.estimate - theirs.estimate
    lower -= np.sqrt((ours.estimate - ours.lower) ** 2 + (theirs.upper - theirs.estimate) ** 2)
    return np.asarray(lower)


def _findings(cells: Sequence[Cell], sims: int) -> tuple[Finding, ...]:
    boundary = [cell for cell in cells if cell.exact is not None]
    found = [
        _on_the_boundary([cell for cell in boundary if (cell.method, cell.reliability) == (method, reliability)])
        for method in METHODS
        for reliability in (RELIABILITY, *STRICT)
    ]
    inside = [cell for cell in cells if cell.world.truth < cell.world.margin]
    worst = max(inside, key=lambda cell: cell.drawn or 0.0)
    text = f"short of the claim: at most {worst.drawn:.4f} promoted in all {len(inside)} cells ({_told(worst.world)})"
    found.append(Finding(text, _agreement(worst, sims, 1 - worst.reliability, "greater") > _CHANCE))
    chances = [_agreement(cell, sims, cell.exact or 0.0) for cell in boundary if cell.drawn is not None]
    text = (
        f"drawn and summed shares agree in {len(chances)} cells (least chance of such a difference {min(chances):.1e})"
    )
    found.append(Finding(text, min(chances) > _CHANCE))
    named = next(cell for cell in cells if (cell.world, cell.method) == (NAMED, "efficient"))
    power = chance(NAMED, level=NAMED_RELIABILITY, method="efficient")
    text = (
        f"power: {power:.3f} promoted (drawn {named.drawn:.3f}) where {NAMED.truth:g} is true ({_told(NAMED)}, "
        f"reliability {NAMED_RELIABILITY}), at least {NAMED_POWER} wanted; the unpaired rule promotes "
        f"{named.unpaired:.3f} of them"
    )
    return (*found, Finding(text, power >= NAMED_POWER))


def _on_the_boundary(cells: Sequence[Cell]) -> Finding:
    worst = max(cells, key=lambda cell: cell.exact or 0.0)
    allowed = EFFICIENT_EXCESS if worst.method == "efficient" else 1.0
    ratio = (worst.exact or 0.0) / (1 - worst.reliability)
    text = (
        f"{worst.method}: at most {ratio:.3f} times the permitted error of {1 - worst.reliability:.4g} in all "
        f"{len(cells)} worlds on the boundary (worst: {_told(worst.world)}), {allowed:g} allowed"
    )
    return Finding(text, ratio <= allowed)


def _agreement(cell: Cell, sims: int, exact: float, side: str = "two-sided") -> float:
    """Return the chance that a drawn share differs as much as it does from an exact one."""
    from scipy.stats import binomtest

    assert cell.drawn is not None
    return float(binomtest(round(cell.drawn * sims), sims, min(1.0, exact), alternative=side).pvalue)


def _told(world: World) -> str:
    differing = f", {100 * world.disagreement:g} % differ" if world.disagreement else ""
    return f"{world.claim}, {world.rows} rows{differing}"
