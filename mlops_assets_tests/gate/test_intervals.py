import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import gammaln, xlogy
from scipy.stats import binom, binomtest, norm

from mlops_assets.gate import GateError
from mlops_assets.gate.intervals import (
    betting,
    certified_difference,
    certified_exceeds,
    clopper_pearson,
    efficient_is_sound,
    tango,
    wilson,
    wilson_is_sound,
)
from mlops_assets.gate.trinomial import tail


def test_wilson_is_what_scipy_computes():
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
    bounds = wilson(counts, rows, level).lower

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
    bounds = tango(gains, losses, rows, level).lower
    ways = gammaln(rows + 1) - gammaln(gains + 1) - gammaln(losses + 1) - gammaln(rows - gains - losses + 1)

    for delta in (-0.1, -0.02, 0.0):
        for share in np.arange(max(0.0, -delta) + 0.01, 0.4, 0.03):
            agreeing = 1 - 2 * share - delta
            chance = ways + xlogy(gains, share + delta) + xlogy(losses, share)
            chance = np.exp(chance + xlogy(rows - gains - losses, agreeing))
            assert chance[bounds > delta].sum() < 0.028


def test_clopper_pearson_is_what_scipy_computes():
    for successes, rows, level in [(0, 10, 0.975), (3, 10, 0.9), (10, 10, 0.99), (823, 1000, 0.975), (1, 1, 0.95)]:
        ours = clopper_pearson(successes, rows, level)
        theirs = binomtest(successes, rows).proportion_ci(confidence_level=2 * level - 1, method="exact")
        assert ours == pytest.approx((successes / rows, theirs.low, theirs.high), abs=1e-9)


@pytest.mark.parametrize("interval", [wilson, clopper_pearson, tango, certified_difference])
def test_arrays_give_what_each_number_gives(interval):
    rng = np.random.default_rng(5)
    counts = rng.multinomial(400, [0.05, 0.03, 0.92], size=20).T[: 1 if interval in (wilson, clopper_pearson) else 2]
    levels = rng.choice([0.9, 0.975, 1 - 1e-15], size=20)

    found = interval(*counts, 400, levels)

    assert found.lower.shape == (20,)
    for row, level in enumerate(levels):
        one = interval(*(int(count[row]) for count in counts), 400, float(level))
        assert all(type(value) is float for value in one)
        assert one == pytest.approx(tuple(part[row] for part in found), abs=1e-12)
        assert one.lower < one.estimate < one.upper


def outcomes(rows, difference, share):
    """Counts of gains and losses that are not too unlikely, and their probabilities."""
    gain, loss = (share + difference) / 2, (share - difference) / 2
    most = min(rows, int(rows * share + 9 * np.sqrt(rows * share) + 10))
    gains, losses = (part.ravel() for part in np.meshgrid(np.arange(most + 1), np.arange(most + 1), indexing="ij"))
    there = gains + losses <= rows
    gains, losses = gains[there], losses[there]
    ways = gammaln(rows + 1) - gammaln(gains + 1) - gammaln(losses + 1) - gammaln(rows - gains - losses + 1)
    chance = np.exp(ways + xlogy(gains, gain) + xlogy(losses, loss) + xlogy(rows - gains - losses, max(0.0, 1 - share)))
    likely = chance > 1e-10
    return gains[likely], losses[likely], chance[likely]


@pytest.mark.parametrize(("rows", "share"), [(7, 0.5), (60, 0.3), (400, 0.4), (3000, 0.02)])
@pytest.mark.parametrize("part", [-1.0, -0.5, 0.0, 0.3, 1.0])
def test_the_tail_is_the_sum_over_all_outcomes(rows, share, part):
    difference = share * part
    gains, losses, chance = outcomes(rows, difference, share)
    middle, spread = rows * difference, np.sqrt(rows * share)

    for least in np.round(middle + spread * np.array([0.0, 1.0, 2.0, 4.0])):
        found = tail(*(np.array([value]) for value in (least, difference, share, float(rows))))
        assert found[0] == pytest.approx(chance[gains - losses >= least].sum(), abs=3e-7)


