import math
import pickle

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mlops_assets.errors import MlopsError
from mlops_assets.gate.condition import Condition, ConditionError, Slice, Term, parse


def only(text: str):
    (clause,) = parse(text).clauses
    return clause


@pytest.mark.parametrize(
    ("text", "coefficients", "direction", "threshold", "tolerance"),
    [
        ("n > 0.80", {"n": 1}, ">", 0.8, None),
        ("n - o > 0.02 +/- 0.01", {"n": 1, "o": -1}, ">", 0.02, 0.01),
        ("o - n < -0.02 ± 0.01", {"n": -1, "o": 1}, "<", -0.02, 0.01),
        ("2*n - o >= 0.7", {"n": 2, "o": -1}, ">=", 0.7, None),
        ("0.7 <= n*2 - o", {"n": 2, "o": -1}, ">=", 0.7, None),
        ("0.1 > d", {"d": 1}, "<", 0.1, None),
        ("n > o - 0.1", {"n": 1, "o": -1}, ">", -0.1, None),
        ("-(n - (o + .5)) * 2 <= 3 * 0.1", {"n": -2, "o": 2}, "<=", -0.7, None),
        ("n - - o + +d > 1.", {"n": 1, "o": 1, "d": 1}, ">", 1, None),
        ("0.1*n + 0.2*n - 0.3*n + d < 0.5", {"d": 1}, "<", 0.5, None),
        ("n - o > 0.5*d", {"n": 1, "o": -1, "d": -0.5}, ">", 0, None),
        ("n - a > -0.02", {"n": 1, "a": -1}, ">", -0.02, None),
        ("n.accuracy + n.f1 > n - 0.1", {"n.f1": 1}, ">", -0.1, None),
        ("d[ sex = Female ] < 0.1", {"d[sex=Female]": 1}, "<", 0.1, None),
        ("n[age=30 to 40]-o[age=30 to 40] > 0", {"n[age=30 to 40]": 1, "o[age=30 to 40]": -1}, ">", 0, None),
        ("n.equalized_odds_difference[sex] < 0.1", {"n.equalized_odds_difference[sex]": 1}, "<", 0.1, None),
        ("n.log_loss - o.log_loss < -0.1", {"n.log_loss": 1, "o.log_loss": -1}, "<", -0.1, None),
    ],
)
def test_a_clause_becomes_a_linear_form(text, coefficients, direction, threshold, tolerance):
    clause = only(text)

    assert {str(term): factor for term, factor in clause.coefficients.items()} == coefficients
    assert (clause.direction, clause.threshold, clause.tolerance) == (direction, threshold, tolerance)


def test_clauses_know_where_they_stand():
    text = " n - o > -0.10 +/- 0.05\n and\tn >\n 0.80 /\\ d<0.1 "

    condition = parse(text)

    assert [clause.text for clause in condition.clauses] == ["n - o > -0.10 +/- 0.05", "n > 0.80", "d<0.1"]
    assert [text[c.start : c.end] for c in condition.clauses] == ["n - o > -0.10 +/- 0.05", "n >\n 0.80", "d<0.1"]
    assert condition.text == text


def test_absolute_and_relative_clauses_are_told_apart():
    condition = parse("n - o > 0 and n > 0.8 and d < 0.1 and o > 0.5 and 2*n >= 1")

    assert [clause.text for clause in condition.absolute] == ["n > 0.8", "2*n >= 1"]
    assert [clause.models for clause in condition.clauses][1:4] == [{"n"}, {"d"}, {"o"}]


def test_a_term_is_what_its_text_says():
    condition = parse("n.f1[sex=Female] - o > 0 and n.f1[sex=Female] > 0.5 and d < 0.2")

    assert dict(condition.terms) == {
        Term("n", "f1", Slice("sex", "Female")): 0,
        Term("o"): 19,
        Term("d", ""): 56,
    }
    said = str(condition.error_at(Term("o"), "there is no champion"))
    assert said.splitlines()[0].endswith("line 1, column 20: there is no champion")


@pytest.mark.parametrize(
    ("text", "lowest", "highest"),
    [
        ("n > 0", 0, 1),
        ("n - o > 0", -1, 1),
        ("2*n - o > 0", -1, 2),
        ("n - o + d > 0", 0, 2),
        ("n + o > 0", 0, 2),
        ("n + a - 2*o > 0", -2, 2),
        ("d[sex=M] - n + o > 0", -1, 2),
        ("2*n.f1 - o.f1 > 0", -1, 2),
        ("n.brier < 1", 0, 2),
        ("n.rmse < 9", 0, math.inf),
        ("n.rmse - o.rmse < 9", -math.inf, math.inf),
    ],
)
def test_the_range_is_that_of_one_row(text, lowest, highest):
    assert only(text).range == (lowest, highest)


