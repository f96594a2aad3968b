import numpy as np
import pytest
from scipy.stats import bootstrap
from sklearn.metrics import f1_score

from mlops_assets.gate.bootstrap import bca
from mlops_assets.gate.condition import parse
from mlops_assets.gate.metrics import Meter, RowMean
from mlops_assets.gate.rows import Outputs, Paired
from mlops_assets_tests.gate.worlds import world


def bounds(text, paired, level):
    condition = parse(text)
    (clause,) = condition.clauses
    meter = Meter(condition, paired)
    measured = {meter.measure(term): factor for term, factor in clause.coefficients.items()}
    terms = {one.statistic() if isinstance(one, RowMean) else one: factor for one, factor in measured.items()}
    return bca(terms, level, clause.range)


def numbers(rows, seed=0):
    rng = np.random.default_rng(seed)
    label = rng.normal(size=rows)
    shared = rng.exponential(size=rows)
    return Paired(label, Outputs(label + shared), Outputs(label + shared + 0.5 * rng.exponential(size=rows)))


def theirs(data, statistic, level):
    result = bootstrap(
        data, statistic, paired=True, method="BCa", n_resamples=4000, confidence_level=2 * level - 1, rng=7, batch=500
    )
    return result.confidence_interval


@pytest.mark.parametrize("rows", [60, 400])
@pytest.mark.parametrize("level", [0.9, 0.975])
def test_bounds_are_scipys_where_rows_contribute_skewed_numbers(rows, level):
    paired = numbers(rows)
    errors = [one.predicted - paired.label for one in (paired.new, paired.old)]

    def difference(new, old, axis):
        return np.sqrt((new**2).mean(axis=axis)) - np.sqrt((old**2).mean(axis=axis))

    interval, trouble = bounds("n.rmse - o.rmse < 0", paired, level)
    reference = theirs(errors, difference, level)

    assert trouble == ""
    width = reference.high - reference.low
    assert interval.estimate == pytest.approx(difference(*errors, axis=0))
    assert interval.lower == pytest.approx(reference.low, abs=0.05 * width)
    assert interval.upper == pytest.approx(reference.high, abs=0.05 * width)


def test_bounds_are_scipys_for_a_metric_of_counts():
    paired = world(300, 2)
    codes = [values == paired.classes[1] for values in (paired.label, paired.new.predicted, paired.old.predicted)]

    def difference(label, new, old, axis):
        def f1(predicted):
            return 2 * (label & predicted).sum(axis=axis) / (label.sum(axis=axis) + predicted.sum(axis=axis))

        return f1(new) - f1(old)

    interval, _ = bounds("n.f1 - o.f1 > 0", paired, 0.975)
    reference = theirs(codes, difference, 0.975)

    width = reference.high - reference.low
    assert interval.estimate == pytest.approx(f1_score(codes[0], codes[1]) - f1_score(codes[0], codes[2]))
    assert interval.lower == pytest.approx(reference.low, abs=0.05 * width)
    assert interval.upper == pytest.approx(reference.high, abs=0.05 * width)


def test_cells_of_like_rows_are_as_good_as_rows():
    """Whether rows are resampled as cells or one by one makes no difference but chance."""
    paired = world(2000, 2)

    as_cells, _ = bounds("n.f1 - o.f1 > 0", paired, 0.975)
    # A term that tells all rows apart and weighs next to nothing.
    as_rows, _ = bounds("n.f1 - o.f1 + 0.000001*n.log_loss > 0", paired, 0.975)

    width = as_cells.upper - as_cells.lower
    assert as_rows.lower == pytest.approx(as_cells.lower, abs=0.05 * width)
    assert as_rows.upper == pytest.approx(as_cells.upper, abs=0.05 * width)


def test_the_same_rows_give_the_same_bounds():
    paired = world(500, 3)

    assert bounds("n.macro_f1 > 0.5", paired, 0.975) == bounds("n.macro_f1 > 0.5", paired, 0.975)


def test_pairing_makes_a_difference_sharper():
    paired = world(1000, 2)

    together, _ = bounds("n.auc - o.auc > 0", paired, 0.975)
    alone = [bounds(f"{model}.auc > 0", paired, 0.975)[0] for model in "no"]

    assert together.upper - together.lower < 0.8 * np.hypot(*(one.upper - one.lower for one in alone))


@pytest.mark.parametrize(
    ("text", "paired", "why"),
    [
        ("n.rmse < 1", numbers(29), "small group"),
        ("n.balanced_accuracy > 0", Paired(np.repeat([0, 1], [81, 19]), Outputs(np.zeros(100, int))), "small group"),
        (
            "n[group=x] - n[group=y] < 0.1",
            Paired(np.zeros(90, int), Outputs(np.arange(90) % 3), slices={"group": np.repeat(["x", "y"], [84, 6])}),
            "small group",
        ),
        (
            "n[group=x] - n[group=y] < 0.1",
            Paired(
                np.zeros(300, int),
                Outputs(np.arange(300) * (np.arange(300) < 150) % 3),
                slices={"group": np.repeat(["x", "y"], 150)},
            ),
            "small group",
        ),
        ("n.macro_f1 > 0", Paired(np.repeat([0, 1], 50), Outputs(np.repeat([0, 1], 50))), "all resamples are equal"),
    ],
)
def test_where_rows_show_nothing_everything_is_possible(text, paired, why):
    interval, trouble = bounds(text, paired, 0.975)

    assert trouble == why
    assert interval[1:] == parse(text).clauses[0].range


def test_a_level_that_resamples_do_not_reach_bounds_nothing():
    interval, trouble = bounds("n.macro_f1 > 0", world(100, 2), 0.99999)

    assert trouble == "its level is beyond what a bootstrap can tell"
    assert interval[1:] == (0, 1)


@pytest.mark.slow
@pytest.mark.parametrize("rows", [12, 30, 60, 120])
def test_a_small_group_does_not_pass(rows):
    """The gap between groups is exactly at the limit, and rows decide about it in no more cases than stated."""
    passed = 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        group = np.repeat(["big", "small"], [1000, rows])
        right = rng.random(len(group)) < np.where(group == "big", 0.95, 0.85)
        paired = Paired(np.ones(len(group), int), Outputs(right.astype(int)), slices={"group": group})
        interval, _ = bounds("n[group=big] - n[group=small] < 0.1", paired, 0.95)
        passed += interval.upper < 0.1

    assert passed <= 30


@pytest.mark.slow
def test_bounds_err_about_as_often_as_they_say():
    big = world(200_000, 2, seed=5)
    truth = f1_score(big.label == big.classes[1], big.new.predicted == big.classes[1])
    missed = [0, 0]

    for seed in range(400):
        interval, _ = bounds("n.f1 > 0", world(300, 2, seed=seed + 10), 0.95)
        missed[0] += interval.lower > truth
        missed[1] += interval.upper < truth

    assert all(8 <= count <= 34 for count in missed)
