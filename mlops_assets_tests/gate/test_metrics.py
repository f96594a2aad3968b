import numpy as np
import pytest
from sklearn import metrics as reference

from mlops_assets.gate.bootstrap import estimate
from mlops_assets.gate.clauses import METRICS, OVER_GROUPS
from mlops_assets.gate.condition import ConditionError, parse
from mlops_assets.gate.gaps import Gap
from mlops_assets.gate.metrics import Meter, RowMean, Statistic
from mlops_assets.gate.rows import Outputs, Paired
from mlops_assets_tests.gate.worlds import world

TWO = world(600, 2)
MANY = world(600, 5)
NUMBERS = Paired(
    np.random.default_rng(1).normal(size=200),
    Outputs(np.random.default_rng(2).normal(size=200)),
    slices={"group": np.arange(200) % 2},
)


def measure(text, paired):
    condition = parse(text)
    (term,) = condition.terms
    return Meter(condition, paired).measure(term)


def value(text, paired):
    measured = measure(f"{text} > 0", paired)
    if isinstance(measured, Gap):
        return measured.interval(0.9).estimate
    statistic = measured if isinstance(measured, Statistic) else measured.statistic()
    found = estimate({statistic: 1.0})
    if isinstance(measured, RowMean):
        assert found == pytest.approx(measured.values[measured.rows].mean())
    return found


def binary(paired):
    positive = paired.classes[-1]
    return paired.label == positive, paired.new.predicted == positive


OF_TWO = {
    "f1": reference.f1_score,
    "precision": reference.precision_score,
    "recall": reference.recall_score,
    "selection_rate": lambda y, p: p.mean(),
    "false_positive_rate": lambda y, p: p[~y].mean(),
    "false_negative_rate": lambda y, p: (~p)[y].mean(),
}
OF_ANY = {
    "accuracy": reference.accuracy_score,
    "balanced_accuracy": reference.balanced_accuracy_score,
    "macro_f1": lambda y, p: reference.f1_score(y, p, average="macro"),
}
OF_SCORES = {
    "log_loss": reference.log_loss,
    "brier": lambda y, s: reference.brier_score_loss(y, s, scale_by_half=False),
}


@pytest.mark.parametrize("slice_", ["", "[group=small]", "[year=2001]"])
@pytest.mark.parametrize("metric", OF_TWO)
def test_metrics_of_two_classes_are_scikit_learns(metric, slice_):
    rows = (
        np.ones(600, bool)
        if not slice_
        else TWO.slices[slice_[1:].split("=")[0]].astype(str) == slice_[:-1].split("=")[1]
    )
    y, p = (part[rows] for part in binary(TWO))

    assert value(f"n.{metric}{slice_}", TWO) == pytest.approx(OF_TWO[metric](y, p))


@pytest.mark.parametrize("paired", [TWO, MANY], ids=["two", "many"])
@pytest.mark.parametrize("metric", OF_ANY)
def test_metrics_of_any_classes_are_scikit_learns(metric, paired):
    rows = paired.slices["group"] == "small"

    assert value(f"o.{metric}", paired) == pytest.approx(OF_ANY[metric](paired.label, paired.old.predicted))
    assert value(f"n.{metric}[group=small]", paired) == pytest.approx(
        OF_ANY[metric](paired.label[rows], paired.new.predicted[rows])
    )


@pytest.mark.parametrize("paired", [TWO, MANY], ids=["two", "many"])
@pytest.mark.parametrize("metric", OF_SCORES)
def test_metrics_of_probabilities_are_scikit_learns(metric, paired):
    expected = OF_SCORES[metric](paired.label, paired.new.scores)

    assert value(f"n.{metric}", paired) == pytest.approx(expected)


