"""What the terms of a condition measure on test rows, in the two shapes that intervals take.

Belongs here: which rows a term speaks of, what each of them contributes, and how contributions become a metric. Not
here: bounds, verdicts, and the report of an evaluation.

The definitions are those of scikit-learn and, for `OVER_GROUPS` and the rates, of Fairlearn; a Brier score is summed
over the classes (scikit-learn's with `scale_by_half=False`), and the calibration error has ten bins of equal width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mlops_assets.gate import GateError
from mlops_assets.gate.clauses import BINARY, METRICS, MODELS, OF_A_CLASS, OVER_GROUPS, Condition, Term, class_name
from mlops_assets.gate.gaps import Gap
from mlops_assets.gate.rows import Outputs, Paired

Weights = NDArray[np.float64]
"""How often each cell of test rows occurs, shape (resamples, cells)."""

_BINS: Final = 10
_SHOWN: Final = 5
# Probabilities from float32 or float16 logits sum to one only nearly.
_SUM_TOLERANCE: Final = 1e-2


@dataclass(frozen=True, eq=False)
class RowMean:
    """A metric that is the mean of one number per row, over rows that were chosen without a look at predictions.

    Attributes:
        rows: Which of all test rows it is over, shape (rows,).
        values: What each contributes, 0 elsewhere, shape (rows,).
        highest: The most that a row can contribute; the least is 0.
    """

    rows: NDArray[np.bool_]
    values: NDArray[np.float64]
    highest: float = 1.0

    def statistic(self) -> Statistic:
        """Return the same as a function of weights."""
        return _of_sums(
            self.rows,
            np.unique(self.values, return_inverse=True)[1],
            np.stack([self.rows, self.values], axis=1),
            lambda sums: _ratio(sums[:, 1], sums[:, 0]),
            scarce=int(self.rows.sum()),
            rare=_rare(self.values[self.rows]),
        )


@dataclass(frozen=True, eq=False)
class Statistic:
    """A metric as a function of how often each row occurs.

    Attributes:
        rows: Which of all test rows it is over, shape (rows,).
        codes: Rows of one code are alike to it, -1 those that it is not over; shape (rows,).
        on: Takes indices of rows that stand for cells of rows, shape (cells,); returns a function of `Weights` of
            these cells, whose results have shape (resamples,).
        scarce: Rows in the smallest group that it divides by.
        rare: Rows of the rarer outcome, in the group where they are fewest, of a share that is compared between groups;
            None for other metrics.
        kinked: Whether it is a sum of distances from 0, near which resamples lie too high.
    """

    rows: NDArray[np.bool_]
    codes: NDArray[np.int64]
    on: Callable[[NDArray[np.intp]], Callable[[Weights], NDArray[np.float64]]]
    scarce: int
    rare: int | None = None
    kinked: bool = False


Measure = RowMean | Statistic | Gap
"""What a term comes to."""


class Meter:
    """Measures the terms of one condition on one test set.

    Raises:
        ConditionError: A term asks for classes or slice columns that are not there.
    """

    def __init__(self, condition: Condition, paired: Paired) -> None:
        self._condition = condition
        self._paired = paired
        self._models = {"n": paired.new, "o": paired.old, "a": paired.anchor}
        classes = [term for term in condition.terms if term.metric in BINARY or term.metric not in ("", *METRICS)]
        condition.require(self._classes if classes else (), paired.slices)

    def measure(self, term: Term) -> Measure:
        """Measure one term; the models that it speaks of have to be there.

        Raises:
            ConditionError: The slice has no rows, the metric has none to rest on, or it needs what the model did not
                give.
        """
        rows = self._rows(term)
        if term.model == "d":
            assert self._paired.old is not None
            return RowMean(rows, ((self._paired.new.predicted != self._paired.old.predicted) & rows).astype(np.float64))
        outputs = self._models[term.model]
        assert outputs is not None
        metric, _, name = term.metric.partition("_")
        if term.metric not in METRICS:
            return self._of_class(term, metric, self._names.index(name), rows, outputs)
        if term.metric in ("f1", "precision", "recall"):
            return self._of_class(term, metric, 1, rows, outputs)
        measured: Measure = getattr(self, f"_{term.metric}")(term, rows, outputs)
        return measured

    def _rows(self, term: Term) -> NDArray[np.bool_]:
        if term.slice is None or term.slice.value is None:
            return np.ones(len(self._paired), dtype=np.bool_)
        values = self._texts(term.slice.column)
        rows = np.asarray(values == term.slice.value)
        if not rows.any():
            there = sorted({*values.tolist()})
            known = ", ".join(there[:_SHOWN]) + (", ..." if len(there) > _SHOWN else "")
            raise self._error(term, f"no test row has {term.slice.column}={term.slice.value} (there are {known})")
        return rows

    def _texts(self, column: str) -> NDArray[np.str_]:
        return np.array([str(value) for value in self._paired.slices[column].tolist()])

    def _error(self, term: Term, problem: str) -> GateError:
        return self._condition.error_at(term, problem)

    # Classes

    @cached_property
    def _classes(self) -> tuple[str, ...]:
        if self._paired.classes:
            return self._paired.classes
        said = [outputs.predicted for outputs in self._models.values() if outputs is not None]
        return tuple(str(value) for value in np.unique(np.concatenate([self._paired.label, *said])).tolist())

    @cached_property
    def _names(self) -> list[str]:
        return [class_name(name) for name in self._classes]

    @cached_property
    def _label(self) -> NDArray[np.int64]:
        return self._indices(self._paired.label)

    def _indices(self, values: NDArray[Any]) -> NDArray[np.int64]:
        """The place of each row's class among the classes."""
        index = {name: place for place, name in enumerate(self._classes)}
        different, inverse = np.unique(values, return_inverse=True)
        unknown = [str(value) for value in different.tolist() if str(value) not in index]
        if unknown:
            message = f"'{unknown[0]}' is none of the classes {', '.join(self._classes)}: name every class that occurs"
            raise GateError(message)
        return np.array([index[str(value)] for value in different.tolist()])[inverse]

    def _confusion(self, rows: NDArray[np.bool_], outputs: Outputs) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Codes of the rows, and per row by class whether it is hit, of the class, and predicted as it."""
        predicted, classes = self._indices(outputs.predicted), np.arange(len(self._classes))
        of_class, as_class = self._label[:, None] == classes, predicted[:, None] == classes
        features = np.stack([of_class & as_class, of_class, as_class], axis=1).astype(np.float64)
        return self._label * len(classes) + predicted, features.reshape(len(rows), -1)

    def _of_class(
        self, term: Term, metric: str, which: int, rows: NDArray[np.bool_], outputs: Outputs
    ) -> RowMean | Statistic:
        assert metric in OF_A_CLASS
        if metric == "recall":
            return self._rate(term, rows & (self._label == which), self._indices(outputs.predicted) == which)
        codes, features = self._confusion(rows, outputs)
        hits, of_class, as_class = (features[:, which + len(self._classes) * part] for part in range(3))
        if metric == "precision":
            columns = np.stack([hits, as_class], axis=1)
            return _of_sums(
                rows, codes, columns, lambda sums: _ratio(sums[:, 0], sums[:, 1]), scarce=_least(as_class, rows)
            )
        columns = np.stack([2 * hits, of_class + as_class], axis=1)
        return _of_sums(
            rows, codes, columns, lambda sums: _ratio(sums[:, 0], sums[:, 1]), scarce=_least(of_class, rows)
        )

    def _rate(self, term: Term, rows: NDArray[np.bool_], counts: NDArray[np.bool_]) -> RowMean:
        if not rows.any():
            raise self._error(term, f"{term.metric} has no test rows to rest on: none is of that class")
        return RowMean(rows, (counts & rows).astype(np.float64))

    def _accuracy(self, _term: Term, rows: NDArray[np.bool_], outputs: Outputs) -> RowMean:
        return RowMean(rows, ((outputs.predicted == self._paired.label) & rows).astype(np.float64))

    def _selection_rate(self, term: Term, rows: NDArray[np.bool_], outputs: Outputs) -> RowMean:
        return self._rate(term, rows, self._indices(outputs.predicted) == 1)

    def _false_positive_rate(self, term: Term, rows: NDArray[np.bool_], outputs: Outputs) -> RowMean:
        return self._rate(term, rows & (self._label == 0), self._indices(outputs.predicted) == 1)

    def _false_negative_rate(self, term: Term, rows: NDArray[np.bool_], outputs: Outputs) -> RowMean:
        return self._rate(term, rows & (self._label == 1), self._indices(outputs.predicted) == 0)

    def _balanced_accuracy(self, _term: Term, rows: NDArray[np.bool_], outputs: Outputs) -> Statistic:
        codes, features = self._confusion(rows, outputs)
        size = len(self._classes)

        def mean_recall(sums: NDArray[np.float64]) -> NDArray[np.float64]:
            return _mean_where(sums[:, :size], sums[:, size : 2 * size])

        of_class = features[:, size : 2 * size]
        return _of_sums(rows, codes, features, mean_recall, scarce=_least(of_class[:, of_class.any(axis=0)], rows))

    def _macro_f1(self, _term: Term, rows: NDArray[np.bool_], outputs: Outputs) -> Statistic:
        codes, features = self._confusion(rows, outputs)
        size = len(self._classes)

        def mean_f1(sums: NDArray[np.float64]) -> NDArray[np.float64]:
            return _mean_where(2 * sums[:, :size], sums[:, size : 2 * size] + sums[:, 2 * size :])

        there = features[rows][:, size:].reshape(-1, 2, size).any(axis=(0, 1))
        return _of_sums(rows, codes, features, mean_f1, scarce=_least(features[:, size : 2 * size][:, there], rows))

    # Groups

    def _demographic_parity_difference(self, term: Term, _rows: NDArray[np.bool_], outputs: Outputs) -> Gap:
        members, selected = self._groups(term), self._indices(outputs.predicted) == 1
        return Gap((members & selected[:, None]).sum(axis=0)[None, :], members.sum(axis=0)[None, :])

    def _equalized_odds_difference(self, term: Term, _rows: NDArray[np.bool_], outputs: Outputs) -> Gap:
        # The rate of predicted positives is the true positive rate among positive rows, the false one among the others.
        members, selected = self._groups(term), (self._indices(outputs.predicted) == 1)[:, None]
        kinds = [members & (self._label == of)[:, None] for of in (1, 0)]
        return Gap(
            np.stack([(kind & selected).sum(axis=0) for kind in kinds]), np.stack([kind.sum(axis=0) for kind in kinds])
        )

    def _groups(self, term: Term) -> NDArray[np.bool_]:
        """Per row and group of a column whether the row belongs to it."""
        assert term.metric in OVER_GROUPS
        assert term.slice is not None
        names, group = np.unique(self._texts(term.slice.column), return_inverse=True)
        if len(names) < 2:
            raise self._error(
                term, f"every test row has {term.slice.column}={names[0]}: there are no groups to compare"
            )
        return np.asarray(group[:, None] == np.arange(len(names)))

    # Probabilities

    def _probabilities(self, term: Term, outputs: Outputs) -> NDArray[np.float64]:
        scores = outputs.scores
        if scores is None:
            raise self._error(term, f"{term.metric} needs probabilities, and there are none of {MODELS[term.model]}")
        if scores.min() < 0 or np.abs(scores.sum(axis=1) - 1).max() > _SUM_TOLERANCE:
            raise self._error(term, f"{term.metric} needs probabilities, and scores of {MODELS[term.model]} are none")
        return np.asarray(scores / scores.sum(axis=1, keepdims=True))

    def _of_truth(self, probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(probabilities[np.arange(len(probabilities)), self._label])

    def _brier(self, term: Term, rows: NDArray[np.bool_], outputs: Outputs) -> RowMean:
        given = self._probabilities(term, outputs)
        distances = (given**2).sum(axis=1) - 2 * self._of_truth(given) + 1
        return RowMean(rows, distances.clip(0.0, 2.0) * rows, highest=2.0)

    def _log_loss(self, term: Term, rows: NDArray[np.bool_], outputs: Outputs) -> Statistic:
        # A probability of zero for what happened would be an infinite loss; this is scikit-learn's bound too.
        likelihood = self._of_truth(self._probabilities(term, outputs)).clip(np.finfo(np.float64).eps, 1.0)
        return RowMean(rows, -np.log(likelihood) * rows).statistic()

    def _ece(self, term: Term, rows: NDArray[np.bool_], outputs: Outputs) -> Statistic:
        given = self._probabilities(term, outputs)
        confidence, right = given.max(axis=1), given.argmax(axis=1) == self._label
        which = np.searchsorted(np.arange(1, _BINS) / _BINS, confidence, side="left")
        gaps = np.where(which[:, None] == np.arange(_BINS), (right - confidence)[:, None], 0.0)
        codes = np.unique(np.where(right, confidence, -confidence), return_inverse=True)[1]
        columns = np.concatenate([gaps, np.ones((len(rows), 1))], axis=1)

        def error(sums: NDArray[np.float64]) -> NDArray[np.float64]:
            return _ratio(np.abs(sums[:, :-1]).sum(axis=1), sums[:, -1])

        return replace(_of_sums(rows, codes, columns, error, scarce=int(rows.sum())), kinked=True)

    def _auc(self, term: Term, rows: NDArray[np.bool_], outputs: Outputs) -> Statistic:
        if outputs.scores is None:
            raise self._error(term, f"auc needs scores, and there are none of {MODELS[term.model]}")
        score, positive = outputs.scores[:, -1], self._label == 1
        rank = np.unique(score, return_inverse=True)[1]

        def on(cells: NDArray[np.intp]) -> Callable[[Weights], NDArray[np.float64]]:
            ours = np.flatnonzero(rows[cells])
            ours = ours[np.argsort(rank[cells[ours]], kind="stable")]
            above, below = (ours[positive[cells[ours]] == wanted] for wanted in (True, False))
            ranks = rank[cells[below]]
            beaten, tied = (np.searchsorted(ranks, rank[cells[above]], side) for side in ("left", "right"))
            return lambda weights: _share_of_pairs(weights[:, above], weights[:, below], beaten, tied)

        codes = np.where(rows, rank * 2 + positive, -1)
        return Statistic(rows, codes, on, min(_least(positive, rows), _least(~positive, rows)))

    # Numbers

    def _mae(self, term: Term, rows: NDArray[np.bool_], outputs: Outputs) -> Statistic:
        return RowMean(rows, np.abs(self._errors(term, outputs)) * rows).statistic()

    def _rmse(self, term: Term, rows: NDArray[np.bool_], outputs: Outputs) -> Statistic:
        squares = self._errors(term, outputs) ** 2
        codes = np.unique(squares, return_inverse=True)[1]
        columns = np.stack([squares, np.ones(len(rows))], axis=1)
        return _of_sums(
            rows, codes, columns, lambda sums: np.sqrt(_ratio(sums[:, 0], sums[:, 1])), scarce=int(rows.sum())
        )

    def _errors(self, term: Term, outputs: Outputs) -> NDArray[np.float64]:
        if self._paired.label.dtype.kind not in "biuf":
            raise self._error(term, f"{term.metric} is of numbers, and the labels are text")
        return outputs.predicted.astype(np.float64) - self._paired.label.astype(np.float64)


def _of_sums(
    rows: NDArray[np.bool_],
    codes: NDArray[np.integer[Any]],
    columns: NDArray[Any],
    finish: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    *,
    scarce: int,
    rare: int | None = None,
) -> Statistic:
    """A metric that is a function of sums over rows, of `columns` of shape (rows, sums)."""
    summed = columns * rows[:, None].astype(np.float64)

    def on(cells: NDArray[np.intp]) -> Callable[[Weights], NDArray[np.float64]]:
        chosen = summed[cells]
        return lambda weights: finish(weights @ chosen)

    return Statistic(rows, np.where(rows, codes, -1), on, scarce, rare)


def _least(groups: NDArray[Any], rows: NDArray[np.bool_]) -> int:
    """Rows in the smallest of groups, given by a truth value per row (and group)."""
    return int(np.min(groups[rows].sum(axis=0)))


def _rare(values: NDArray[Any], groups: NDArray[np.bool_] | None = None) -> int | None:
    """Rows of the rarer value, in the group where they are fewest; None if the values are not ones and zeros."""
    if not np.isin(values, (0, 1)).all():
        return None
    within = np.ones((len(values), 1), dtype=np.bool_) if groups is None else groups
    ones = (within & (values == 1)[:, None]).sum(axis=0)
    return int(np.minimum(ones, within.sum(axis=0) - ones).min())


def _ratio(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    """Divide, 0 where there is nothing to divide by."""
    return np.divide(part, whole, out=np.zeros_like(part, dtype=np.float64), where=whole > 0)


def _mean_where(parts: NDArray[np.float64], wholes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Average the ratios of shape (resamples, classes) over the classes that have one."""
    return _ratio(_ratio(parts, wholes).sum(axis=1), (wholes > 0).sum(axis=1))


def _share_of_pairs(
    above: Weights, below: Weights, beaten: NDArray[np.intp], tied: NDArray[np.intp]
) -> NDArray[np.float64]:
    """How often a positive row beats a negative one, ties counting half.

    Args:
        above: Weights of the positive rows.
        below: Weights of the negative rows, by rising score.
        beaten: How many of the negative rows score less than each positive one.
        tied: How many score at most as much.
    """
    sums = np.concatenate([np.zeros((len(below), 1)), below.cumsum(axis=1)], axis=1)
    wins = np.einsum("ij,ij->i", above, sums[:, beaten] + sums[:, tied]) / 2
    return _ratio(wins, above.sum(axis=1) * below.sum(axis=1))
