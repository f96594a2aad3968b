"""The measures of a classifier on one test set.

Belongs here: measures that follow from labels and probabilities, and their JSON form. Not here: how they are shown, and
whether they suffice.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from mlops_assets.evaluation import EvaluationError
from mlops_assets.gate.intervals import wilson

BINS: Final = 10
_TWO_SIDED_95: Final = 0.975
# Probabilities from float32 or float16 logits sum to one only nearly.
_SUM_TOLERANCE: Final = 1e-2


@dataclass(frozen=True)
class ClassReport:
    """One class against the rest; a measure without rows to rest on is None.

    Attributes:
        name: The class.
        support: Test rows of this class.
        precision: Share of the rows predicted as this class that are of it.
        recall: Share of the rows of this class that are predicted as it.
        recall_lower: Lower end of the recall's two-sided 95 % Wilson interval.
        recall_upper: Upper end.
        f1: Harmonic mean of precision and recall; 0 when the class is never hit, None when neither seen nor predicted.
    """

    name: str
    support: int
    precision: float | None
    recall: float | None
    recall_lower: float | None
    recall_upper: float | None
    f1: float | None


@dataclass(frozen=True)
class CalibrationBin:
    """The rows whose confidence (probability of the predicted class) lies in (lower, upper], the first bin from 0.

    Attributes:
        lower: Lower edge.
        upper: Upper edge.
        rows: Rows in it.
        confidence: Their mean confidence, None without rows.
        accuracy: Share of them predicted rightly, None without rows.
    """

    lower: float
    upper: float
    rows: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True)
class Mistake:
    """A wrong prediction: the row's key, its class, the class predicted, and how probable the model held that."""

    key: str
    label: str
    predicted: str
    probability: float