@pytest.mark.parametrize(
    ("text", "position", "said"),
    [
        ("", 0, "is empty"),
        (" \n ", 0, "is empty"),
        ("n -", 3, "expected a number, n, o, a, d or '(', found the end"),
        ("n > 0.5 and", 11, "found the end of the condition"),
        ("and n > 0.5", 0, "expected a number, n, o, a, d or '(', found 'and'"),
        ("n > 0.5 n > 0.6", 8, "expected 'and' or the end of the condition, found 'n'"),
        ("n 0.5", 2, "or a comparison (>, <, >=, <=), found '0.5'"),
        ("(n - o > 0.1", 7, "expected +, -, * or ')', found '>'"),
        ("n == 0.5", 2, "compare with >, <, >= or <="),
        ("n > 80%", 6, "0.8 for 80 %"),
        ("n > 80", 0, "can never hold, as n lies between 0 and 1"),
        ("n - o >= 1.5", 0, "n - o lies between -1 and 1"),
        ("d < 0", 0, "can never hold"),
        ("n - o - d > 0", 0, "can never hold"),
        ("n > 0.5 and x > 0.5", 12, "unknown name 'x': a condition knows n (the new model), o ("),
        ("banana > 0.02 +/- 0.005", 0, "unknown name 'banana': a condition knows n (the new model)"),
        ("n - > 0", 4, "expected a number, n, o, a, d or '(', found '>'"),
        ("n - o > 0.02 +/-", 16, "expected a positive number after the tolerance sign, found the end"),
        ("n - n.recal > 0", 6, "unknown metric 'recal': did you mean 'recall'?"),
        ("n.beauty > 0", 2, "unknown metric 'beauty': there are accuracy, balanced_accuracy"),
        ("n. > 0", 1, "unexpected '.'"),
        ("d.f1 > 0", 0, "has no metric: write d, or d[column=value]"),
        ("n.f1[sex] > 0", 4, "name the group that is meant, as in n.f1[sex=VALUE]"),
        ("n.equalized_odds_difference < 0.1", 0, "compares the groups of a column"),
        ("n.equalized_odds_difference[sex=M] < 0.1", 0, "write n.equalized_odds_difference[COLUMN]"),
        ("n[] > 0", 1, "a slice is written [column=value]"),
        ("n[=3] > 0", 1, "a slice is written [column=value]"),
        ("n[sex= ] > 0", 1, "a slice is written [column=value]"),
        ("n[a[b=3] > 0", 1, "a slice is written [column=value]"),
        ("n[sex=M > 0", 1, "unexpected '['"),
        ("n.f1 > 80", 0, "can never hold"),
        ("n[sex=M] - o[sex=M] > 1", 0, "can never hold"),
        ("n - o > d", 8, "share of predictions that differ"),
        ("n > 0.5 and d < n - o", 12, "share of predictions that differ"),
        ("n - o > -d", 8, "share of predictions that differ"),
        ("n * o > 0.5", 2, "variables on one side only"),
        ("n - n > 0", 0, "says nothing about the models"),
        ("n > 0.5 and 1 > 0", 12, "says nothing about the models"),
        ("0.1 < n < 0.9", 8, "join two by 'and'"),
        ("n > 0.5 or d < 0.1", 8, "can only be joined by 'and'"),
        ("2n > 1", 1, "write products as 2*n"),
        ("n > 1e-3", 5, "without an exponent"),
        ("n > 0.1.2", 7, "without an exponent"),
        ("n > 0.5 +/- 0", 12, "expected a positive number"),
        ("n > 0.5 +/- -1", 12, "expected a positive number"),
        ("n > 0.5 +/- n", 12, "expected a positive number"),
        ("n ≥ 0.5", 2, "write >="),
        ("n > 0,5", 5, "decimals with a point"),
        ("n > 0.0000000001", 0, "too large or too small"),
        ("9999999999*n > 1", 0, "too large or too small"),
        ("(" * 60 + "n", 50, "parentheses nest more than 50 deep"),
        ("n > 0.5" + " " * 2000, 0, "at most 2000 characters, and this one has 2007"),
    ],
)
def test_what_does_not_parse_is_told_where_and_why(text, position, said):
    with pytest.raises(ConditionError) as caught:
        parse(text)

    assert said in str(caught.value)
    assert caught.value.position == position
    assert isinstance(caught.value, MlopsError)


def test_an_error_shows_its_line_with_a_caret_under_the_place():
    with pytest.raises(ConditionError) as caught:
        parse("n > 0.5\n\tand q < 0.2\nand d < 0.1")

    first, line, caret = str(caught.value).split("\n")
    assert first.startswith("the condition is wrong at line 2, column 6: unknown name 'q'")
    assert line == "  \tand q < 0.2"
    assert caret == "  \t    ^"


