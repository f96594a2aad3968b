import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import gammaln, xlogy
from scipy.stats import binom, norm

from mlops_assets.gate import GateError
from mlops_assets.gate.intervals import empirical_bernstein, tango, wilson


def test_wilson_is_what_scipy_computes():
    from scipy.stats import binomtest

    for successes, rows, level in [(0, 10, 0.975), (3, 10, 0.9), (10, 10, 0.99), (823, 1000, 0.975), (1, 1, 0.95)]:
        ours = wilson(successes, rows, level)
        theirs = binomtest(successes, rows).proportion_ci(confidence_level=2 * level - 1, method="wilson")
        assert ours == pytest.approx((successes / rows, theirs.low, theirs.high), abs=1e-12)


def test_wilson_solves_the_score_equation():
    estimate, lower, upper = wilson(40, 48, 0.95)

    for bound, sign in ((lower, 1), (upper, -1)):
        assert (estimate - bound) / np.sqrt(bound * (1 - bound) / 48) == pytest.approx(sign * norm.ppf(0.95))


def test_wilson_errs_as_often_as_it_says():
    rows, level = 200, 0.975
    counts = np.arange(rows + 1)
    bounds = np.array([wilson(int(k), rows, level).lower for k in counts])

    errors = [binom.pmf(counts, rows, share)[bounds > share].sum() for share in np.arange(0.5, 0.995, 0.005)]

    assert max(errors) < 0.03
    assert 0.018 < np.mean(errors) < 0.025


# Fagerland, Lydersen and Laake, "Statistical Analysis of Contingency Tables" (2017), chapter 8: the tables of Cavo et
# al. (2012) and Bentur et al. (2009).
@pytest.mark.parametrize(
    ("counts", "published"),
    [((6, 16, 161), (-0.0621, -0.1240, -0.0054)), ((1, 7, 21), (-0.2857, -0.5172, -0.0260))],
)
def test_tango_gives_the_published_intervals(counts, published):
    assert tango(*counts, 0.975) == pytest.approx(published, abs=5.1e-5)


@pytest.mark.parametrize("rows", [1, 48, 1000])
@pytest.mark.parametrize("level", [0.9, 0.975])
def test_tango_without_a_differing_row_has_a_closed_form(rows, level):
    z = norm.ppf(level)

    assert tango(0, 0, rows, level) == pytest.approx((0, -(z**2) / (rows + z**2), z**2 / (rows + z**2)), abs=1e-9)


def score(gains, losses, rows, delta):
    """Tango's statistic with the likeliest share of losses found by searching the likelihood, not by its formula."""
    lowest, highest = max(0.0, -delta), (1 - delta) / 2

    def surprise(share):
        agreeing = max(0.0, 1 - 2 * share - delta)
        return -(xlogy(gains, share + delta) + xlogy(losses, share) + xlogy(rows - gains - losses, agreeing))

    share = minimize_scalar(surprise, bounds=(lowest, highest), method="bounded", options={"xatol": 1e-12}).x
    return (gains - losses - rows * delta) / np.sqrt(rows * (2 * share + delta * (1 - delta)))


@pytest.mark.parametrize(
    ("gains", "losses", "rows"),
    [(1, 0, 44), (0, 1, 44), (3, 2, 5), (5, 0, 5), (10, 3, 48), (40, 20, 160), (0, 30, 48), (500, 480, 10_000)],
)
def test_tango_inverts_the_score_test(gains, losses, rows):
    level = 0.975
    z = norm.ppf(level)
    estimate, lower, upper = tango(gains, losses, rows, level)

    assert -1 <= lower < estimate <= upper <= 1
    assert score(gains, losses, rows, lower) == pytest.approx(z, abs=2e-3)
    for delta in np.linspace(-0.999, lower - 1e-3, 20):
        assert score(gains, losses, rows, delta) > z
    for delta in np.linspace(lower + 1e-3, estimate - 1e-3, 20):
        assert score(gains, losses, rows, delta) < z


