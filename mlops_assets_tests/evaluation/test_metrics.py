import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sk

from mlops_assets.errors import MlopsError
from mlops_assets.evaluation.metrics import Evaluation, evaluate
from mlops_assets.gate.intervals import wilson


def drawn(rows=500, classes=4, seed=3, dtype=np.float64):
    """Draw labels of every class but the last, and probabilities that know something of them."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, classes - 1, rows)
    logits = rng.normal(size=(rows, classes))
    logits[np.arange(rows), label] += 1.5
    probabilities = np.exp(logits)
    return label, (probabilities / probabilities.sum(axis=1, keepdims=True)).astype(dtype)


def evaluated(label, probabilities, **changes):
    names = [f"class {index}" for index in range(probabilities.shape[1])]
    return evaluate(label, probabilities, **{"class_names": names, "keys": np.arange(len(label))} | changes)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true:UserWarning")  # the last class, on purpose
def test_the_measures_are_those_of_scikit_learn(dtype):
    label, probabilities = drawn(dtype=dtype)
    predicted = probabilities.argmax(axis=1)

    result = evaluated(label, probabilities)

    close = {"abs": 1e-6}
    assert result.rows == 500
    assert result.accuracy == pytest.approx(sk.accuracy_score(label, predicted))
    assert result.balanced_accuracy == pytest.approx(sk.balanced_accuracy_score(label, predicted))
    assert result.macro_f1 == pytest.approx(sk.f1_score(label, predicted, average="macro"))
    assert result.log_loss == pytest.approx(sk.log_loss(label, probabilities, labels=range(4)), **close)
    assert result.brier == pytest.approx(((probabilities - np.eye(4)[label]) ** 2).sum(axis=1).mean(), **close)
    assert result.confusion == tuple(map(tuple, sk.confusion_matrix(label, predicted, labels=range(4)).tolist()))
    precision, recall, f1, support = sk.precision_recall_fscore_support(label, predicted, labels=range(3))
    for index, report in enumerate(result.classes[:3]):
        assert (report.precision, report.recall, report.f1, report.support) == pytest.approx(
            (precision[index], recall[index], f1[index], support[index])
        )


def test_intervals_are_two_sided_95_percent():
    label, probabilities = drawn()

    result = evaluated(label, probabilities)

    right = int((probabilities.argmax(axis=1) == label).sum())
    assert (result.accuracy, result.accuracy_lower, result.accuracy_upper) == wilson(right, 500, 0.975)
    first = result.classes[0]
    assert (first.recall, first.recall_lower, first.recall_upper) == wilson(
        result.confusion[0][0], sum(result.confusion[0]), 0.975
    )


def test_a_class_without_rows_has_none_for_what_cannot_be_known():
    label = np.array([0, 0, 1])
    probabilities = np.array([[0.7, 0.1, 0.2, 0.0], [0.1, 0.1, 0.8, 0.0], [0.2, 0.5, 0.3, 0.0]])

    result = evaluated(label, probabilities)

    predicted_only, untouched = result.classes[2:]
    assert (predicted_only.support, predicted_only.precision, predicted_only.recall, predicted_only.f1) == (
        0,
        0,
        None,
        0,
    )
    assert (untouched.precision, untouched.recall, untouched.recall_lower, untouched.f1) == (None, None, None, None)
    assert result.balanced_accuracy == pytest.approx(0.75)
    assert result.macro_f1 == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert "test_recall_class_2" not in result.scalars()


def test_calibration_bins_hold_their_upper_edge():
    confidences = np.array([0.55, 0.6, 0.61, 1.0])
    probabilities = np.column_stack([confidences, 1 - confidences])

    result = evaluated(np.array([0, 1, 0, 0]), probabilities)

    filled = {item.upper: item for item in result.calibration if item.rows}
    assert set(filled) == {0.6, 0.7, 1.0}
    assert (filled[0.6].rows, filled[0.6].accuracy, filled[0.6].confidence) == (2, 0.5, pytest.approx(0.575))
    assert result.calibration[0].accuracy is None
    assert result.ece == pytest.approx((2 * 0.075 + 0.39 + 0) / 4)


def test_the_worst_mistakes_come_surest_first():
    label = np.array([0, 1, 0, 1])
    probabilities = np.array([[0.4, 0.6], [0.9, 0.1], [0.8, 0.2], [0.7, 0.3]])

    result = evaluated(label, probabilities, class_names=["no", "yes"], keys=["a", "b", "c", "d"], worst=2)

    told = [(item.key, item.label, item.predicted, item.probability) for item in result.worst]
    assert told == [("b", "yes", "no", 0.9), ("d", "yes", "no", 0.7)]


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(2, 6))
def test_the_json_form_keeps_everything(seed, rows, classes):
    result = evaluated(*drawn(rows, classes, seed))

    again = Evaluation.from_dict(json.loads(json.dumps(result.to_dict(), allow_nan=False)))

    assert again == result


def test_a_certain_and_wrong_model_has_a_finite_loss():
    result = evaluated(np.array([0, 1]), np.array([[0.0, 1.0], [1.0, 0.0]]))

    assert (result.accuracy, result.brier, result.ece) == (0, 2, 1)
    assert result.log_loss == pytest.approx(36.04, abs=0.01)
    json.dumps(result.to_dict(), allow_nan=False)


def test_scalars_have_names_that_mlflow_takes():
    from mlflow.utils.validation import _validate_metric_name

    label, probabilities = drawn()
    names = ["Iris setosa/2", "Iris_setosa_2", "größe (m²) 100%", "none"]

    scalars = evaluated(label, probabilities, class_names=names).scalars()

    for name in scalars:
        _validate_metric_name(name)
    assert {"test_accuracy", "test_accuracy_lower", "test_macro_f1", "test_log_loss", "test_ece"} <= set(scalars)
    assert {"test_recall_Iris_setosa_2", "test_recall_Iris_setosa_2_1"} <= set(scalars)
    assert sum(name.startswith("test_recall") for name in scalars) == 3
    assert all(type(value) is float for value in scalars.values())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"label": np.array([], int), "probabilities": np.zeros((0, 2)), "keys": []}, "no rows"),
        ({"label": np.array([0, 1, 1])}, "2 rows of probabilities do not fit labels of shape (3,)"),
        ({"keys": ["a"]}, "and 1 keys"),
        ({"class_names": ["a", "b", "c"]}, "do not fit 3 classes"),
        ({"class_names": ["a", "a"]}, "same name"),
        ({"label": np.array([0, 2])}, "labels from 0 to 2 do not fit 2 classes"),
        ({"label": np.array([-1, 1])}, "labels from -1 to 1"),
        ({"label": np.array([0.0, 1.0])}, "no class indices"),
        ({"probabilities": np.array([[0.5, np.nan], [0.5, 0.5]])}, "no finite number"),
        ({"probabilities": np.array([[3.0, -2.0], [0.5, 0.5]])}, "negative or do not sum to one"),
        ({"probabilities": np.array([[3.0, 2.0], [0.5, 0.5]])}, "negative or do not sum to one"),
        ({"probabilities": np.array([0.5, 0.5])}, "do not fit 2 classes"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(change, said):
    sound = {
        "label": np.array([0, 1]),
        "probabilities": np.full((2, 2), 0.5),
        "class_names": ["a", "b"],
        "keys": [1, 2],
    }

    with pytest.raises(MlopsError) as caught:
        evaluate(**sound | change)

    assert said in str(caught.value)


@pytest.mark.parametrize(
    "broken", [{}, {"classes": 3}, {"classes": [], "confusion": [], "calibration": [], "worst": []}]
)
def test_a_report_that_cannot_be_read_is_told(broken):
    with pytest.raises(MlopsError, match="cannot be read"):
        Evaluation.from_dict(broken)
