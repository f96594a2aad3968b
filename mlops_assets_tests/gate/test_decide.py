import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_assets.errors import MlopsError
from mlops_assets.gate.condition import parse
from mlops_assets.gate.decide import Decision, decide, smallest_margin
from mlops_assets.gate.intervals import betting, certified_difference, clopper_pearson, tango, wilson
from mlops_assets.gate.rows import Outputs, Paired
from mlops_assets_tests.gate.worlds import world


def paired(both: int, gains: int, losses: int, neither: int = 0, *, agreeing: bool = False) -> Paired:
    """Three classes; where neither is right the two predict different wrong classes, unless `agreeing`."""
    label = np.zeros(both + gains + losses + neither, dtype=np.int64)
    new = np.repeat([0, 0, 1, 1], [both, gains, losses, neither])
    old = np.repeat([0, 1, 0, 1 if agreeing else 2], [both, gains, losses, neither])
    return Paired(label, Outputs(new), Outputs(old))


def alone(rows=50):
    return Paired(np.zeros(rows, int), Outputs(np.zeros(rows, int)))


def test_an_equally_good_model_passes_a_margin_that_the_rows_can_decide():
    decision = decide(parse("n - o > -0.10 and n > 0.80"), paired(460, 15, 15, 10), reliability=0.95)

    assert decision.promote
    assert decision.verdict == "true"
    assert decision.disagree == 40
    assert decision.reason == (
        "n - o > -0.10 holds: difference 0.000, at least -0.029 with 97.5 % confidence (exact trinomial test, Berger "
        "and Boos 1994, 500 paired rows; certified, since too few rows differ for an approximation); "
        "n > 0.80 holds: accuracy 0.950, at least 0.927 with 97.5 % confidence (Wilson score 1927, 500 rows)"
    )


def test_a_worse_model_is_refused_with_the_clause_that_fails():
    decision = decide(parse("n - o > -0.02 and n > 0.5"), paired(700, 10, 190, 100), reliability=0.95)

    assert not decision.promote
    assert decision.verdict == "false"
    assert [result.verdict for result in decision.clauses] == ["false", "true"]
    assert decision.reason.startswith("n - o > -0.02 fails: difference -0.180, at most -0.1")
    assert "n > 0.5" not in decision.reason


def test_false_outweighs_unknown_and_unknown_outweighs_true():
    predictions = paired(80, 5, 5, 10)

    def verdict(text):
        return decide(parse(text), predictions, reliability=0.9).verdict

    assert verdict("n > 0.5") == "true"
    assert verdict("n > 0.5 and n > 0.85") == "unknown"
    assert verdict("n > 0.5 and n > 0.85 and n > 0.99") == "false"


@pytest.mark.parametrize(("mode", "promote"), [("fp-free", False), ("fn-free", True)])
def test_the_mode_rules_on_what_is_undecided(mode, promote):
    decision = decide(parse("n > 0.8"), paired(80, 5, 0, 15), reliability=0.95, mode=mode)

    assert decision.verdict == "unknown"
    assert decision.promote is promote
    assert decision.reason.startswith(
        "n > 0.8 is undecided: accuracy 0.850, at least 0.778 and at most 0.905, each with"
    )


def test_fn_free_mode_still_refuses_what_is_false():
    assert not decide(parse("n > 0.99"), paired(80, 5, 0, 15), reliability=0.95, mode="fn-free").promote


def test_the_error_is_split_over_the_clauses_that_are_judged():
    condition = parse("n > 0.5 and n - o > -0.5 and d < 0.9 and o > 0.1")
    with_champion = paired(80, 5, 5, 10)
    without = Paired(with_champion.label, with_champion.new)

    assert {result.level for result in decide(condition, with_champion, reliability=0.9).clauses} == {0.975}
    assert [result.level for result in decide(condition, without, reliability=0.9).clauses] == [0.9, None, None, None]


FORMS = "2*n > 1 and o > 0.1 and d < 0.1 and 2*o - 2*n < 1 and o - n < 0.02 and 2*n - o > 0"


