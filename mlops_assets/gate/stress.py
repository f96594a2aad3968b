"""Whether the gate keeps its promise over many decisions on one test set, on rows drawn one by one.

Belongs here: sequences of challengers, of retrainings, and an adversary. Not here: single decisions (`simulation.py`),
and how looks are counted (`budget.py`).

Test rows are easy or hard, and models err, and differ from the champion, mostly on the same hard ones, so that the
predictions of challengers hang together as those of real models do: a test set that flatters one flatters many.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from mlops_assets.gate import GateError
from mlops_assets.gate.budget import Adaptivity, Budget
from mlops_assets.gate.simulation import METHODS, SEED, Finding, Progress, World, chance, least_gains

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mlops_assets.gate.bounds import Method

    Truths = NDArray[np.bool_]

ROWS: Final = 10_000
RELIABILITY: Final = 0.95

BETTER: Final = World(rows=ROWS, disagreement=0.08, margin=0.0, truth=0.0125)
BETTER_POWER: Final = 0.8
"""What is promised of a challenger that is better, and where."""

RETRAININGS: Final = 50
DECAY: Final = 0.005
CHAMPION_MARGIN: Final = -0.01
ANCHOR_MARGIN: Final = -0.02
"""Fifty retrainings, each half a point worse, under `n - o > -0.01 and n - a > -0.02`."""

ADVERSARY_STEPS: Final = 32
_ADVERSARY_BUDGETS: Final[tuple[Adaptivity, ...]] = ("none", "full")

# Per kind of row: its share, and the champion's accuracy on it; in 1/65536, on how many of the rows that the champion
# has wrong a challenger is right, and the other way round. Gains and losses are 4 % of all rows each, to the last digit
# (0.2 * 0.4 * 26214 = 0.2 * 0.6 * 17476, 0.8 * 0.03 * 21825 = 0.8 * 0.97 * 675), so noise is no better and no worse.
_HARD: Final = (0.2, 0.6, 26214, 17476)
_EASY: Final = (0.8, 0.97, 21825, 675)

# A retraining gains so many of all rows, and loses that and what it is worse by.
_RETRAINING_GAINS: Final = 0.0125
_FIRST_ACCURACY: Final = 0.9

# An adversary trains anew so much of what it knows, at every step.
_ADVERSARY_CHANGES: Final = 0.1

# A hundred questions at once take the gate hardly longer than one.
_BLOCK: Final = 100

# So many sequences are drawn at once.
_BATCH: Final = 25


@dataclass(frozen=True)
class Sequence:
    """What came of one kind of sequence.

    Attributes:
        name: What was tried.
        method: The gate's method.
        adaptivity: How the error was spent.
        steps: Decisions per sequence.
        sequences: How many were drawn.
        share: Share of the sequences in which the gate erred.
        note: What else is to be known.
    """

    name: str
    method: Method
    adaptivity: str
    steps: int
    sequences: int
    share: float
    note: str

    @property
    def deviation(self) -> float:
        """Monte Carlo standard error of the share."""
        return math.sqrt(self.share * (1 - self.share) / self.sequences)


@dataclass(frozen=True)
class Stress:
    """All sequences, and what they say of the promises."""

    sequences: tuple[Sequence, ...]
    findings: tuple[Finding, ...]

    @property
    def holds(self) -> bool:
        """Whether every promise was kept."""
        return all(finding.holds for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Return it as what JSON can hold."""
        found = [asdict(one) | {"deviation": one.deviation} for one in self.sequences]
        return {"holds": self.holds, "findings": [one._asdict() for one in self.findings], "sequences": found}