def test_an_error_survives_another_process():
    with pytest.raises(ConditionError) as caught:
        parse("n >")

    again = pickle.loads(pickle.dumps(caught.value))

    assert (str(again), again.position) == (str(caught.value), 3)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("o-n<-.02±.010", "o - n < -0.02 +/- 0.01"),
        ("0.7 <= 2*n - o /\\ d<0.10", "2*n - o >= 0.7 and d < 0.1"),
        ("-n > -0.00001", "-n > -0.00001"),
        ("(n + n)*50 > 10*5", "100*n > 50"),
        ("n.f1[ sex =F] - n.accuracy>.1", "n.f1[sex=F] - n > 0.1"),
    ],
)
def test_str_is_the_normal_form(text, normal):
    assert str(parse(text)) == normal
    assert parse(normal) == parse(text)


names = st.sampled_from("noad")
terms = st.sampled_from(
    ["n", "o", "a", "d", "n.f1", "o.recall_setosa", "a.log_loss", "n[sex=F]", "d[sex = F]", "n.ece[age=3 to 5]"]
)
numbers = st.decimals(0, 2, places=3).map(lambda value: format(value, "f"))


def conditions(variables):
    factors = st.one_of(
        numbers,
        variables,
        st.tuples(numbers, variables).map("*".join),
        st.tuples(variables, numbers).map(lambda pair: f"-{pair[0]} * ({pair[1]})"),
    )
    sums = st.recursive(
        factors,
        lambda inner: st.one_of(
            st.tuples(inner, st.sampled_from([" + ", "-"]), inner).map("".join),
            inner.map(lambda text: f"({text})"),
            st.tuples(numbers, inner).map(lambda pair: f"{pair[0]}*({pair[1]})"),
        ),
        max_leaves=5,
    )
    clauses = st.tuples(
        sums, st.sampled_from([" > ", "<", ">=", " <= "]), sums, st.sampled_from(["", " +/- 0.01", "±2"])
    ).map("".join)
    return st.lists(clauses, min_size=1, max_size=3).map(" and ".join)


@given(conditions(terms))
def test_the_normal_form_parses_to_an_equal_condition(text):
    condition = parsed_or_none(text)
    assume(condition is not None)

    again = parse(str(condition))

    assert again == condition
    assert str(again) == str(condition)


@given(
    conditions(names),
    st.tuples(*[st.floats(0, 1)] * 4),
)
def test_the_linear_form_says_what_the_text_says(text, values):
    condition = parsed_or_none(text)
    assume(condition is not None)
    named = dict(zip("noad", values, strict=True))

    for clause in condition.clauses:
        sides = clause.text.split("+/-")[0].split("±")[0].replace(">=", ">").replace("<=", "<")
        left, right = sides.split(">" if ">" in sides else "<")
        written = eval(left, {}, named) - eval(right, {}, named)
        normal = sum(factor * named[str(term)] for term, factor in clause.coefficients.items()) - clause.threshold
        same_way = 1 if (">" in clause.direction) == (">" in sides) else -1
        assert normal == pytest.approx(same_way * written, abs=1e-9)


@given(st.one_of(st.text(), st.text(alphabet="nod0129.+-*/\\<>=±() \nand[]%a", max_size=40)))
def test_any_text_parses_or_is_a_condition_error(text):
    parsed_or_none(text)


def parsed_or_none(text: str) -> Condition | None:
    try:
        return parse(text)
    except ConditionError:
        return None


@pytest.mark.parametrize(
    ("text", "position", "said"),
    [
        ("n > 0.5 and n.f1[sex=M] > 0.5", 12, "there is no slice column 'sex' (known: site, day of week)"),
        ("n.f1 > 0.5", 0, "f1 is of two classes, and there are 3: write n.f1_CLASS"),
        ("n.auc > 0.5", 0, "auc is of two classes, and there are 3"),
        ("n > 0.5 and o.recall_Rome > 0.5", 12, "there is no class 'Rome' (known: New_York, Oslo, Paris)"),
    ],
)
def test_what_is_not_there_is_told_where(text, position, said):
    with pytest.raises(ConditionError) as caught:
        parse(text).require(["Oslo", "Paris", "New York"], ["site", "day of week"])

    assert said in str(caught.value)
    assert caught.value.position == position


def test_what_is_there_is_fine():
    condition = parse("n.recall_New_York[day of week=Monday] > 0.5 and n.macro_f1 - a.macro_f1 > 0 and d < 0.5")

    condition.require(["Oslo", "Paris", "New York"], ["site", "day of week"])
    parse("n.f1 > 0.5 and n.equalized_odds_difference[site] < 0.1").require(["no", "yes"], ["site"])
