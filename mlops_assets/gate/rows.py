"""What models said about the same test rows, side by side.

Belongs here: the rows that a decision rests on, and the refusal of what cannot be compared row by row. Not here: where
predictions are stored, and what they are worth.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlops_assets.gate import GateError


@dataclass(frozen=True, eq=False)
class Outputs:
    """What one model said.

    Attributes:
        predicted: Predicted classes (numbers or text), or numbers in a regression, shape (rows,).
        scores: Probabilities, shape (rows, classes), in the order of the rows' classes; None where only the prediction
            is known.
    """

    predicted: NDArray[Any]
    scores: NDArray[np.float64] | None = None


@dataclass(frozen=True, eq=False)
class Paired:
    """What up to three models said about the same test rows, in the same order.

    Attributes:
        label: True classes (numbers or text) or values, shape (rows,).
        new: The new model.
        old: The champion; None when there is none.
        anchor: The pinned version; None when there is none.
        classes: The classes in the order of the scores' columns; of two, the last is the positive one.
        slices: Column to its value in each row, shape (rows,).
        keys: What identifies each row, shape (rows,), where that is known.
    """

    label: NDArray[Any]
    new: Outputs
    old: Outputs | None = None
    anchor: Outputs | None = None
    classes: tuple[str, ...] = ()
    slices: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    keys: NDArray[Any] | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be compared row by row.

        Raises:
            GateError: Not one value per row, no rows, a missing value, or numbers beside text.
        """
        columns = {"labels": self.label} | {
            f"{name}'s predictions": outputs.predicted for name, outputs in self._models.items()
        }
        kinds = {name: _kind(name, values) for name, values in columns.items()}
        rows = {name: len(values) for name, values in columns.items()}
        rows |= {f"values of slice column {name}": len(values) for name, values in self.slices.items()}
        rows |= {} if self.keys is None else {"keys": len(self.keys)}
        if len(set(rows.values())) > 1:
            told = ", ".join(f"{count} {name}" for name, count in rows.items())
            message = f"the test rows do not match ({told}): pair predictions of one and the same test set"
            raise GateError(message)
        if not len(self.label):
            message = "there are no test rows to judge by: give the gate at least one"
            raise GateError(message)
        if len(set(kinds.values())) > 1:
            told = ", ".join(f"{name} are {kind}" for name, kind in kinds.items())
            message = f"the classes do not match ({told}): write the classes of all of them in one way"
            raise GateError(message)
        for name, outputs in self._models.items():
            shape = (len(self), len(self.classes))
            if outputs.scores is not None and (outputs.scores.shape != shape or not np.isfinite(outputs.scores).all()):
                message = f"the {name}'s scores have shape {outputs.scores.shape}, or gaps: pass finite ones, {shape}"
                raise GateError(message)

    def __len__(self) -> int:
        """Return the number of test rows."""
        return len(self.label)

    def take(self, rows: NDArray[Any]) -> Paired:
        """Return some of the rows.

        Args:
            rows: Their indices, or a truth value per row.
        """
        return replace(
            self,
            label=self.label[rows],
            new=_taken(self.new, rows),
            old=self.old and _taken(self.old, rows),
            anchor=self.anchor and _taken(self.anchor, rows),
            slices={name: values[rows] for name, values in self.slices.items()},
            keys=None if self.keys is None else self.keys[rows],
        )

    @property
    def _models(self) -> dict[str, Outputs]:
        there = {"new model": self.new, "champion": self.old, "anchor": self.anchor}
        return {name: outputs for name, outputs in there.items() if outputs is not None}


def _taken(outputs: Outputs, rows: NDArray[Any]) -> Outputs:
    return Outputs(outputs.predicted[rows], None if outputs.scores is None else outputs.scores[rows])


def _kind(name: str, values: NDArray[Any]) -> str:
    """Tell numbers from text, having refused whatever is neither, or missing."""
    if values.ndim != 1:
        message = f"the {name} have shape {values.shape}: pass one predicted class per row, not probabilities"
        raise GateError(message)
    kind = values.dtype.kind
    if kind == "O":
        missing = any(value is None or value != value for value in values)  # noqa: PLR0124  (NaN alone differs from itself)
        text = all(isinstance(value, str) for value in values)
    else:
        missing = kind == "f" and bool(np.isnan(values).any())
        text = kind in "UT"
    if missing:
        message = f"a value is missing among the {name}: predict every test row, and label each"
        raise GateError(message)
    if not text and kind not in "biuf":
        message = f"the {name} are neither numbers nor text: pass classes of one kind"
        raise GateError(message)
    return "text" if text else "numbers"
