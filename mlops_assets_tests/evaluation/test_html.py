import base64
import dataclasses
import itertools
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from mlops_assets.evaluation.facts import Cost, meaning, not_asked
from mlops_assets.evaluation.html import bar, report_html
from mlops_assets.gate.condition import parse
from mlops_assets.gate.decide import ClauseResult
from mlops_assets_tests.evaluation.made import HOSTILE, by_hand, facts, hostile

VOID = {"meta", "br", "img"}
SELF_CLOSED = {"line", "rect", "circle"}


class Page(HTMLParser):
    """The page's elements, and its text by where it is; fails on a tag that is not closed where it must be."""

    def __init__(self, data: bytes):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(data.decode())
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs)
        self.tags.append(tag)
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        assert tag in SELF_CLOSED
        self.tags.append(tag)
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        self.text += " " * (tag not in {"code", "a"})

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text += data

    def words(self):
        return " ".join(self.text.split())


def words(*arguments):
    return Page(report_html(*arguments)).words()


UNKNOWN = facts(rows=100, condition="n - o > 0.03 and n > 0.8", gain=0.05)
VARIANTS = {
    "judged": facts(),
    "unknown": UNKNOWN,
    "barred": facts(decision=by_hand(), cost=Cost()),
    "bare": facts(
        decision=by_hand(), slices=False, champion=0, champion_accuracy=None, anchor=0, owners=(), parameters={}
    ),
    "many": facts(classes=100, rows=3000),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_page_is_well_formed(variant):
    data = report_html(VARIANTS[variant], {"confusion": b"png"})
    page = Page(data)

    assert data.startswith(b'<!DOCTYPE html>\n<html lang="en">')
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert all(attributes.get("scope") in {"row", "col"} for tag, attributes in page.elements if tag == "th")
    headings = [int(tag[1]) for tag in page.tags if re.fullmatch("h[1-6]", tag)]
    assert headings[:2] == [1, 2]
    assert headings.count(1) == 1
    assert all(later - earlier <= 1 for earlier, later in itertools.pairwise(headings))


def test_nothing_is_fetched_from_elsewhere():
    page = Page(report_html(facts(), {"confusion": b"png"}))

    loaded = [value for _, attributes in page.elements for name, value in attributes.items() if name in {"src", "data"}]
    linked = [attributes["href"] for _, attributes in page.elements if "href" in attributes]
    assert loaded == ["data:image/png;base64,cG5n"]
    assert linked == ["http://localhost:5000/#/experiments/1/runs/2"]
    assert b"url(" not in report_html(facts())
    assert b"@import" not in report_html(facts())


def test_a_provenance_that_is_no_web_address_is_no_link():
    page = Page(report_html(facts(provenance={"MLflow run": "javascript:alert(1)"})))

    assert "a" not in page.tags


def test_names_from_users_are_text():
    page, tame = Page(report_html(hostile())), Page(report_html(hostile("tame")))

    assert page.tags == tame.tags
    assert [sorted(attributes) for _, attributes in page.elements] == [
        sorted(attributes) for _, attributes in tame.elements
    ]
    assert page.text.count(HOSTILE) == tame.text.count("tame") > 20


def test_the_texts_of_a_condition_are_text():
    page = Page(report_html(facts(condition="n[sex=Female] > 0.5 and n[site=<b>north] > 0.1")))

    assert "b" not in page.tags
    assert "n[site=<b>north] > 0.1" in page.text
    assert "the accuracy of the new model where site is <b>north is greater" in page.text


def test_the_decision_comes_first_in_plain_words():
    said = words(facts(rows=4000))

    assert "flowers, version 3 promoted" in said
    assert said.index("Promoted" if "Promoted" in said else "promoted version 3, because") < said.index("Measures")
    assert "the accuracy of the new model, less the accuracy of the champion, is greater than -0.02" in said
    assert "✓ holds" in said
    assert "The champion before it was version 2. The anchor is version 1." in said
    assert "What would settle" not in said


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({}, "promoted"),
        ({"champion": 3}, "the champion already"),
        ({"decision": by_hand()}, "left to a person"),
        ({"decision": UNKNOWN.decision, "rule": UNKNOWN.rule}, "undecided"),
    ],
)
def test_the_status_says_what_came_of_it(changes, status):
    assert facts(rows=4000, **changes).status == status