def test_the_area_under_the_curve_is_scikit_learns():
    rows = TWO.slices["group"] == "big"
    y = binary(TWO)[0]

    assert value("a.auc", TWO) == pytest.approx(reference.roc_auc_score(y, TWO.anchor.scores[:, 1]))
    assert value("n.auc[group=big]", TWO) == pytest.approx(reference.roc_auc_score(y[rows], TWO.new.scores[rows, 1]))
    # Rounded scores tie.
    tied = Paired(TWO.label, Outputs(TWO.new.predicted, TWO.new.scores.round(1)), classes=TWO.classes)
    assert value("n.auc", tied) == pytest.approx(reference.roc_auc_score(y, tied.new.scores[:, 1]))


@pytest.mark.parametrize("metric", ["f1", "precision", "recall"])
def test_metrics_of_a_class_are_scikit_learns(metric):
    y, p = MANY.label == "class 3", MANY.new.predicted == "class 3"

    assert value(f"n.{metric}_class_3", MANY) == pytest.approx(getattr(reference, f"{metric}_score")(y, p))


def test_the_calibration_error_is_that_of_the_evaluation():
    from mlops_assets.evaluation.metrics import evaluate

    label = np.array([MANY.classes.index(name) for name in MANY.label])
    report = evaluate(label, MANY.new.scores, class_names=MANY.classes, keys=np.arange(600))

    assert value("n.ece", MANY) == pytest.approx(report.ece)
    assert value("n.brier", MANY) == pytest.approx(report.brier)


def test_errors_of_numbers_are_scikit_learns():
    y, p = NUMBERS.label, NUMBERS.new.predicted

    assert value("n.mae", NUMBERS) == pytest.approx(reference.mean_absolute_error(y, p))
    assert value("n.rmse", NUMBERS) == pytest.approx(reference.root_mean_squared_error(y, p))
    assert value("n.rmse[group=1]", NUMBERS) == pytest.approx(reference.root_mean_squared_error(y[1::2], p[1::2]))


def test_group_metrics_are_fairlearns():
    from fairlearn import metrics as fairness

    y, p = binary(TWO)

    for name in ("demographic_parity_difference", "equalized_odds_difference"):
        for column in ("group", "year"):
            expected = getattr(fairness, name)(y, p, sensitive_features=TWO.slices[column])
            assert value(f"n.{name}[{column}]", TWO) == pytest.approx(expected)
    assert value("n.selection_rate", TWO) == pytest.approx(fairness.selection_rate(y, p))
    assert value("n.false_positive_rate", TWO) == pytest.approx(fairness.false_positive_rate(y, p))
    assert value("n.false_negative_rate", TWO) == pytest.approx(fairness.false_negative_rate(y, p))


def test_the_share_of_differing_predictions():
    rows = TWO.slices["group"] == "small"
    differ = TWO.new.predicted != TWO.old.predicted

    assert value("d", TWO) == pytest.approx(differ.mean())
    assert value("d[group=small]", TWO) == pytest.approx(differ[rows].mean())


def test_weights_count_rows():
    """A statistic of weights is the metric of a test set in which rows occur as often as they weigh."""
    rng = np.random.default_rng(4)
    again = rng.integers(600, size=600)
    weights = np.bincount(again, minlength=600)[None, :].astype(float)
    for metric in METRICS:
        if metric in ("mae", "rmse", *OVER_GROUPS):
            continue
        text = f"n.{metric}"
        measured = measure(f"{text} > 0", TWO)
        statistic = measured if isinstance(measured, Statistic) else measured.statistic()
        found = statistic.on(np.arange(600))(weights)
        assert found.shape == (1,)
        assert found[0] == pytest.approx(value(text, TWO.take(again))), metric


def test_classes_need_not_be_named():
    label, predicted = np.array([0, 1, 1, 0, 1]), np.array([0, 1, 0, 1, 1])

    assert value("n.recall", Paired(label, Outputs(predicted))) == pytest.approx(2 / 3)
    assert value("n.recall_0", Paired(label, Outputs(predicted))) == pytest.approx(1 / 2)