@pytest.mark.parametrize("method", ["efficient", "certified"])
def test_every_form_gets_its_interval(method):
    predictions = paired(800, 60, 40, 100)
    values = np.repeat([1.0, 2.0, -1.0, 0.0], [800, 60, 40, 100])
    level = 0.99

    results = decide(parse(FORMS), predictions, reliability=0.94, method=method).clauses

    certain = method == "certified"
    share, difference = (clopper_pearson, certified_difference) if certain else (wilson, tango)
    expected = [
        tuple(2 * bound for bound in share(860, 1000, level)),
        # A share that is claimed to be above a tenth has its long tail on that side.
        clopper_pearson(840, 1000, level),
        share(200, 1000, level),
        tuple(2 * bound for bound in certified_difference(40, 60, 1000, level)),
        difference(40, 60, 1000, level),
        betting(values, -1.0, 2.0, level),
    ]
    assert [(r.estimate, r.lower, r.upper) for r in results] == [pytest.approx(tuple(one)) for one in expected]
    exact, pairs = "Clopper-Pearson 1934", "exact trinomial test, Berger and Boos 1994"
    assert [r.method for r in results] == [
        exact if certain else "Wilson score 1927",
        exact,
        exact if certain else "Wilson score 1927",
        pairs,
        pairs if certain else "Tango score 1998",
        "betting, Waudby-Smith and Ramdas 2024",
    ]
    few = [
        "certified, since too few rows count for an approximation",
        "certified, since too few rows differ for an approximation",
    ]
    assert [r.note for r in results] == ([""] * 6 if certain else ["", few[0], "", few[1], "", ""])
    assert {r.rows for r in results} == {1000}


def test_beyond_a_level_only_strict_bounds_are_taken():
    predictions = paired(9000, 500, 300, 200)
    condition = parse("n - o > 0 and n > 0.5")

    usual, beyond = (decide(condition, predictions, reliability=level).clauses for level in (0.999, 0.99999))

    assert [r.method for r in usual] == ["Tango score 1998", "Wilson score 1927"]
    assert [r.method for r in beyond] == ["exact trinomial test, Berger and Boos 1994", "Clopper-Pearson 1934"]
    assert {r.note for r in beyond} == {"certified, since nothing else is sound beyond 99.99 % confidence"}


def test_the_most_extreme_reliability_still_decides():
    condition = parse(" and ".join(["n - o > 0", "n > 0.5", "2*n - o > 0.2", "n < 0.99"] * 2))

    decision = decide(condition, paired(8000, 1500, 300, 200), reliability=1 - 1e-15)

    assert decision.verdict == "true"
    assert "with confidence 1 - 1.1e-16" in decision.reason


def test_metrics_slices_and_the_anchor_are_judged():
    predictions = world(3000, 3)
    text = (
        "n.macro_f1 - o.macro_f1 > 0 and n[group=small] - a[group=small] > -0.5 and n[year=2000] - n[year=2001] < 0.2"
    )

    decision = decide(parse(text), predictions, reliability=0.9)

    assert decision.verdict == "true"
    assert [r.method for r in decision.clauses] == [
        "BCa bootstrap, Efron 1987",
        "exact trinomial test, Berger and Boos 1994",
        "BCa bootstrap, Efron 1987",
    ]
    assert [r.note for r in decision.clauses[::2]] == ["approximate", "approximate"]
    small = int((predictions.slices["group"] == "small").sum())
    years = int((predictions.slices["year"] < 2002).sum())
    assert [r.rows for r in decision.clauses] == [3000, small, years]


def test_what_has_no_strict_bound_is_never_certified():
    decision = decide(parse("n.macro_f1 > 0.1"), world(3000, 3), reliability=0.9, method="certified")

    (result,) = decision.clauses
    assert (result.verdict, result.lower, result.upper, result.more_rows) == ("unknown", 0, 1, None)
    assert result.estimate > 0.5
    assert "no finite-sample interval is known" in result.note
    assert decision.reason.endswith("it cannot be told how many test rows would decide it")