def test_a_refusal_is_one():
    assert facts(condition="n > 0.99").status == "refused"
    assert "✗ fails" in words(facts(condition="n > 0.99"))


def test_an_undecided_clause_says_what_would_settle_it():
    result = UNKNOWN.decision.clauses[0]
    said = words(UNKNOWN)

    assert result.verdict == "unknown"
    assert "? undecided" in said
    assert f"about {result.more_rows:,} more labelled rows would settle it" in said
    assert f"({UNKNOWN.decision.disagree} of 100 so far)" in said


def test_rows_on_which_models_differ_settle_a_difference_alone():
    said = words(facts(rows=100, condition="n > 0.88"))

    assert "more labelled rows would settle it" in said
    assert "differ (" not in said


def test_a_clause_that_was_not_asked_has_no_numbers():
    alone = ClauseResult("n - o > -0.02", "skipped", None, None, None, -0.02, None, None, 9)
    there = facts().decision.clauses[1]
    decision = dataclasses.replace(facts().decision, clauses=(alone, there))

    said = words(facts(decision=decision))

    assert "no numbers" in said
    assert "\N{EN DASH} not asked" in said


def clause_result(text, estimate, lower, upper):
    clause = parse(text).clauses[0]
    return clause, ClauseResult(text, "unknown", estimate, lower, upper, clause.threshold, 0.95, "m", 9)


@pytest.mark.parametrize(
    ("text", "estimate", "lower", "upper"),
    [("n > 0.8", 0.9, 0.85, 0.95), ("d < 0.1", 0.2, 0.15, 0.3), ("n >= 0", 0.0, 0.0, 0.0), ("n <= 0.5", 0.4, 0.1, 0.9)],
)
def test_a_bar_keeps_order_and_shades_where_the_clause_holds(text, estimate, lower, upper):
    clause, result = clause_result(text, estimate, lower, upper)
    drawn = bar(clause, result)

    values, places = (
        (lower, estimate, upper, clause.threshold),
        (drawn.lower, drawn.estimate, drawn.upper, drawn.threshold),
    )
    for one, place in zip(values, places, strict=True):
        assert 0 <= place <= 300
        for other, elsewhere in zip(values, places, strict=True):
            assert (one < other) == (place < elsewhere)
    start, width = drawn.holds
    assert start in {0.0, drawn.threshold}
    inside = start <= drawn.estimate <= start + width
    assert inside == {">": estimate > clause.threshold, "<": estimate < clause.threshold}.get(clause.direction, True)


def test_a_bound_at_infinity_reaches_the_edge():
    clause, result = clause_result("n.log_loss < 0.5", 0.4, 0.3, np.inf)
    drawn = bar(clause, result)
    decision = dataclasses.replace(facts().decision, clauses=(result,))
    rule = dataclasses.replace(facts().rule, condition="n.log_loss < 0.5")

    assert drawn.upper == 288
    assert drawn.threshold < drawn.upper
    assert "at most ∞" in words(facts(decision=decision, rule=rule))


def test_measures_have_their_intervals():
    one = facts()
    said, evaluation = words(one), one.evaluation

    figures = [evaluation.accuracy, evaluation.accuracy_lower, evaluation.accuracy_upper]
    assert "accuracy {:.3f} {:.3f} to {:.3f}".format(*figures) in said
    assert "accuracy of the champion, version 2" in said
    assert "accuracy of the champion" not in words(facts(champion=3)).partition("Measures")[2].partition("Classes")[0]


def test_a_class_without_rows_says_so():
    assert "no test rows" in words(facts())


