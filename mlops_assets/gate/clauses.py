"""What a condition is made of: models, metrics, slices, terms, clauses, and their normal form as text.

Belongs here: the tree that the parser (`condition.py`) makes and the gate judges. Not here: the grammar.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from typing import Final, Literal, NamedTuple

from mlops_assets.gate.tokens import ConditionError, error_at

Direction = Literal[">", "<", ">=", "<="]
Model = Literal["n", "o", "a", "d"]

MODELS: Final[Mapping[Model, str]] = {
    "n": "the new model",
    "o": "the old one, the champion",
    "a": "the anchor",
    "d": "share of predictions that differ",
}

_SHARE = (0.0, 1.0)
METRICS: Final[Mapping[str, tuple[float, float]]] = {
    "accuracy": _SHARE,
    "balanced_accuracy": _SHARE,
    "macro_f1": _SHARE,
    "log_loss": (0.0, math.inf),
    "brier": (0.0, 2.0),
    "ece": _SHARE,
    "auc": _SHARE,
    "f1": _SHARE,
    "precision": _SHARE,
    "recall": _SHARE,
    "selection_rate": _SHARE,
    "false_positive_rate": _SHARE,
    "false_negative_rate": _SHARE,
    "demographic_parity_difference": _SHARE,
    "equalized_odds_difference": _SHARE,
    "mae": (0.0, math.inf),
    "rmse": (0.0, math.inf),
}
"""What a condition can say of a model, and between which values that lies."""

OF_A_CLASS: Final = ("f1", "precision", "recall")
"""Metrics that are also known by class, as `recall_setosa`."""

BINARY: Final = (
    "auc",
    "f1",
    "precision",
    "recall",
    "selection_rate",
    "false_positive_rate",
    "false_negative_rate",
    "demographic_parity_difference",
    "equalized_odds_difference",
)
"""Metrics that need a positive and a negative class."""

OVER_GROUPS: Final = ("demographic_parity_difference", "equalized_odds_difference")
"""Metrics that compare the groups of a column, as `n.equalized_odds_difference[sex]`."""

# What one test row can contribute to accuracies and d: predictions may differ and both be wrong.
_ROWS: Final[Sequence[Mapping[Model, int]]] = [
    {"n": n, "o": o, "a": a, "d": d}
    for n, o, a, d in itertools.product((0, 1), repeat=4)
    if d == abs(n - o) or not (n or o)
]


class Slice(NamedTuple):
    """The rows with one value in a column; without a value, the groups of that column."""

    column: str
    value: str | None = None

    def __str__(self) -> str:
        """Return the slice as a condition writes it."""
        return f"[{self.column}]" if self.value is None else f"[{self.column}={self.value}]"


class Term(NamedTuple):
    """A variable of a condition: what is measured of which model, on which rows.

    Attributes:
        model: Whose; `d` is of the new model and the champion together.
        metric: One of `METRICS`, or one of `OF_A_CLASS` with a class behind `_`; empty for `d`.
        slice: The rows it is measured on; None for all.
    """

    model: Model
    metric: str = "accuracy"
    slice: Slice | None = None

    def __str__(self) -> str:
        """Return the term in its normal form."""
        metric = "" if self.metric in ("", "accuracy") else f".{self.metric}"
        return f"{self.model}{metric}{self.slice or ''}"

    @property
    def range(self) -> tuple[float, float]:
        """The lowest and the highest value that it can have."""
        return METRICS.get(self.metric, _SHARE)


@dataclass(frozen=True)
class Clause:
    """One comparison, as `coefficients · terms  direction  threshold`.

    The direction stays as written, so that messages read as their author thinks: only a clause with all its variables
    on the right is turned round. Equality leaves out how and where a clause was written.

    Attributes:
        text: The clause as written, white space collapsed.
        coefficients: Term to factor; only factors that are not zero, at least one.
        threshold: What the linear form is compared with.
        direction: How it is compared.
        tolerance: What stood after `+/-`; it sizes test sets and takes no part in a verdict.
        start: Offset of the clause's first character in the condition's text.
        end: Offset behind its last character.
        places: Offset of each term's first occurrence.
    """

    text: str = field(compare=False)
    coefficients: Mapping[Term, float] = field(hash=False)
    threshold: float
    direction: Direction
    tolerance: float | None
    start: int = field(compare=False)
    end: int = field(compare=False)
    places: Mapping[Term, int] = field(compare=False)

    @property
    def models(self) -> frozenset[Model]:
        """Which models it speaks of."""
        return frozenset(term.model for term in self.coefficients)

    @property
    def range(self) -> tuple[float, float]:
        """The lowest and the highest value that the linear form can take, on any test set.

        Accuracies and `d` of the same rows hang together: their combinations lie in the convex hull of what one row can
        contribute. Everything else is taken as if each term went its own way.
        """
        lowest = highest = Fraction(0)
        together: dict[Slice | None, dict[Model, Fraction]] = {}
        for term, factor in self.coefficients.items():
            exact = Fraction(repr(factor))
            if term.metric in ("", "accuracy"):
                together.setdefault(term.slice, {})[term.model] = exact
            elif math.inf in term.range:
                return (-math.inf, math.inf) if len(self.coefficients) > 1 or factor < 0 else (0.0, math.inf)
            else:
                ends = [exact * Fraction(end) for end in term.range]
                lowest, highest = lowest + min(ends), highest + max(ends)
        for factors in together.values():
            values = [sum(factors.get(model, Fraction(0)) * value for model, value in row.items()) for row in _ROWS]
            lowest, highest = lowest + min(values), highest + max(values)
        return float(lowest), float(highest)

    @property
    def form(self) -> str:
        """The linear form as text, positive terms first, such as `2*n - o`."""
        form = ""
        for variable, factor in sorted(self.coefficients.items(), key=lambda item: item[1] < 0):
            term = str(variable) if abs(factor) == 1 else f"{decimal(abs(factor))}*{variable}"
            if form:
                form += f" - {term}" if factor < 0 else f" + {term}"
            else:
                form = f"-{term}" if factor < 0 else term
        return form

    def __str__(self) -> str:
        """Return the clause in its normal form, the threshold alone on the right."""
        tolerance = "" if self.tolerance is None else f" +/- {decimal(self.tolerance)}"
        return f"{self.form} {self.direction} {decimal(self.threshold)}{tolerance}"


@dataclass(frozen=True)
class Condition:
    """A whole promotion rule: it holds when every clause holds.

    Attributes:
        clauses: At least one, in the order written.
        text: The rule as written.
    """

    clauses: tuple[Clause, ...]
    text: str = field(compare=False)

    @property
    def absolute(self) -> tuple[Clause, ...]:
        """The clauses on `n` alone, which need no champion."""
        return tuple(clause for clause in self.clauses if clause.models == {"n"})

    @property
    def terms(self) -> Mapping[Term, int]:
        """Every variable, and the offset of its first occurrence."""
        return {term: place for clause in reversed(self.clauses) for term, place in clause.places.items()}

    def error_at(self, term: Term, problem: str) -> ConditionError:
        """Make the error that points at a variable, for whoever knows which slices and classes there are."""
        return error_at(self.text, self.terms[term], problem)

    def require(self, classes: Sequence[str], columns: Collection[str]) -> None:
        """Check that classes and slice columns are there, and that metrics fit the number of classes.

        Args:
            classes: The classes, the positive one of two last.
            columns: The columns by whose values rows can be told apart.

        Raises:
            ConditionError: A term asks for something else; points at it.
        """
        named = {class_name(one) for one in classes}
        for term in self.terms:
            metric, _, of_class = term.metric.partition("_")
            if term.slice and term.slice.column not in columns:
                known = ", ".join(columns) or "none; name some as `slices`"
                raise self.error_at(term, f"there is no slice column '{term.slice.column}' (known: {known})")
            if term.metric in METRICS:
                if term.metric in BINARY and len(classes) != 2:
                    hint = f": write {term.model}.{term.metric}_CLASS" if term.metric in OF_A_CLASS else ""
                    raise self.error_at(term, f"{term.metric} is of two classes, and there are {len(classes)}{hint}")
            elif term.metric and metric in OF_A_CLASS and of_class not in named:
                known = ", ".join(sorted(named))
                raise self.error_at(term, f"there is no class '{of_class}' (known: {known})")

    def __str__(self) -> str:
        """Return the normal form, which parses to an equal condition."""
        return " and ".join(str(clause) for clause in self.clauses)


def decimal(value: float) -> str:
    """Write a number as the grammar reads it, without an exponent, to the last digit."""
    return format(Decimal(repr(value)).normalize(), "f")


def class_name(name: str) -> str:
    """Write a class as the name of a metric can hold it, `recall_New_York`."""
    return re.sub(r"\W+", "_", name)
