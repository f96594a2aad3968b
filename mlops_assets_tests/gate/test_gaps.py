"""Fairness gaps: their bounds hold where a bootstrap promises what it cannot keep."""

import numpy as np
import pytest
from scipy.stats import binom

from mlops_assets.gate.condition import parse
from mlops_assets.gate.decide import decide
from mlops_assets.gate.gaps import Gap
from mlops_assets.gate.rows import Outputs, Paired


def test_groups_that_look_alike_are_not_known_to_be() -> None:
    label = np.tile([0, 1], 500)
    group = np.repeat(["few", "many"], [100, 900])
    alike = Paired(label, Outputs(label), slices={"sex": group})

    for method in ("efficient", "certified"):
        (result,) = decide(
            parse("n.demographic_parity_difference[sex] < 0.1"), alike, reliability=0.95, method=method
        ).clauses
        assert (result.estimate, result.verdict) == (0.0, "unknown")
        assert result.upper == pytest.approx(0.203, abs=0.01)


@pytest.mark.parametrize("sizes", [(100, 900), (400, 1600), (30, 30, 30, 500)])
@pytest.mark.parametrize("level", [0.95, 0.99375])
def test_bounds_err_no_more_often_than_stated(sizes: tuple[int, ...], level: float) -> None:
    rng = np.random.default_rng(0)
    shares = np.full(len(sizes), 0.5)
    shares[0] = 0.6
    draws = 600
    above = below = 0
    for hits in rng.binomial(sizes, shares, size=(draws, len(sizes))):
        found = Gap(hits[None, :], np.array([sizes])).interval(level)
        assert found.lower <= found.estimate <= found.upper
        above += found.upper < 0.1
        below += found.lower > 0.1
    most = binom.isf(1e-6, draws, 1 - level)
    assert above <= most
    assert below <= most


def test_a_group_without_rows_of_a_kind_leaves_everything_open() -> None:
    found = Gap(np.array([[5, 0], [2, 3]]), np.array([[10, 0], [10, 10]])).interval(0.9)
    assert found.upper > 0.7
    assert found.lower < 0.2


def test_gaps_of_two_models_and_gaps_beside_other_metrics() -> None:
    rng = np.random.default_rng(1)
    label = rng.integers(0, 2, size=4000)
    group = np.where(rng.random(4000) < 0.5, "x", "y")
    fair = np.where(rng.random(4000) < 0.9, label, 1 - label)
    unfair = np.where((group == "x") & (rng.random(4000) < 0.5), 1, fair)
    rows = Paired(label, Outputs(fair), Outputs(unfair), slices={"sex": group})

    gain = "n.equalized_odds_difference[sex] - o.equalized_odds_difference[sex] < -0.1"
    assert decide(parse(gain), rows, reliability=0.95).verdict == "true"
    mixed = decide(parse("n - n.equalized_odds_difference[sex] > 0.1"), rows, reliability=0.95)
    assert mixed.verdict == "unknown"
    assert "no interval is known" in mixed.clauses[0].note


@pytest.mark.slow
def test_a_calibration_error_on_the_threshold_is_not_promoted_too_often() -> None:
    rng = np.random.default_rng(2)
    promoted = 0
    for _ in range(60):
        confidence = rng.uniform(0.6, 0.95, size=1000)
        label = (rng.random(1000) < confidence - 0.03).astype(int)  # overconfident by 0.03 everywhere
        scores = np.stack([1 - confidence, confidence], axis=1)
        rows = Paired(label, Outputs(np.ones(1000, int), scores), classes=("0", "1"))
        promoted += decide(parse("n.ece < 0.0299"), rows, reliability=0.95).promote
    assert promoted <= binom.isf(1e-4, 60, 0.05)