@dataclass(frozen=True)
class Evaluation:
    """All measures of one model on one test set.

    Attributes:
        rows: Test rows.
        accuracy: Share predicted rightly.
        accuracy_lower: Lower end of its two-sided 95 % Wilson interval.
        accuracy_upper: Upper end.
        balanced_accuracy: Mean recall of the classes that have test rows.
        macro_f1: Mean F1 of the classes that occur among labels or predictions.
        log_loss: Mean negative natural logarithm of the probability given to the true class, 0 at best.
        brier: Mean squared distance of the probabilities from the truth, summed over classes, from 0 to 2 (Brier,
            Monthly Weather Review 78, 1950).
        ece: Expected calibration error over the calibration bins, from 0 to 1 (Guo et al., ICML 2017).
        classes: One report per class, in the order of the probabilities.
        confusion: Rows by (true class, predicted class).
        calibration: `BINS` bins of equal width over the confidence.
        worst: The wrong predictions that the model was surest of, the surest first.
    """

    rows: int
    accuracy: float
    accuracy_lower: float
    accuracy_upper: float
    balanced_accuracy: float
    macro_f1: float
    log_loss: float
    brier: float
    ece: float
    classes: tuple[ClassReport, ...]
    confusion: tuple[tuple[int, ...], ...]
    calibration: tuple[CalibrationBin, ...]
    worst: tuple[Mistake, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the evaluation as what JSON can hold: finite numbers, text, lists and None."""
        return {item.name: getattr(self, item.name) for item in fields(self)} | {
            "classes": [asdict(item) for item in self.classes],
            "confusion": [list(row) for row in self.confusion],
            "calibration": [asdict(item) for item in self.calibration],
            "worst": [asdict(item) for item in self.worst],
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Self:
        """Read what `to_dict` wrote.

        Args:
            stored: The dictionary, as it came out of JSON.

        Returns:
            An equal evaluation.

        Raises:
            EvaluationError: A part is missing or unknown.
        """
        try:
            return cls(
                **{
                    **stored,
                    "classes": tuple(ClassReport(**item) for item in stored["classes"]),
                    "confusion": tuple(tuple(row) for row in stored["confusion"]),
                    "calibration": tuple(CalibrationBin(**item) for item in stored["calibration"]),
                    "worst": tuple(Mistake(**item) for item in stored["worst"]),
                }
            )
        except (KeyError, TypeError) as error:
            message = f"this evaluation report cannot be read ({error}): evaluate the model again"
            raise EvaluationError(message) from error

    def scalars(self) -> dict[str, float]:
        """Return the single numbers under names that a tracking server takes, such as `test_recall_setosa`."""
        names = ("rows", "accuracy", "accuracy_lower", "accuracy_upper", "balanced_accuracy", "macro_f1")
        named = {f"test_{name}": float(getattr(self, name)) for name in (*names, "log_loss", "brier", "ece")}
        recalls = zip(metric_names("test_recall", [one.name for one in self.classes]), self.classes, strict=True)
        return {**named, **{name: one.recall for name, one in recalls if one.recall is not None}}


def metric_names(metric: str, classes: Sequence[str]) -> list[str]:
    """Names for one metric of each class.

    Letters that a tracking server does not take become `_`, and a class whose name then is taken gets its index behind
    it.
    """
    names: list[str] = []
    for index, one in enumerate(classes):
        name = f"{metric}_" + re.sub(r"[^\w-]+", "_", one)
        names.append(f"{name}_{index}" if name in names else name)
    return names


def evaluate(
    label: NDArray[np.integer[Any]],
    probabilities: NDArray[np.floating[Any]],
    *,
    class_names: Sequence[str],
    keys: Sequence[object] | NDArray[Any],
    worst: int = 20,
) -> Evaluation:
    """Measure a classifier.

    The predicted class is the most probable one, the first of several.

    Args:
        label: Index of the true class, shape (rows,).
        probabilities: Per row one probability per class, shape (rows, classes), summing to one.
        class_names: Names of the classes, in the order of the probabilities.
        keys: What identifies each row, shape (rows,).
        worst: How many of the surest mistakes to name.

    Returns:
        All measures.

    Raises:
        EvaluationError: No rows, shapes that do not fit, labels that are no class, or no probabilities.
    """
    _check(label, probabilities, class_names, keys)
    rows, classes = probabilities.shape
    label = label.astype(np.int64)
    predicted = probabilities.argmax(axis=1)
    # Summing many small float32 terms loses digits, so the sums run in float64.
    given = probabilities.astype(np.float64)
    given /= given.sum(axis=1, keepdims=True)
    confidence = given.max(axis=1)
    of_truth = given[np.arange(rows), label]
    right = predicted == label

    confusion = np.bincount(label * classes + predicted, minlength=classes * classes).reshape(classes, classes)
    reports = _class_reports(confusion, class_names)
    accuracy = wilson(int(right.sum()), rows, _TWO_SIDED_95)
    calibration = _calibration(confidence, right)
    gaps = [
        b.rows * abs(b.accuracy - b.confidence)
        for b in calibration
        if b.accuracy is not None and b.confidence is not None
    ]
    wrong = np.flatnonzero(~right)
    surest = wrong[np.argsort(-confidence[wrong], kind="stable")][:worst]
    return Evaluation(
        rows=rows,
        accuracy=accuracy.estimate,
        accuracy_lower=accuracy.lower,
        accuracy_upper=accuracy.upper,
        balanced_accuracy=_mean([report.recall for report in reports]),
        macro_f1=_mean([report.f1 for report in reports]),
        # A probability of zero for what happened would be an infinite loss; this is scikit-learn's bound too.
        log_loss=float(-np.log(of_truth.clip(np.finfo(np.float64).eps, 1.0)).mean()),
        brier=float(((given**2).sum(axis=1) - 2 * of_truth + 1).mean()),
        ece=sum(gaps) / rows,
        classes=reports,
        confusion=tuple(tuple(row) for row in confusion.tolist()),
        calibration=calibration,
        worst=tuple(
            Mistake(str(keys[i]), class_names[label[i]], class_names[predicted[i]], float(confidence[i]))
            for i in surest
        ),
    )


def _class_reports(confusion: NDArray[np.int64], class_names: Sequence[str]) -> tuple[ClassReport, ...]:
    reports = []
    for index, name in enumerate(class_names):
        hits, support, predicted = (
            int(count) for count in (confusion[index, index], confusion[index].sum(), confusion[:, index].sum())
        )
        recall = wilson(hits, support, _TWO_SIDED_95) if support else None
        reports.append(
            ClassReport(
                name=name,
                support=support,
                precision=hits / predicted if predicted else None,
                recall=recall and recall.estimate,
                recall_lower=recall and recall.lower,
                recall_upper=recall and recall.upper,
                f1=2 * hits / (support + predicted) if support + predicted else None,
            )
        )
    return tuple(reports)


def _calibration(confidence: NDArray[np.float64], right: NDArray[np.bool_]) -> tuple[CalibrationBin, ...]:
    edges = np.arange(BINS + 1) / BINS
    which = np.searchsorted(edges[1:-1], confidence, side="left")
    counts = np.bincount(which, minlength=BINS)
    confidences = np.bincount(which, weights=confidence, minlength=BINS)
    hits = np.bincount(which, weights=right, minlength=BINS)
    return tuple(
        CalibrationBin(
            lower=float(edges[index]),
            upper=float(edges[index + 1]),
            rows=int(count),
            confidence=float(confidences[index] / count) if count else None,
            accuracy=float(hits[index] / count) if count else None,
        )
        for index, count in enumerate(counts)
    )


def _mean(values: Sequence[float | None]) -> float:
    """Average what there is; at least one class has rows wherever this is asked."""
    there = [value for value in values if value is not None]
    return sum(there) / len(there)


def _check(
    label: NDArray[Any], probabilities: NDArray[Any], class_names: Sequence[str], keys: Sequence[object] | NDArray[Any]
) -> None:
    problem = None
    if probabilities.ndim != 2 or probabilities.shape[1] != len(class_names) or not len(class_names):
        problem = f"probabilities of shape {probabilities.shape} do not fit {len(class_names)} classes"
    elif label.shape != (len(probabilities),) or len(keys) != len(probabilities):
        problem = (
            f"{len(probabilities)} rows of probabilities do not fit labels of shape {label.shape} and {len(keys)} keys"
        )
    elif not len(label):
        problem = "the test set has no rows"
    elif len(set(class_names)) < len(class_names):
        problem = "two classes have the same name"
    elif label.dtype.kind not in "iu":
        problem = f"labels of type {label.dtype} are no class indices"
    elif label.min() < 0 or label.max() >= len(class_names):
        problem = f"labels from {label.min()} to {label.max()} do not fit {len(class_names)} classes"
    elif probabilities.dtype.kind != "f" or not np.isfinite(probabilities).all():
        problem = "a probability is no finite number"
    elif probabilities.min() < 0 or np.abs(probabilities.sum(axis=1, dtype=np.float64) - 1).max() > _SUM_TOLERANCE:
        problem = "the probabilities of a row are negative or do not sum to one"
    if problem:
        message = f"this model cannot be evaluated: {problem}; look at what the model predicts for the test rows"
        raise EvaluationError(message)
