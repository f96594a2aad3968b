"""The exact distribution of gains minus losses, over rows of which each is a gain, a loss or neither.

Belongs here: its tail, and what is known about that. Not here: tests and bounds made of it.

With a difference m = P(gain) - P(loss) that is given, the tail P(gains - losses >= t) grows with the share
D = P(gain) + P(loss) wherever D <= 1/2 and t >= (rows - 1) m + 2. For its derivative is rows / 2 times
P(S = t - 1) - P(S = t), S being gains minus losses over one row less. With D <= 1/2 the generating polynomial of one
row has real zeros only, hence S is distributed as a constant plus a sum of independent Bernoulli variables, whose
probabilities fall from the mode on, and that is less than 1 away from the mean (Darroch, "On the distribution of the
number of successes in independent trials", Annals of Mathematical Statistics 35 (1964), 1317-1321).
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

# Numbers of losses further than this from their mean, in standard deviations, add nothing that a float can hold.
_WIDTH: Final = 10.0
_CELLS: Final = 2_000_000


def tail(
    least: NDArray[np.float64], difference: NDArray[np.float64], share: NDArray[np.float64], rows: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Compute the probability that gains exceed losses by so many.

    Args:
        least: What `gains - losses` is to reach, whole numbers, shape (cases,).
        difference: P(gain) - P(loss), likewise.
        share: P(gain) + P(loss), at least the difference's size and below 1.
        rows: Rows, whole numbers.

    Returns:
        P(gains - losses >= least), shape (cases,).
    """
    gain, loss = (share + difference) / 2, (share - difference) / 2
    deviation = np.sqrt(rows * loss * (1 - loss))
    reach = _WIDTH * deviation + _WIDTH**2 / 2
    first = np.maximum(0.0, np.floor(rows * loss - reach))
    last = np.minimum(rows, np.ceil(rows * loss + reach))
    # The sum runs over a smooth bell of at least this deviation; by Poisson's summation formula, steps of half of it
    # change the sum by a factor of 1 + exp(-8 pi^2).
    step = np.maximum(1.0, np.floor(np.sqrt(rows * gain * loss / share) / 2))
    result = np.empty(len(rows))
    terms = (last - first) // step + 1
    cases = np.stack([least, gain, loss, rows, first, step])
    # Cases of like width together, and no more at once than memory should hold.
    order = np.argsort(terms)
    at_once = max(1, _CELLS // int(terms.max(initial=1)))
    for start in range(0, len(order), at_once):
        some = order[start : start + at_once]
        result[some] = _sums(cases[:, some], int(terms[some[-1]]))
    return result


def _sums(cases: NDArray[np.float64], terms: int) -> NDArray[np.float64]:
    """Sum over so many numbers of losses; `cases` are least, gain, loss, rows, first and step of each case."""
    from scipy.special import betainc, gammaln, xlog1py, xlogy

    least, gain, loss, rows, first, step = cases[:, :, None]
    losses = first + step * np.arange(terms)
    there = losses <= rows
    losses = np.minimum(losses, rows)
    others = rows - losses
    ways = gammaln(rows + 1) - gammaln(losses + 1) - gammaln(others + 1)
    chance = np.exp(ways + xlogy(losses, loss) + xlog1py(others, -loss))
    needed = least + losses
    possible = np.clip(needed, 1.0, np.maximum(others, 1.0))
    reached = betainc(possible, np.maximum(others, 1.0) - possible + 1, gain / (1 - loss))
    reached = np.where(needed <= 0, 1.0, np.where(needed > others, 0.0, reached))
    return np.asarray((step * chance * reached * there).sum(axis=1))