def test_of_many_classes_the_worst_come_first_and_all_are_there():
    many = VARIANTS["many"]
    pictures = {name: np.random.default_rng(0).bytes(60_000) for name in ("confusion", "calibration", "mistakes")}
    data = report_html(many, pictures)
    shown, _, folded = Page(data).words().partition("All 100 classes")
    worst = min((one for one in many.evaluation.classes if one.recall is not None), key=lambda one: one.recall)

    assert len(data) < 1_000_000
    assert "The 20 classes with the lowest recall" in shown
    assert re.search(rf"from 0\.\d to 1 {worst.name} {worst.support} ", shown)
    assert all(one.name in folded for one in many.evaluation.classes)


def test_groups_below_the_rest_are_marked():
    one = facts()
    said = words(one)

    assert [(group.column, group.value) for group in one.weak_slices] == [("sex", "Male")]
    assert "1 of 4 groups lies wholly below" in said
    assert said.count("▼ below") == 1
    assert "names no columns" in words(facts(slices=False))


def test_pictures_are_in_the_page_and_described():
    pictures = {name: name.encode() * 50 for name in ("confusion", "calibration", "mistakes")}
    page = Page(report_html(facts(), pictures))

    images = [attributes for tag, attributes in page.elements if tag == "img"]
    assert [base64.b64decode(one["src"].partition(",")[2]) for one in images] == [*pictures.values()]
    assert all(len(one["alt"]) > 20 for one in images)
    assert "img" not in Page(report_html(facts())).tags


@pytest.mark.parametrize(
    ("cost", "expected"),
    [
        (Cost(5, 400, 7, 3), "rests on 400 test rows; 7 more had no look left. The look at them is record 5 of the"),
        (Cost(5, 400, 0, 1), "the rows have 1 decision left."),
        (Cost(5, 400, 0, 0), "commit fresh labelled data before the next"),
        (Cost(), "it cost nothing"),
    ],
)
def test_the_budget_is_told(cost, expected):
    assert expected in words(facts(cost=cost))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("n > 0.9", "the accuracy of the new model is greater than 0.9"),
        ("2*n - o >= 1", "2 times the accuracy of the new model, less the accuracy of the champion, is at least 1"),
        ("d < 0.1", "the share of rows on which the two models differ is less than 0.1"),
        (
            "n.recall_Iris_setosa[sex=Female] > 0.5",
            "recall of class Iris_setosa of the new model where sex is Female",
        ),
        (
            "n.balanced_accuracy - a.balanced_accuracy > 0",
            "less the balanced accuracy of the anchor, is greater",
        ),
        ("n.equalized_odds_difference[sex] < 0.1", "difference of the new model between the groups of sex is less"),
        ("n.f1_b - o.f1_b > 0", "the F1 of class b of the new model, less the F1 of class b of the champion"),
        ("n.ece < 0.1", "the expected calibration error of the new model is less than 0.1"),
        ("-n <= -0.5", "minus the accuracy of the new model is at most -0.5"),
    ],
)
def test_clauses_in_plain_words(text, expected):
    assert expected in meaning(parse(text).clauses[0])


def test_what_the_rule_does_not_ask_is_told():
    assert not_asked(facts()) == [
        "single classes",
        "groups of rows",
        "the quality of its probabilities",
        "an anchor against many small losses in a row",
    ]
    rule = dataclasses.replace(
        facts().rule, condition="n[a=b] - o[a=b] > 0 and n - a > 0 and n.recall_x > 0.5 and n.ece < 0.5"
    )
    assert not_asked(facts(rule=rule)) == []


def luminance(colour):
    parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_text_can_be_read_in_light_dark_and_print():
    """The contrast that WCAG 2.2 asks for at level AA: 4.5 to 1."""
    themes = re.findall(r":root \{(.*?)\}", report_html(facts()).decode())

    assert len(themes) == 3
    for theme in themes:
        colours = dict(re.findall(r"--(\w+): (#\w{6})", theme))
        for text in ("ink", "soft", "blue", "good", "bad", "open"):
            for ground in ("page", "panel"):
                low, high = sorted(luminance(colours[one]) for one in (text, ground))
                assert (high + 0.05) / (low + 0.05) >= 4.5, (text, ground)
