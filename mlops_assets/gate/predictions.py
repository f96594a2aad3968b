"""A file of predictions, as the rows that the gate judges.

Belongs here: which columns it has, what they mean, and which of its rows count. Not here: predictions in the store
(`evaluation/pairing.py`), and what the gate makes of the rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from mlops_assets.gate import GateError
from mlops_assets.gate.rows import Outputs, Paired

if TYPE_CHECKING:
    import polars as pl
    from numpy.typing import NDArray

    from mlops_assets.gate.condition import Condition

MODELS: Final = ("new", "old", "anchor")
COLUMNS: Final = ("id", "label", *MODELS, *(f"{model}_score" for model in MODELS))
"""What columns are called; any other is a slice."""

# So many standard deviations between two shares are no accident.
_NO_ACCIDENT: Final = 5.0


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a file has.

    Attributes:
        rows: All rows; where there is no label, in its place what the new model predicted.
        labelled: Whether a row has its label, shape (rows,).
    """

    rows: Paired
    labelled: NDArray[np.bool_]

    @property
    def label_first(self) -> NDArray[Any]:
        """What identifies the rows to label first: those without a label on which new model and champion differ.

        On all others both are right or both are wrong, so that no label there can change `n - o`.
        """
        if self.rows.keys is None:
            return np.flatnonzero(self._differing & ~self.labelled)
        return self.rows.keys[self._differing & ~self.labelled]

    def judged(self, condition: Condition) -> Paired:
        """Return the rows that a condition can be judged on.

        These are the labelled ones. Where it only compares the accuracies of new model and champion, and every row on
        which these differ has its label, all rows count: on the others the difference is 0, whatever the label.

        Raises:
            GateError: No row has a label, or labels are there more often where the models differ, so that the labelled
                rows would show more difference than there is.
        """
        if not self.labelled.any():
            raise GateError("no row has a label: label those that `mlops gate plan --predictions` names, then others")
        differing = self._differing
        if self.labelled[differing].all() and only_compares(condition):
            return self.rows
        if 0 < differing.sum() < len(differing) and not self.labelled.all():
            among, others = self.labelled[differing], self.labelled[~differing]
            share = self.labelled.mean()
            spread = math.sqrt(share * (1 - share) * (1 / len(among) + 1 / len(others)))
            if abs(among.mean() - others.mean()) > _NO_ACCIDENT * spread:
                remedy = f"label the other {int((~among).sum())} of them"
                if not only_compares(condition):
                    remedy += f", and the {int((~others).sum())} without a label on which they agree"
                raise GateError(
                    f"{100 * among.mean():.3g} % of the rows on which the models differ have a label and "
                    f"{100 * others.mean():.3g} % of the others, so the labelled rows are no fair sample: {remedy}"
                )
        return self.rows.take(self.labelled)

    @property
    def _differing(self) -> NDArray[np.bool_]:
        if self.rows.old is None:
            return np.zeros(len(self.rows), dtype=np.bool_)
        return np.asarray(self.rows.new.predicted != self.rows.old.predicted)


def only_compares(condition: Condition) -> bool:
    """Tell whether a condition is on `n - o` and `d` alone, so that rows on which the models agree need no label."""
    for clause in condition.clauses:
        balance: dict[object, float] = {}
        for term, factor in clause.coefficients.items():
            if term.metric not in {"accuracy", ""} or term.model == "a":
                return False
            if term.model != "d":
                balance[term.slice] = balance.get(term.slice, 0.0) + factor
        if any(balance.values()):
            return False
    return True


