import numpy as np
import pytest

from mlops_assets.evaluation.slices import MOST_VALUES, slice_figures
from mlops_assets.gate.intervals import wilson


def test_each_value_of_each_column_is_measured():
    label = np.array([0, 1, 1, 0, 1])
    predicted = np.array([0, 1, 0, 0, 0])
    columns = {"sex": np.array(["f", "m", "f", "f", "m"], dtype=object), "age": np.array([30, 30, 30, 30, 41])}

    figures = slice_figures(label, predicted, columns)

    assert [(one.column, one.value, one.rows, one.share) for one in figures] == [
        ("sex", "f", 3, 0.6),
        ("sex", "m", 2, 0.4),
        ("age", "30", 4, 0.8),
        ("age", "41", 1, 0.2),
    ]
    assert [one.accuracy for one in figures] == pytest.approx([2 / 3, 1 / 2, 3 / 4, 0])
    assert (figures[0].lower, figures[0].upper) == pytest.approx(wilson(2, 3, 0.975)[1:])


def test_a_column_of_ten_thousand_values_becomes_thirty_and_a_rest():
    rng = np.random.default_rng(0)
    values = np.concatenate([np.arange(10_000), np.repeat(np.arange(40), 5)])
    label = rng.integers(0, 2, len(values))
    predicted = rng.integers(0, 2, len(values))

    figures = slice_figures(label, predicted, {"id": values})

    assert len(figures) == MOST_VALUES + 1
    assert {one.rows for one in figures[:-1]} == {6}
    assert figures[-1].value == "other (9,970 values)"
    assert sum(one.rows for one in figures) == len(values)
    assert sum(one.rows * one.accuracy for one in figures) == pytest.approx((label == predicted).sum())


def test_thirty_values_leave_no_rest():
    values = np.arange(30)

    assert [one.rows for one in slice_figures(values, values, {"id": values})] == [1] * 30


def test_an_empty_value_has_a_name():
    zeros = np.zeros(3)

    figures = slice_figures(zeros, zeros, {"site": np.array(["", "", "a"])})

    assert [one.value for one in figures] == ["(empty)", "a"]


def test_without_columns_or_rows_there_is_nothing():
    none = np.array([])

    assert slice_figures(np.zeros(3), np.zeros(3), {}) == []
    assert slice_figures(none, none, {"sex": none}) == []


def test_a_group_is_below_when_its_whole_interval_is():
    label = np.zeros(200)
    predicted = np.concatenate([np.zeros(100), np.ones(100)])
    good, bad = slice_figures(label, predicted, {"half": np.repeat(["a", "b"], 100)})

    assert not good.below(0.5)
    assert bad.below(0.5)
    assert not bad.below(bad.upper)
