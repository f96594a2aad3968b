import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_assets.errors import MlopsError
from mlops_assets.gate.condition import parse
from mlops_assets.gate.decide import Paired, decide, smallest_margin
from mlops_assets.gate.intervals import empirical_bernstein, tango, wilson


def paired(both: int, gains: int, losses: int, neither: int = 0, *, agreeing: bool = False) -> Paired:
    """Three classes; where neither is right the two predict different wrong classes, unless `agreeing`."""
    label = np.zeros(both + gains + losses + neither, dtype=np.int64)
    new = np.repeat([0, 0, 1, 1], [both, gains, losses, neither])
    old = np.repeat([0, 1, 0, 1 if agreeing else 2], [both, gains, losses, neither])
    return Paired(label, new, old)


def test_an_equally_good_model_passes_a_margin_that_the_rows_can_decide():
    decision = decide(parse("n - o > -0.10 and n > 0.80"), paired(46, 0, 0, 2), reliability=0.95)

    assert decision.promote
    assert decision.verdict == "true"
    assert decision.reason == (
        "n - o > -0.10 holds: difference 0.000, at least -0.074 with 97.5 % confidence (Tango score, 48 paired rows); "
        "n > 0.80 holds: accuracy 0.958, at least 0.860 with 97.5 % confidence (Wilson score, 48 rows)"
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
        "n > 0.8 is undecided: accuracy 0.850, at least 0.782 and at most 0.899, each with"
    )


def test_fn_free_mode_still_refuses_what_is_false():
    assert not decide(parse("n > 0.99"), paired(80, 5, 0, 15), reliability=0.95, mode="fn-free").promote


def test_the_error_is_split_over_the_clauses_that_are_judged():
    condition = parse("n > 0.5 and n - o > -0.5 and d < 0.9 and o > 0.1")
    with_champion = paired(80, 5, 5, 10)
    without = Paired(with_champion.label, with_champion.new)

    assert {result.level for result in decide(condition, with_champion, reliability=0.9).clauses} == {0.975}
    assert [result.level for result in decide(condition, without, reliability=0.9).clauses] == [0.9, None, None, None]


def test_every_form_gets_its_interval():
    predictions = paired(80, 6, 4, 10)
    values = np.repeat([1.0, 2.0, -1.0, 0.0], [80, 6, 4, 10])
    condition = parse("2*n > 1 and o > 0.1 and d < 0.9 and 2*o - 2*n < 1 and 2*n - o > 0")
    level = 0.99

    results = decide(condition, predictions, reliability=0.95).clauses

    new, old, differ = wilson(86, 100, level), wilson(84, 100, level), wilson(20, 100, level)
    difference, form = tango(4, 6, 100, level), empirical_bernstein(values, -1.0, 2.0, level)
    assert [(r.estimate, r.lower, r.upper) for r in results] == [
        pytest.approx(tuple(2 * bound for bound in new)),
        pytest.approx(old),
        pytest.approx(differ),
        pytest.approx(tuple(2 * bound for bound in difference)),
        pytest.approx(form),
    ]
    assert [r.method for r in results] == ["Wilson score"] * 3 + ["Tango score", "empirical Bernstein"]


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
    (result,) = decide(parse("n > 0.5"), predictions, reliability=0.95).clauses
    at_lower, at_upper = (
        [decide(parse(f"n {sign} {bound!r}"), predictions, reliability=0.95).verdict for sign in (">", ">=", "<", "<=")]
        for bound in (result.lower, result.upper)
    )
    assert at_lower == ["unknown", "true", "false", "unknown"]
    assert at_upper == ["false", "unknown", "unknown", "true"]


def test_without_a_champion_the_absolute_clauses_decide():
    predictions = Paired(np.zeros(50, int), np.zeros(50, int))

    decision = decide(parse("n - o > 0.5 and n > 0.8 and d < 0.1"), predictions, reliability=0.95)

    assert decision.promote
    assert [result.verdict for result in decision.clauses] == ["skipped", "true", "skipped"]
    assert decision.clauses[0].estimate is None
    assert decision.reason.endswith("(Wilson score, 50 rows); skipped for want of a champion: n - o > 0.5, d < 0.1")