def read_predictions(path: Path) -> Predictions:
    """Read a file of predictions.

    Args:
        path: A Parquet, CSV or TSV file with a column `label` (empty where there is none), `new` or `new_score`, and as
            needed `old` or `old_score`, `anchor` or `anchor_score`, `id` and slice columns. A score is the probability
            of the positive class, which is predicted from 0.5 on.

    Returns:
        Its rows.

    Raises:
        ReadError: The file cannot be read.
        GateError: A column is missing, or has what it cannot have; names it.
    """
    import polars as pl

    from mlops_assets.data.readers import read_table

    frame = read_table(path)
    if not frame.height:
        raise GateError(f"{path} has no rows: give the gate predictions to judge")
    there = [model for model in MODELS if {model, f"{model}_score"} & {*frame.columns}]
    for missing in [name for name in ("label", "new") if name not in {*there, *frame.columns}]:
        either = "`new` or `new_score`" if missing == "new" else "`label`"
        raise GateError(f"{path} has no column {either} (there are {', '.join(frame.columns)}): add it")
    values = _alike({name: frame[name] for name in ("label", *MODELS) if name in frame.columns}, path)
    scores = {model: _scores(frame[f"{model}_score"], path) for model in there if f"{model}_score" in frame.columns}
    classes = _classes(values, path) if scores else pl.Series([])
    for model in set(scores) - set(values):
        values[model] = classes.gather((scores[model] >= 0.5).astype(np.int64))
    for model in there:
        if values[model].null_count():
            raise GateError(f"{path} has rows without a value of `{model}`: predict every row, or leave it out")
    outputs = {
        model: Outputs(
            values[model].to_numpy(),
            np.stack([1 - scores[model], scores[model]], axis=1) if model in scores else None,
        )
        for model in there
    }
    labelled = values["label"].is_not_null()
    rows = Paired(
        label=values["label"].zip_with(labelled, values["new"]).to_numpy(),
        new=outputs["new"],
        old=outputs.get("old"),
        anchor=outputs.get("anchor"),
        classes=tuple(str(one) for one in classes),
        slices={
            name: frame[name].cast(pl.String).fill_null("").to_numpy() for name in frame.columns if name not in COLUMNS
        },
        keys=_keys(frame["id"], path) if "id" in frame.columns else None,
    )
    return Predictions(rows, labelled.to_numpy())


def _alike(columns: dict[str, pl.Series], path: Path) -> dict[str, pl.Series]:
    """Bring labels and predictions to one type; text that is numbers all over, as in CSV, becomes numbers."""
    import polars as pl

    text = {pl.String, pl.Categorical, pl.Enum, pl.Null}
    told = ", ".join(f"`{name}` has {values.dtype}" for name, values in columns.items())
    several = f"{path} has labels and predictions of types that cannot be compared ({told}): write them in one way"
    if not all(
        values.dtype.is_numeric() or values.dtype.base_type() in {pl.Boolean, *text} for values in columns.values()
    ):
        raise GateError(several)
    columns = {
        name: values.cast(pl.String) if values.dtype.base_type() in text else values for name, values in columns.items()
    }
    numbers = {name: values.cast(pl.Float64, strict=False) for name, values in columns.items()}
    if all(numbers[name].null_count() == values.null_count() for name, values in columns.items()):
        numbers = {name: values.fill_nan(None) for name, values in numbers.items()}  # not a number is no label
        whole = all((values.drop_nulls() % 1 == 0).all() for values in numbers.values())
        return {name: values.cast(pl.Int64) for name, values in numbers.items()} if whole else numbers
    if not all(values.dtype == pl.String for values in columns.values()):
        raise GateError(several)
    return columns


def _classes(values: dict[str, pl.Series], path: Path) -> pl.Series:
    """Return the two classes that scores are of, the positive one last."""
    import polars as pl

    found = pl.concat(values.values()).drop_nulls().unique().sort()
    if found.dtype.is_numeric() and found.is_in([0, 1]).all():
        return pl.Series([0, 1], dtype=found.dtype)
    if len(found) != 2:
        known = ", ".join(str(one) for one in found[:5])
        raise GateError(f"{path} has scores, which are of two classes, and {len(found)} classes ({known}): add `new`")
    return found


def _scores(values: pl.Series, path: Path) -> NDArray[np.float64]:
    import polars as pl

    scores = values.cast(pl.Float64, strict=False)
    wrong = values.filter(~scores.is_between(0, 1).fill_null(value=False))
    if len(wrong):
        raise GateError(
            f"{path} has {len(wrong)} values of `{values.name}` that are no probability (the first is {wrong[0]!r}): "
            "write one from 0 to 1 in every row"
        )
    return scores.to_numpy()


def _keys(values: pl.Series, path: Path) -> NDArray[Any]:
    twice = values.filter(values.is_duplicated() | values.is_null())
    if len(twice):
        raise GateError(f"{path} has {len(twice)} rows whose `id` is missing or there twice ({twice[0]!r}): keep one")
    return values.to_numpy()
