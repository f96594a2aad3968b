"""The largest difference of a share between groups of rows, and its bounds.

Belongs here: what fairness metrics over the groups of a column have in common. Not here: which rows and shares those
are (`metrics.py`). A bootstrap will not do: where all groups are alike the metric is at its least, and resamples say
that it never moves.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlops_assets.gate.intervals import Interval, clopper_pearson


@dataclass(frozen=True, eq=False)
class Gap:
    """The highest share among the groups less the lowest; of several kinds of rows, the largest such difference.

    Attributes:
        hits: Rows that count, shape (kinds, groups).
        sizes: Rows in all, shape (kinds, groups); a group may have none of a kind.
    """

    hits: NDArray[np.int64]
    sizes: NDArray[np.int64]

    @property
    def rows(self) -> int:
        """Test rows that it rests on."""
        return int(self.sizes.sum())

    def interval(self, level: float) -> Interval:
        """Bound the difference, with a guarantee that is strict at any number of rows.

        The upper bound is wrong only if the bound of the truly highest share or that of the truly lowest is: two
        errors, however many groups there are. The lower bound rests on the two shares that look farthest apart, so all
        have to be right.

        Args:
            level: One-sided confidence of each bound, from 0.5 to below 1.

        Source: Clopper and Pearson, Biometrika 26 (1934), 404-413, for the shares; a union bound over them.
        """
        low, high = self._shares(1 - (1 - level) / 2)
        upper = float((high.max(axis=1) - low.min(axis=1)).max())
        low, high = self._shares(1 - (1 - level) / (2 * self.sizes.size))
        lower = max(0.0, float((low.max(axis=1) - high.min(axis=1)).max()))
        shares = np.divide(self.hits, self.sizes, out=np.zeros(self.hits.shape), where=self.sizes > 0)
        value = float((shares.max(axis=1) - shares.min(axis=1)).max())
        return Interval(value, min(lower, value), max(upper, value))

    def _shares(self, level: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Lower and upper bounds of every share; nothing is known of one without rows."""
        there = self.sizes > 0
        found = clopper_pearson(self.hits, np.maximum(self.sizes, 1), level)
        return np.where(there, found.lower, 0.0), np.where(there, found.upper, 1.0)