def test_the_tail_keeps_its_digits_far_out():
    # Gains alone: a binomial tail that SciPy knows.
    cases = [(3600, 0.3, 10_000), (40, 0.001, 10_000), (30, 0.5, 30)]
    least, share, rows = (np.array(column, dtype=float) for column in zip(*cases, strict=True))

    found = tail(least, share, share, rows)

    assert found == pytest.approx(binom.sf(least - 1, rows, share), rel=1e-9)
    assert found.min() < 1e-30


def test_the_tail_grows_with_the_share_of_differing_rows():
    rng = np.random.default_rng(2)
    rows = rng.integers(5, 2000, size=400).astype(float)
    lower, higher = np.sort(rng.uniform(0.001, 0.5, size=(2, 400)), axis=0)
    difference = lower * rng.uniform(-1, 1, size=400)
    least = np.ceil((rows - 1) * difference + 2 + rng.exponential(3, size=400))

    assert np.all(tail(least, difference, lower, rows) <= tail(least, difference, higher, rows) * (1 + 1e-9))


@pytest.mark.parametrize("rows", [10, 48, 500, 10_000])
@pytest.mark.parametrize("level", [0.9, 0.99, 0.9999])
def test_the_certified_difference_never_errs_more_often_than_it_says(rows, level):
    for expected in (0.5, 4, 30):
        share = expected / rows
        for part in (-0.9, -0.4, 0.0, 0.35, 0.8):
            if share > 0.9:
                continue
            gains, losses, chance = outcomes(rows, share * part, share)
            wrong = certified_exceeds(gains, losses, rows, level, share * part)
            assert chance[wrong].sum() <= 1 - level


@pytest.mark.parametrize("share", [0.45, 0.55, 0.7, 0.95])
def test_the_certified_difference_holds_where_most_rows_differ(share):
    for part in (-0.5, 0.0, 0.5):
        gains, losses, chance = outcomes(40, share * part, share)
        assert chance[certified_exceeds(gains, losses, 40, 0.9, share * part)].sum() <= 0.1


@pytest.mark.parametrize(
    ("gains", "losses", "rows", "level"),
    [(0, 0, 48, 0.95), (3, 2, 48, 0.9), (525, 275, 10_000, 0.978), (60, 40, 100, 0.95), (300, 100, 10_000, 1 - 1e-14)],
)
def test_the_certified_bound_is_where_exceeding_ends(gains, losses, rows, level):
    estimate, lower, upper = certified_difference(gains, losses, rows, level)

    assert -1 <= lower < estimate < upper <= 1
    assert certified_exceeds(gains, losses, rows, level, lower - 1e-6)
    assert not certified_exceeds(gains, losses, rows, level, lower + 1e-6)
    assert certified_difference(losses, gains, rows, level) == pytest.approx((-estimate, -upper, -lower))


def test_the_certified_difference_is_nearly_as_sharp_as_tango():
    for gains, losses, wider in [(410, 390, 1.15), (525, 275, 1.15), (110, 90, 1.3)]:
        exact, approximate = (one(gains, losses, 10_000, 0.978) for one in (certified_difference, tango))
        assert 1 < (exact.estimate - exact.lower) / (approximate.estimate - approximate.lower) < wider


@pytest.mark.slow
@pytest.mark.parametrize("rows", [500, 3000])
@pytest.mark.parametrize("level", [0.9, 0.975, 0.9999])
def test_tango_errs_at_most_a_quarter_more_than_stated_where_it_is_sound(rows, level):
    # Around the rule's own limits, where the measured share of differing rows falls now here, now there.
    for expected in (20, 26, 40, 50, 90):
        for part in (0.0, 0.2, 0.31, 0.34, -0.31):
            share = expected / rows
            difference = share * part
            gains, losses, chance = outcomes(rows, difference, share)
            sound = efficient_is_sound(gains, losses, rows, difference)
            wrong = np.where(
                sound,
                tango(gains, losses, rows, level).lower > difference,
                certified_exceeds(gains, losses, rows, level, difference),
            )
            assert chance[wrong].sum() <= 1.25 * (1 - level)


