import json

import numpy as np
import pytest

from mlops_assets.gate import GateError
from mlops_assets.gate.condition import parse
from mlops_assets.gate.decide import decide
from mlops_assets.gate.plan import exceeds, plan, share_exceeds
from mlops_assets.gate.rows import Outputs, Paired

PAPER = "n - o > 0.02 +/- 0.01 /\\ d < 0.1 +/- 0.01"


def rows(gains, losses, both, neither):
    """Test rows on which the new model alone is right, the old one alone, both, or none."""
    counts = [gains, losses, both, neither]
    new, old = np.repeat([1, 0, 1, 0], counts), np.repeat([0, 1, 1, 0], counts)
    return Paired(np.ones(sum(counts), dtype=int), Outputs(new), Outputs(old))


def verdicts(condition, paired, **options):
    return [clause.verdict for clause in decide(parse(condition), paired, **options).clauses]


@pytest.mark.parametrize(
    ("adaptivity", "papers", "ours"),
    [("none", 29_048, 22_234), ("full", 67_706, 58_567), ("first-change", 29_048, 22_234)],
)
def test_the_papers_example_takes_no_more_than_in_the_paper(adaptivity, papers, ours):
    made = plan(parse(PAPER), reliability=0.9999, steps=32, adaptivity=adaptivity)

    difference, disagreement = made.clauses
    bennett = difference.alternatives[0]
    assert bennett.rows == papers
    assert "Bennett" in bennett.bound
    assert "variance at most 0.1 " in bennett.bound
    assert difference.certified.rows == pytest.approx(ours, rel=0.01)
    assert made.certified == difference.certified.rows < papers
    assert "trinomial" in difference.certified.bound
    assert (disagreement.unit, disagreement.note) == ("rows", "needs no labels")
    assert [other.bound.split(" ")[0] for other in disagreement.alternatives] == ["Chernoff", "Hoeffding"]