@pytest.mark.parametrize(
    ("text", "note"),
    [("n.equalized_odds_difference[group] < 0.3", ""), ("n[group=x] - n[group=y] < 0.9", "small group")],
)
def test_a_small_group_is_unknown(text, note):
    label = np.tile([0, 1], 100)
    predictions = Paired(label, Outputs(label), slices={"group": np.repeat(["x", "y"], [190, 10])})

    decision = decide(parse(text), predictions, reliability=0.9)

    assert decision.verdict == "unknown"
    assert decision.clauses[0].note == note


def test_a_single_row_of_a_slice_shows_nothing():
    predictions = Paired(np.zeros(100, int), Outputs(np.zeros(100, int)), slices={"group": np.arange(100) > 98})

    (result,) = decide(parse("n[group=True] >= 0.3"), predictions, reliability=0.6).clauses

    assert (result.verdict, result.rows, result.note) == ("unknown", 1, "a single row shows nothing")


@pytest.mark.parametrize("method", ["efficient", "certified"])
@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ("n - o > 0", (8000, 520, 480, 1000)),
        ("n - o > -0.02", (40, 2, 2, 4)),
        ("o - n > 0.01", (900, 20, 40, 40)),
        ("n > 0.85", (800, 60, 40, 100)),
        ("n < 0.87", (800, 60, 40, 100)),
        ("d < 0.25", (760, 60, 60, 120)),
        ("2*n - o > 0.85", (800, 60, 40, 100)),
    ],
)
def test_as_many_more_rows_as_told_settle_a_clause(text, counts, method):
    def judge(times):
        grown = paired(*(round(count * times) for count in counts))
        (result,) = decide(parse(text), grown, reliability=0.95, method=method).clauses
        return result

    rows = sum(counts)
    more = judge(1).more_rows

    assert judge(1).verdict == "unknown"
    assert judge(1 + (1.1 * more + 5) / rows).verdict != "unknown"
    assert judge(1 + 0.8 * more / rows).verdict == "unknown"
    assert judge(1 + (1.1 * more + 5) / rows).more_rows is None


def test_how_many_rows_settle_a_bootstrapped_clause():
    def judge(rows):
        return decide(parse("n.macro_f1 - o.macro_f1 > 0.06"), world(rows, 3, seed=3), reliability=0.95).clauses[0]

    few = judge(300)

    assert few.verdict == "unknown"
    # The estimate moves as rows are added, so only the size is right.
    half = (few.upper - few.lower) / 2
    assert few.more_rows == pytest.approx(300 * (half / (few.estimate - 0.06)) ** 2 - 300, rel=0.3)


def test_nothing_settles_an_estimate_on_the_threshold():
    decision = decide(parse("n - o > 0"), paired(80, 5, 5, 10), reliability=0.95)

    assert decision.clauses[0].more_rows is None


def test_the_advice_is_the_most_that_a_clause_needs():
    decision = decide(parse("n > 0.85 and n - o > 0"), paired(800, 57, 43, 100), reliability=0.95)

    most = max(result.more_rows for result in decision.clauses)
    assert decision.reason.endswith(f"about {most} more labelled test rows like these would decide it")


def test_a_tolerance_that_the_rows_do_not_resolve_is_noted():
    predictions = paired(80, 5, 5, 10)

    fine, coarse = (
        decide(parse(f"n > 0.5 +/- {width}"), predictions, reliability=0.95).clauses[0] for width in (0.01, 0.2)
    )

    assert fine.verdict == coarse.verdict == "true"
    assert fine.note == "too few rows for +/- 0.01: they tell +/- 0.068"
    assert coarse.note == ""


@pytest.mark.parametrize(
    ("first", "second"),
    [("n - o > -0.05", "o - n < 0.05"), ("n > 0.8", "-n < -0.8"), ("n > 0.8", "0.8 < n"), ("d < 0.2", "0 > 5*d - 1")],
)
def test_a_clause_turned_round_gets_the_same_verdict(first, second):
    for losses in range(0, 40, 4):
        predictions = paired(90 - losses, 4, losses, 6)
        one, other = (decide(parse(text), predictions, reliability=0.95).verdict for text in (first, second))
        assert one == other