@pytest.mark.parametrize("mode", ["fp-free", "fn-free"])
def test_without_a_champion_or_an_absolute_clause_a_hand_is_needed(mode):
    predictions = Paired(np.zeros(50, int), np.zeros(50, int))

    decision = decide(parse("n - o > 0\nand d < 0.1"), predictions, reliability=0.95, mode=mode)

    assert (decision.promote, decision.verdict) == (False, "by hand")
    assert decision.reason == (
        "there is no champion yet that 'n - o > 0 and d < 0.1' could compare with: the first promotion needs a hand"
    )


def test_a_bound_close_to_the_threshold_is_shown_on_its_side():
    predictions = paired(9997, 0, 0, 3)
    (result,) = decide(parse("n > 0.5"), predictions, reliability=0.95).clauses
    threshold = f"{result.lower - 0.00001:.6f}"

    decision = decide(parse(f"n > {threshold}"), predictions, reliability=0.95)

    shown = decision.reason.split("at least ")[1].split(" ")[0]
    assert decision.verdict == "true"
    assert float(shown) > float(threshold)


def test_classes_may_be_text():
    label = np.array(["cat", "dog"] * 40)
    as_objects = label.astype(object)

    decision = decide(parse("n - o > -0.2 and n > 0.9"), Paired(label, as_objects, label), reliability=0.95)

    assert decision.verdict == "true"


def test_a_decision_is_json():
    decision = decide(parse("n - o > -0.1 and n > 0.8"), Paired(np.zeros(50, int), np.zeros(50, int)), reliability=0.95)

    stored = json.loads(json.dumps(decision.to_dict(), allow_nan=False))

    assert stored["promote"] is True
    assert stored["clauses"][1]["verdict"] == "true"
    assert stored["clauses"][1]["lower"] == decision.clauses[1].lower
    assert set(stored["clauses"][0]) == {
        "text", "verdict", "estimate", "lower", "upper", "threshold", "level", "method", "rows",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("label", "new", "old", "said"),
    [
        ([], [], None, "no test rows"),
        ([0, 1], [0], None, "2 labels, 1 new model's predictions"),
        ([0, 1], [0, 1], [0, 1, 1], "3 champion's predictions"),
        ([0, 1], [0.0, np.nan], None, "missing among the new model's predictions"),
        (np.array(["a", None], object), ["a", "b"], None, "missing among the labels"),
        ([0, 1], ["0", "1"], None, "labels are numbers, new model's predictions are text"),
        ([0, 1], [[0.2, 0.8], [0.5, 0.5]], None, "shape (2, 2)"),
        ([0, 1], np.array([b"0", b"1"]), None, "neither numbers nor text"),
    ],
)
def test_what_cannot_be_paired_is_refused(label, new, old, said):
    with pytest.raises(MlopsError) as caught:
        Paired(np.asarray(label), np.asarray(new), None if old is None else np.asarray(old))

    assert said in str(caught.value)


@pytest.mark.parametrize(("reliability", "mode"), [(1.0, "fp-free"), (0.3, "fp-free"), (95, "fp-free"), (0.9, "free")])
def test_an_impossible_reliability_or_mode_is_refused(reliability, mode):
    with pytest.raises(MlopsError):
        decide(parse("n > 0.5"), paired(5, 0, 0), reliability=reliability, mode=mode)


@given(
    rows=st.integers(1, 3000),
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
    assert smallest_margin(48, reliability=0.95, disagreement=0) == 0.08
    assert smallest_margin(48, reliability=0.95, disagreement=0, clauses=1) == 0.06
    assert smallest_margin(10_000, reliability=0.95, disagreement=0.05) == 0.01
    assert smallest_margin(3, reliability=0.95, disagreement=1) == 0.7


@pytest.mark.parametrize("wrong", [{"rows": 0}, {"disagreement": 1.5}, {"clauses": 0}, {"reliability": 1.0}])
def test_no_margin_for_impossible_arguments(wrong):
    with pytest.raises(MlopsError):
        smallest_margin(**{"rows": 10, "reliability": 0.95, "disagreement": 0.1, "clauses": 2} | wrong)