def test_tango_is_the_same_from_either_side():
    estimate, lower, upper = tango(12, 5, 80, 0.95)

    assert tango(5, 12, 80, 0.95) == pytest.approx((-estimate, -upper, -lower))


def test_tango_stops_at_the_ends():
    assert tango(0, 7, 7, 0.95)[:2] == (-1, -1)
    assert tango(7, 0, 7, 0.95)[::2] == (1, 1)


def test_tango_errs_as_often_as_it_says():
    rows, level = 48, 0.975
    gains, losses = np.array([(b, c) for b in range(rows + 1) for c in range(rows + 1 - b)]).T
    bounds = np.array([tango(int(b), int(c), rows, level).lower for b, c in zip(gains, losses, strict=True)])
    ways = gammaln(rows + 1) - gammaln(gains + 1) - gammaln(losses + 1) - gammaln(rows - gains - losses + 1)

    for delta in (-0.1, -0.02, 0.0):
        for share in np.arange(max(0.0, -delta) + 0.01, 0.4, 0.03):
            agreeing = 1 - 2 * share - delta
            chance = ways + xlogy(gains, share + delta) + xlogy(losses, share)
            chance = np.exp(chance + xlogy(rows - gains - losses, agreeing))
            assert chance[bounds > delta].sum() < 0.028


def test_empirical_bernstein_is_the_published_bound():
    values = np.array([0.0, 1.0, 1.0, 0.5] * 50)
    log = np.log(2 / 0.05)

    estimate, lower, upper = empirical_bernstein(values, 0.0, 1.0, 0.95)

    half = np.sqrt(2 * values.var(ddof=1) * log / 200) + 7 * log / (3 * 199)
    assert (estimate, lower, upper) == pytest.approx((0.625, 0.625 - half, 0.625 + half))


def test_empirical_bernstein_scales_with_the_range_and_stays_within():
    values = np.random.default_rng(7).uniform(size=300)
    plain = empirical_bernstein(values, 0.0, 1.0, 0.95)

    assert empirical_bernstein(3 * values - 1, -1.0, 2.0, 0.95) == pytest.approx([3 * bound - 1 for bound in plain])
    assert empirical_bernstein(np.ones(1), -1.0, 2.0, 0.95) == (1, -1, 2)
    assert empirical_bernstein(np.ones(2), -1.0, 2.0, 0.95) == (1, -1, 2)


def test_empirical_bernstein_keeps_its_promise():
    rng = np.random.default_rng(11)
    draws = rng.choice([-1.0, 0.0, 1.0, 2.0], p=[0.05, 0.05, 0.1, 0.8], size=(2000, 100))

    missed = sum(empirical_bernstein(row, -1.0, 2.0, 0.9).lower > 1.65 for row in draws)

    assert missed <= 200


@pytest.mark.parametrize(
    "call",
    [
        lambda: wilson(0, 0, 0.95),
        lambda: wilson(5, 4, 0.95),
        lambda: wilson(-1, 4, 0.95),
        lambda: wilson(1, 4, 1.0),
        lambda: wilson(1, 4, 0.4),
        lambda: tango(0, 0, 0, 0.95),
        lambda: tango(3, 3, 5, 0.95),
        lambda: tango(-1, 3, 5, 0.95),
        lambda: empirical_bernstein(np.array([]), 0.0, 1.0, 0.95),
        lambda: empirical_bernstein(np.array([1.5]), 0.0, 1.0, 0.95),
        lambda: empirical_bernstein(np.array([np.nan, 0.1]), 0.0, 1.0, 0.95),
        lambda: empirical_bernstein(np.array([1.0]), 1.0, 1.0, 0.95),
    ],
)
def test_what_cannot_be_bounded_is_refused(call):
    with pytest.raises(GateError):
        call()