def test_the_tolerance_takes_no_part():
    predictions = paired(80, 6, 4, 10)

    plain, tolerant = (decide(parse(text), predictions, reliability=0.95) for text in ("n > 0.7", "n > 0.7 +/- 0.0001"))

    assert plain.verdict == tolerant.verdict == "true"
    assert plain.clauses[0].lower == tolerant.clauses[0].lower


def test_strict_and_lax_comparisons_part_at_the_bound_itself():
    perfect = paired(20, 0, 0)

    assert decide(parse("n >= 0"), perfect, reliability=0.95).verdict == "true"
    assert decide(parse("n < 1"), perfect, reliability=0.95).verdict == "unknown"
    assert decide(parse("n <= 1"), perfect, reliability=0.95).verdict == "true"

    predictions = paired(80, 5, 5, 10)
    (result,) = decide(parse("n > 0.5"), predictions, reliability=0.95, method="certified").clauses
    at_lower, at_upper = (
        [
            decide(parse(f"n {sign} {bound!r}"), predictions, reliability=0.95, method="certified").verdict
            for sign in (">", ">=", "<", "<=")
        ]
        for bound in (result.lower, result.upper)
    )
    assert at_lower == ["unknown", "true", "false", "unknown"]
    assert at_upper == ["false", "unknown", "unknown", "true"]


def test_without_a_champion_the_absolute_clauses_decide():
    predictions = alone()

    decision = decide(parse("n - o > 0.5 and n > 0.8 and d < 0.1"), predictions, reliability=0.95)

    assert decision.promote
    assert [result.verdict for result in decision.clauses] == ["skipped", "true", "skipped"]
    assert decision.clauses[0].estimate is None
    assert decision.reason.endswith("for an approximation); skipped for want of a champion: n - o > 0.5, d < 0.1")


@pytest.mark.parametrize("mode", ["fp-free", "fn-free"])
def test_without_a_champion_or_an_absolute_clause_a_hand_is_needed(mode):
    predictions = alone()

    decision = decide(parse("n - o > 0\nand d < 0.1"), predictions, reliability=0.95, mode=mode)

    assert (decision.promote, decision.verdict) == (False, "by hand")
    assert decision.reason == (
        "there is no champion yet that 'n - o > 0 and d < 0.1' could compare with: the first promotion needs a hand"
    )


def test_a_bound_close_to_the_threshold_is_shown_on_its_side():
    predictions = paired(9997, 0, 0, 3)
    (result,) = decide(parse("n > 0.5"), predictions, reliability=0.95, method="certified").clauses
    threshold = f"{result.lower - 0.00001:.6f}"

    decision = decide(parse(f"n > {threshold}"), predictions, reliability=0.95, method="certified")

    shown = decision.reason.split("at least ")[1].split(" ")[0]
    assert decision.verdict == "true"
    assert float(shown) > float(threshold)


def test_classes_may_be_text():
    label = np.array(["cat", "dog"] * 40)
    as_objects = label.astype(object)

    decision = decide(
        parse("n - o > -0.2 and n > 0.9"), Paired(label, Outputs(as_objects), Outputs(label)), reliability=0.95
    )

    assert decision.verdict == "true"


def test_a_missing_model_is_named():
    predictions = paired(80, 5, 5, 10)

    without_anchor = decide(parse("n - a > 0 and n > 0.5"), predictions, reliability=0.9)
    without_both = decide(parse("n - a > 0 and d < 0.5 and n > 0.5"), alone(), reliability=0.9)
    by_hand = decide(parse("n - a > 0"), predictions, reliability=0.9)

    assert without_anchor.promote
    assert without_anchor.clauses[1].level == pytest.approx(0.9)
    assert without_anchor.reason.endswith("skipped for want of an anchor: n - a > 0")
    assert without_both.reason.endswith("skipped for want of a champion and an anchor: n - a > 0, d < 0.5")
    assert by_hand.verdict == "by hand"
    assert by_hand.reason.startswith("there is no anchor yet that")