def stress(
    noise_challengers: int = 200, sequences: int = 2_000, *, seed: int = SEED, progress: Progress | None = None
) -> Stress:
    """Stress the gate with sequences of challengers.

    Args:
        noise_challengers: Challengers per sequence that are no better than the champion, and steps of its budget.
        sequences: How many sequences of noise are drawn; of retrainings, and of adversaries, a quarter of it.
        seed: Of the draws.
        progress: Told how many parts are done, and of how many.

    Returns:
        What came of them, and the findings.

    Raises:
        GateError: No challengers, or fewer than 100 sequences.
    """
    if noise_challengers < 1 or sequences < 100:
        message = (
            f"{sequences} sequences of {noise_challengers} challengers say nothing: ask for at least 100, of at least 1"
        )
        raise GateError(message)
    kinds: list[tuple[Callable[[int, np.random.Generator], NDArray[Any]], int]] = [
        (partial(_noise, challengers=noise_challengers), sequences),
        *((partial(_retrainings, method=method, anchor=True), sequences // 4) for method in METHODS),
        *((partial(_retrainings, method=method, anchor=False), sequences // 4) for method in METHODS),
        (_adversary, sequences // 4),
    ]
    parts = [
        (which, draw, min(_BATCH, count - start))
        for which, (draw, count) in enumerate(kinds)
        for start in range(0, count, _BATCH)
    ]
    randoms = map(np.random.default_rng, np.random.SeedSequence(seed).spawn(len(parts)))
    drawn: list[list[NDArray[Any]]] = [[] for _ in kinds]
    with ThreadPoolExecutor() as pool:
        found = pool.map(lambda part, random: part[1](part[2], random), parts, randoms)
        for done, ((which, _, _), one) in enumerate(zip(parts, found, strict=True), start=1):
            drawn[which].append(one)
            if progress:
                progress(done, len(parts))
    noise, guarded, guarded_too, alone, alone_too, adversary = (np.concatenate(one) for one in drawn)
    told = [
        *_told_of_noise(noise, noise_challengers),
        *_told_of_retrainings((guarded, guarded_too), "decay, with the anchor clause"),
        *_told_of_retrainings((alone, alone_too), "decay, without it"),
        *_told_of_adversary(adversary),
    ]
    return Stress(tuple(told), _findings(told[:2], told[2:4], noise_challengers))


def _noise(sequences: int, random: np.random.Generator, challengers: int) -> NDArray[np.float64]:
    """Return whether each method promoted any, and the estimates of the first and the last, shape (sequences, 4)."""
    rules = [_rule(0.0, Budget(RELIABILITY, challengers).level, method) for method in METHODS]
    found = np.empty((sequences, len(rules) + 2))
    for number in range(sequences):
        wrong, right = _test_set(random)
        draws = random.integers(0, 1 << 16, (challengers, ROWS), dtype=np.uint16)
        flips = draws < np.concatenate([wrong, right])
        gains = np.count_nonzero(flips[:, : len(wrong)], axis=1)
        losses = np.count_nonzero(flips[:, len(wrong) :], axis=1)
        estimates = (gains - losses) / ROWS
        found[number] = *(rule.promotes(gains, losses).any() for rule in rules), estimates[0], estimates[-1]
    return found


def _told_of_noise(found: NDArray[np.float64], challengers: int) -> list[Sequence]:
    together = np.corrcoef(found[:, -2], found[:, -1])[0, 1]
    note = f"the estimates of two challengers correlate at {together:.2f}"
    return [
        Sequence("noise", method, "none", challengers, len(found), float(found[:, which].mean()), note)
        for which, method in enumerate(METHODS)
    ]


def _retrainings(sequences: int, random: np.random.Generator, method: Method, *, anchor: bool) -> NDArray[np.int64]:
    """Return how often a worse model became champion, shape (sequences,)."""
    level = 1 - Budget(RELIABILITY, RETRAININGS).error / (2 if anchor else 1)
    against_champion, against_anchor = (_rule(margin, level, method) for margin in (CHAMPION_MARGIN, ANCHOR_MARGIN))
    first = random.random((sequences, ROWS), dtype=np.float32) < _FIRST_ACCURACY
    champion, promotions = first, np.zeros(sequences, dtype=np.int64)
    for _ in range(RETRAININGS):
        truth = (_FIRST_ACCURACY - DECAY * promotions)[:, None]
        right = np.where(champion, 1 - (_RETRAINING_GAINS + DECAY) / truth, _RETRAINING_GAINS / (1 - truth))
        new = random.random((sequences, ROWS), dtype=np.float32) < right
        promoted = against_champion.promotes(*_counts(new, champion))
        if anchor:
            promoted &= against_anchor.promotes(*_counts(new, first))
        champion = np.where(promoted[:, None], new, champion)
        promotions += promoted
    return promotions


def _told_of_retrainings(found: Iterable[NDArray[np.int64]], name: str) -> list[Sequence]:
    told = []
    for method, promotions in zip(METHODS, found, strict=True):
        fallen = 100 * DECAY * promotions
        too_far = float((fallen > -100 * ANCHOR_MARGIN + 1e-9).mean())
        note = f"ends {fallen.mean():.1f} points below the first champion, {fallen.max():.1f} at worst"
        told.append(Sequence(name, method, "none", RETRAININGS, len(promotions), too_far, note))
    return told


def _adversary(sequences: int, random: np.random.Generator) -> NDArray[np.bool_]:
    """Let somebody see all estimates, and go on from the best, though nothing is better in truth; (sequences, 2)."""
    levels = [Budget(RELIABILITY, ADVERSARY_STEPS, adaptivity).level for adaptivity in _ADVERSARY_BUDGETS]
    rules = [_rule(0.0, level, "efficient") for level in levels]
    deceived = np.zeros((sequences, len(rules)), dtype=bool)
    for number in range(sequences):
        wrong, right = _test_set(random)
        best, height = np.zeros(ROWS, dtype=bool), -math.inf
        for step in range(ADVERSARY_STEPS):
            draws = random.random((2, ROWS), dtype=np.float32)
            anew = draws[0] < (_ADVERSARY_CHANGES if step else 1)
            flips = np.where(anew, draws[1] * (1 << 16) < np.concatenate([wrong, right]), best)
            gains, losses = (np.array([np.count_nonzero(part)]) for part in np.split(flips, [len(wrong)]))
            deceived[number] |= [rule.promotes(gains, losses)[0] for rule in rules]
            if gains[0] - losses[0] > height:
                best, height = flips, gains[0] - losses[0]
    return deceived


def _told_of_adversary(found: NDArray[np.bool_]) -> list[Sequence]:
    note = "for information: it sees the estimates, and `full` is meant for verdicts"
    return [
        Sequence("adversary", "efficient", adaptivity, ADVERSARY_STEPS, len(found), float(found[:, which].mean()), note)
        for which, adaptivity in enumerate(_ADVERSARY_BUDGETS)
    ]


def _test_set(random: np.random.Generator) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    """Draw test rows; returns how easily a challenger differs on those that the champion has wrong, and right."""
    kinds = (_HARD, _EASY)
    shares = [share * part for share, accuracy, _, _ in kinds for part in (1 - accuracy, accuracy)]
    counts = random.multinomial(ROWS, shares).reshape(2, 2)
    flips = np.array([[gained, lost] for _, _, gained, lost in kinds], dtype=np.uint16)
    return np.repeat(flips[:, 0], counts[:, 0]), np.repeat(flips[:, 1], counts[:, 1])


def _counts(new: Truths, old: Truths) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    return np.count_nonzero(new & ~old, axis=1), np.count_nonzero(old & ~new, axis=1)


class _Rule:
    """The gate's rule for `n - o > margin`, which is asked once for every block of numbers of differing rows."""

    def __init__(self, margin: float, level: float, method: Method) -> None:
        self._ask = partial(least_gains, rows=ROWS, margin=margin, level=level, method=method)
        self._least = np.full(ROWS + 1, -1)

    def promotes(self, gains: NDArray[np.int64], losses: NDArray[np.int64]) -> NDArray[np.bool_]:
        differing = gains + losses
        unknown = differing[self._least[differing] < 0]
        if len(unknown):
            blocks = np.unique(unknown // _BLOCK)[:, None] * _BLOCK + np.arange(_BLOCK)
            numbers = blocks[blocks <= ROWS]
            self._least[numbers] = self._ask(numbers)
        return np.asarray(gains >= self._least[differing])


_rule = lru_cache(maxsize=32)(_Rule)


def _findings(noise: Iterable[Sequence], decay: Iterable[Sequence], challengers: int) -> tuple[Finding, ...]:
    permitted = 1 - RELIABILITY
    found = []
    for one in noise:
        text = (
            f"noise, {one.method}: some of {challengers} challengers promoted in {one.share:.4f} of {one.sequences} "
            f"sequences, {permitted:.4g} allowed"
        )
        found.append(Finding(text, one.share <= permitted))
    level = Budget(RELIABILITY, challengers).level
    power = chance(BETTER, level=level, method="efficient")
    text = (
        f"power: a challenger {100 * BETTER.truth:g} points better is promoted with probability {power:.3f} at one of "
        f"the {challengers} steps, at least {BETTER_POWER} wanted"
    )
    found.append(Finding(text, power >= BETTER_POWER))
    for one in decay:
        text = (
            f"decay, {one.method}: more than {-100 * ANCHOR_MARGIN:g} points below the anchor after {RETRAININGS} "
            f"retrainings in {one.share:.4f} of {one.sequences} sequences, {permitted:.4g} allowed"
        )
        found.append(Finding(text, one.share <= permitted))
    return tuple(found)