@pytest.mark.parametrize("rows", [500, 2000])
@pytest.mark.parametrize("level", [0.9, 0.975, 0.9999])
def test_wilson_errs_at_most_a_quarter_more_than_stated_where_it_is_sound(rows, level):
    counts = np.arange(rows + 1)
    lower, upper = wilson(counts, rows, level)[1:]

    for share in np.linspace(0.01, 0.99, 300):
        if wilson_is_sound(rows, share, above=True):
            assert binom.pmf(counts, rows, share)[lower > share].sum() <= 1.25 * (1 - level)
        if wilson_is_sound(rows, share, above=False):
            assert binom.pmf(counts, rows, share)[upper < share].sum() <= 1.25 * (1 - level)


def test_what_is_sound_is_told_by_counts_and_side():
    assert efficient_is_sound(13, 12, 10_000, 0.0)
    assert not efficient_is_sound(13, 11, 10_000, 0.0)
    assert efficient_is_sound(400, 400, 10_000, -0.02)
    assert not efficient_is_sound(400, 400, 10_000, 0.03)
    assert wilson_is_sound(500, 0.9, above=True)
    assert not wilson_is_sound(500, 0.9, above=False)
    assert not wilson_is_sound(100, 0.9, above=True)
    assert efficient_is_sound(np.array([12, 13]), 12, 10_000, 0.0).tolist() == [False, True]


def test_betting_scales_with_the_range_and_does_not_mind_the_order():
    values = np.random.default_rng(7).uniform(size=300)
    plain = betting(values, 0.0, 1.0, 0.95)

    assert plain.lower < values.mean() < plain.upper
    assert betting(3 * values - 1, -1.0, 2.0, 0.95) == pytest.approx([3 * bound - 1 for bound in plain], abs=1e-6)
    assert betting(values[::-1].copy(), 0.0, 1.0, 0.95) == pytest.approx(plain)
    assert betting(1 - values, 0.0, 1.0, 0.95) == pytest.approx((1 - plain.estimate, 1 - plain.upper, 1 - plain.lower))


def test_betting_at_the_ends_of_the_range():
    estimate, lower, upper = betting(np.zeros(100), 0.0, 1.0, 0.95)

    assert (estimate, lower) == (0, 0)
    assert 0.02 < upper < 0.1
    assert betting(np.full(100, 2.0), -1.0, 2.0, 0.95)[::2] == (2, 2)


def test_betting_is_sharper_than_hoeffding_where_values_vary_little():
    values = np.random.default_rng(3).beta(2, 30, size=5000)

    interval = betting(values, 0.0, 1.0, 0.975)

    assert interval.upper - interval.lower < 0.4 * 2 * np.sqrt(np.log(1 / 0.025) / (2 * 5000))


@pytest.mark.parametrize("chances", [[0.05, 0.05, 0.1, 0.8], [0.02, 0.96, 0.01, 0.01], [0.5, 0.0, 0.0, 0.5]])
def test_betting_keeps_its_promise(chances):
    support = np.array([-1.0, 0.0, 1.0, 2.0])
    draws = np.random.default_rng(11).choice(support, p=chances, size=(500, 100))
    mean = support @ chances

    found = [betting(row, -1.0, 2.0, 0.9) for row in draws]

    assert sum(one.lower > mean for one in found) <= 50
    assert sum(one.upper < mean for one in found) <= 50


@pytest.mark.parametrize(
    "call",
    [
        lambda: wilson(0, 0, 0.95),
        lambda: wilson(5, 4, 0.95),
        lambda: wilson(-1, 4, 0.95),
        lambda: wilson(1, 4, 1.0),
        lambda: wilson(1, 4, 0.4),
        lambda: clopper_pearson(np.array([1, 5]), 4, 0.95),
        lambda: wilson(1, 4, np.array([0.9, 1.0])),
        lambda: certified_difference(3, 3, 5, 0.95),
        lambda: tango(0, 0, 0, 0.95),
        lambda: tango(3, 3, 5, 0.95),
        lambda: tango(-1, 3, 5, 0.95),
        lambda: betting(np.array([]), 0.0, 1.0, 0.95),
        lambda: betting(np.array([1.5]), 0.0, 1.0, 0.95),
        lambda: betting(np.array([np.nan, 0.1]), 0.0, 1.0, 0.95),
        lambda: betting(np.array([1.0]), 1.0, 1.0, 0.95),
    ],
)
def test_what_cannot_be_bounded_is_refused(call):
    with pytest.raises(GateError):
        call()