@pytest.mark.parametrize(
    ("text", "predictions"),
    [
        ("n - o > -0.1 and n > 0.8 +/- 0.001", alone()),
        ("n - o > 0.01", paired(80, 5, 4, 10)),
        ("n.log_loss < 3", world(20, 2)),
        ("n - o > 0", alone()),
    ],
)
def test_a_decision_is_json_and_comes_back(text, predictions):
    decision = decide(parse(text), predictions, reliability=0.95)

    stored = json.loads(json.dumps(decision.to_dict(), allow_nan=False))

    assert Decision.from_dict(stored) == decision
    assert stored["promote"] is decision.promote
    assert stored["disagree"] == decision.disagree
    assert set(stored["clauses"][0]) == {
        "text", "verdict", "estimate", "lower", "upper", "threshold", "level", "method", "rows", "note", "more_rows",
    }  # fmt: skip


def test_an_open_end_is_stored_as_nothing():
    decision = decide(parse("n.log_loss < 3"), world(20, 2), reliability=0.95)

    assert decision.clauses[0].upper == np.inf
    assert decision.to_dict()["clauses"][0]["upper"] is None


@pytest.mark.parametrize("stored", [{}, {"clauses": [{"texts": ""}]}, {"clauses": [], "promoted": True}])
def test_what_is_no_decision_is_not_read(stored):
    with pytest.raises(MlopsError, match="cannot be read"):
        Decision.from_dict(stored)


@pytest.mark.parametrize(("reliability", "mode"), [(1.0, "fp-free"), (0.3, "fp-free"), (95, "fp-free"), (0.9, "free")])
def test_an_impossible_reliability_or_mode_is_refused(reliability, mode):
    with pytest.raises(MlopsError):
        decide(parse("n > 0.5"), paired(5, 0, 0), reliability=reliability, mode=mode)


def test_an_unknown_method_is_refused():
    with pytest.raises(MlopsError, match="method 'exact' is unknown: choose efficient or certified"):
        decide(parse("n > 0.5"), paired(5, 0, 0), reliability=0.9, method="exact")


@settings(max_examples=40)
@given(
    rows=st.integers(2, 3000),
    disagreement=st.sampled_from([0, 0.01, 0.1, 0.5]),
    reliability=st.sampled_from([0.8, 0.95, 0.9999]),
)
def test_the_smallest_margin_is_just_wide_enough(rows, disagreement, reliability):
    margin = smallest_margin(rows, reliability=reliability, disagreement=disagreement)
    each = min(round(disagreement * rows / 2), rows // 2)
    equal = paired(rows - 2 * each, each, each)

    def verdict(hundredths):
        condition = parse(f"n - o > -{hundredths / 100:.2f} and n >= 0")
        return decide(condition, equal, reliability=reliability).clauses[0].verdict

    assert round(margin, 2) == margin
    assert verdict(round(100 * margin)) == "true"
    if margin > 0.01:
        assert verdict(round(100 * margin) - 1) == "unknown"


def test_the_smallest_margin_of_known_test_sets():
    assert smallest_margin(48, reliability=0.95, disagreement=0) == 0.1
    assert smallest_margin(48, reliability=0.95, disagreement=0, clauses=1) == 0.08
    assert smallest_margin(10_000, reliability=0.95, disagreement=0.05) == 0.01
    assert smallest_margin(3, reliability=0.95, disagreement=1) == 1.0


@pytest.mark.parametrize("wrong", [{"rows": 0}, {"disagreement": 1.5}, {"clauses": 0}, {"reliability": 1.0}])
def test_no_margin_for_impossible_arguments(wrong):
    with pytest.raises(MlopsError):
        smallest_margin(**{"rows": 10, "reliability": 0.95, "disagreement": 0.1, "clauses": 2} | wrong)