@pytest.mark.parametrize("method", ["certified", "efficient"])
@pytest.mark.parametrize(("sign", "verdict"), [(1, "true"), (-1, "false")])
def test_a_test_set_of_the_planned_size_decides_an_estimate_beyond_the_tolerance(method, sign, verdict):
    condition = "n - o > 0.01 +/- 0.015 and n > 0.9 +/- 0.02"
    made = plan(parse(condition), reliability=0.95, disagreement=0.08)
    size = getattr(made, method)

    def asked(count):
        gap = int(np.ceil(count * abs(0.01 + sign * 0.015)))
        losses = (round(0.08 * count) - gap + 1) // 2
        gains, losses = (losses + gap, losses) if sign > 0 else (losses, losses + gap)
        right = int(np.ceil(count * 0.92)) if sign > 0 else int(count * 0.88)
        return verdicts(
            condition, rows(gains, losses, right - gains, count - right - losses), reliability=0.95, method=method
        )

    assert asked(size) == [verdict] * 2
    smaller = {clause.text: getattr(clause, method).rows for clause in made.clauses}
    assert smaller["n > 0.9 +/- 0.02"] < size
    assert asked(size // 2)[0] == "unknown"


def test_the_plan_is_for_every_look():
    condition = parse("n - o > 0 +/- 0.03")
    once, often, adaptive = (
        plan(condition, reliability=0.95, steps=steps, adaptivity=adaptivity).certified
        for steps, adaptivity in ((1, "none"), (32, "none"), (32, "full"))
    )

    assert once < often < adaptive


@pytest.mark.slow
def test_more_disagreement_takes_more_rows():
    condition = parse("n - o > 0 +/- 0.03")
    sizes = [plan(condition, reliability=0.95, disagreement=share).certified for share in (0.04, 0.1, 0.3)]

    assert sizes == sorted(set(sizes))
    assert sizes[1] == plan(condition, reliability=0.95).certified
    notes = {
        text: plan(parse(f"{text} +/- 0.05 and d < 0.05 and d < 0.06"), reliability=0.95).clauses[0].note
        for text in ("n - o > 0", "n - a > 0", "n.recall - o.recall > 0", "n[sex=F] - o[sex=F] > 0")
    }
    assert [note.split("on ")[1] for note in notes.values()] == ["5 % of the rows"] + ["10 % of the rows"] * 3


def test_factors_and_turned_clauses_say_the_same():
    sizes = {
        plan(parse(text), reliability=0.99, disagreement=0.1).certified
        for text in ("n - o > 0.02 +/- 0.02", "o - n < -0.02 +/- 0.02", "3*n - 3*o >= 0.06 +/- 0.06")
    }
    assert len(sizes) == 1
    assert (
        len({plan(parse(text), reliability=0.99).certified for text in ("n > 0.8 +/- 0.02", "-2*n < -1.6 +/- 0.04")})
        == 1
    )


@pytest.mark.parametrize(
    ("condition", "unit", "said"),
    [
        ("n > 0.8", "rows", "write +/-"),
        ("n.macro_f1 > 0.8 +/- 0.01", "rows", "before there are predictions"),
        ("n - n[sex=F] > 0 +/- 0.01", "rows", "before there are predictions"),
        ("n[sex=F] > 0.8 +/- 0.01", "labelled rows in [sex=F]", ""),
        ("n.recall > 0.8 +/- 0.01", "labelled rows of the positive class", ""),
        ("n.recall_setosa > 0.8 +/- 0.01", "labelled rows of class setosa", ""),
        ("n.selection_rate < 0.8 +/- 0.01", "rows", "needs no labels"),
        ("2*n - o > 0.8 +/- 0.01", "labelled rows", "worst case"),
        ("n - a > 0 +/- 0.01", "labelled rows", "10 % of the rows"),
        ("n >= 1 +/- 0.01", "labelled rows", "cannot decide so finely"),
    ],
)
def test_a_clause_without_a_number_says_why_and_every_other_what_it_counts(condition, unit, said):
    (clause,) = plan(parse(condition), reliability=0.95).clauses

    assert clause.unit == unit
    assert said in clause.note
    assert (clause.certified is None) == (unit == "rows" and "labels" not in clause.note)


def test_beyond_what_floats_hold_the_closed_forms_remain():
    made = plan(parse("n - o > 0.02 +/- 0.01"), reliability=0.9999, steps=38, adaptivity="full")

    assert made.clauses[0].efficient is None
    assert "Bennett" in made.clauses[0].certified.bound
    assert "with so small an error" in made.clauses[0].note


def test_a_plan_is_json():
    stored = json.loads(json.dumps(plan(parse(PAPER), reliability=0.99).to_dict()))

    assert stored["certified"] == stored["clauses"][0]["certified"]["rows"]


@pytest.mark.parametrize(
    "options",
    [{"disagreement": 0.0}, {"disagreement": 1.5}, {"reliability": 1.0}, {"steps": 0}, {"adaptivity": "some"}],
)
def test_impossible_arguments_are_refused(options):
    with pytest.raises(GateError):
        plan(parse("n > 0.5 +/- 0.1"), **{"reliability": 0.95, **options})


@pytest.mark.parametrize("method", ["certified", "efficient"])
@pytest.mark.parametrize("reliability", [0.9, 0.9999, 1 - 1e-7])
def test_the_rules_for_many_test_sets_are_those_of_a_decision(method, reliability):
    random = np.random.default_rng(4)
    for margin in (-0.02, 0.0, 0.02):
        size = int(random.integers(200, 3_000))
        gains, losses = random.binomial(size, [0.06, 0.03], (4, 2)).T
        sizes = np.full(4, size)
        found = exceeds(gains, losses, sizes, margin, level=reliability, method=method)
        right = random.binomial(size, 0.83, 4)
        shares = share_exceeds(right, sizes, 0.81, level=reliability, method=method)
        options = {"reliability": reliability, "method": method}
        for which in range(4):
            agreed = size - gains[which] - losses[which]
            (verdict,) = verdicts(f"n - o > {margin}", rows(gains[which], losses[which], agreed, 0), **options)
            assert (verdict == "true") == found[which]
            (verdict,) = verdicts("n > 0.81", rows(0, 0, right[which], size - right[which]), **options)
            assert (verdict == "true") == shares[which]