def test_classes_are_matched_as_metrics_write_them():
    label = np.array(["New York", "São Paulo", "New York"])

    assert value("n.recall_New_York", Paired(label, Outputs(label[::-1].copy()))) == 1.0


def test_scarce_is_the_smallest_group_that_is_divided_by():
    label = np.repeat(["a", "b"], [97, 3])
    paired = Paired(label, Outputs(label), slices={"group": np.repeat(["x", "y"], [95, 5])})

    assert measure("n.balanced_accuracy > 0", paired).scarce == 3
    assert measure("n.macro_f1 > 0", paired).scarce == 3


def test_rare_is_the_rarer_outcome_of_a_share():
    label = np.repeat(["a", "b", "a", "b"], [50, 40, 30, 60])
    said = np.repeat(["a", "b", "b", "a", "b"], [50, 38, 2 + 29, 1 + 7, 53])
    paired = Paired(label, Outputs(said), slices={"group": np.repeat(["x", "y"], 90)})

    assert measure("n[group=x] > 0", paired).statistic().rare == 0
    assert measure("n[group=y] > 0", paired).statistic().rare == 36
    assert measure("n.rmse > 0", NUMBERS).rare is None


@pytest.mark.parametrize(
    ("text", "paired", "said", "at"),
    [
        ("d < 1 and n.f1 > 0", MANY, "f1 is of two classes, and there are 5: write n.f1_CLASS", "n.f1"),
        ("n.auc > 0", MANY, "auc is of two classes", "n.auc"),
        ("n.recall_9 > 0", MANY, "there is no class '9'", "n.recall_9"),
        ("n > 0 and n[age=3] > 0", MANY, "no slice column 'age' (known: group, year)", "n[age=3]"),
        ("n[year=1999] > 0", MANY, "no test row has year=1999 (there are 2000, 2001, 2002)", "n[year=1999]"),
        ("n.mae > 0", MANY, "mae is of numbers, and the labels are text", "n.mae"),
        ("n.auc > 0", Paired(TWO.label, Outputs(TWO.label)), "auc needs scores", "n.auc"),
        ("n.brier > 0", Paired(TWO.label, Outputs(TWO.label)), "brier needs probabilities", "n.brier"),
        (
            "n.log_loss > 0",
            Paired(TWO.label, Outputs(TWO.label, 3 * TWO.new.scores), classes=TWO.classes),
            "scores of the new model are none",
            "n.log_loss",
        ),
        (
            "n.recall > 0",
            Paired(np.array(["a"]), Outputs(np.array(["b"])), classes=("a", "b")),
            "recall has no test rows",
            "n.recall",
        ),
        (
            "n.demographic_parity_difference[one] < 1",
            Paired(TWO.label, Outputs(TWO.label), slices={"one": np.zeros(600)}),
            "every test row has one=0.0",
            "n.demographic",
        ),
    ],
)
def test_what_is_not_there_is_shown_in_the_condition(text, paired, said, at):
    condition = parse(text)

    def measure_all():
        meter = Meter(condition, paired)
        return [meter.measure(term) for term in condition.terms]

    with pytest.raises(ConditionError) as caught:
        measure_all()

    assert said in str(caught.value)
    assert caught.value.position == text.index(at)


def test_many_values_of_a_column_are_not_all_listed():
    paired = Paired(TWO.label, Outputs(TWO.label), slices={"id": np.arange(600)})

    with pytest.raises(ConditionError, match=r"\(there are 0, 1, 10, 100, 101, \.\.\.\)"):
        measure("n[id=x] > 0", paired)


def test_a_label_that_is_none_of_the_classes_is_refused():
    paired = Paired(np.array(["a", "c"]), Outputs(np.array(["a", "b"])), classes=("a", "b"))

    with pytest.raises(Exception, match="'c' is none of the classes a, b"):
        measure("n.f1 > 0", paired)
