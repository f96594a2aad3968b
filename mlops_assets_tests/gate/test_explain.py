import pytest

from mlops_assets.gate.condition import parse
from mlops_assets.gate.explain import explain_clause, explain_missing, explain_start

NEW, OLD = "the accuracy of the new model", "the accuracy of the champion"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("n > 0.8", f"{NEW} is more than 0.8"),
        ("n - o > 0.02", f"{NEW} is above {OLD} by more than 0.02"),
        ("n - o >= -0.02", f"{NEW} is below {OLD} by at most 0.02, if at all"),
        ("o - n < -0.02", f"{OLD} is below {NEW} by more than 0.02"),
        ("n - o < 0.3", f"{NEW} is above {OLD} by less than 0.3, if at all"),
        ("n >= o", f"{NEW} is at least {OLD}"),
        ("d < 0.1", "the share of predictions that differ between the new model and the champion is less than 0.1"),
        ("2*n - o > 0.7", f"2 times {NEW} minus {OLD} is more than 0.7"),
        ("n + d > 0.7", f"{NEW} plus the share of predictions that differ between the new model and the champion is"),
        ("n.false_positive_rate[sex=F] < 0.1", "the false positive rate of the new model on rows with sex F is less"),
        (
            "n.equalized_odds_difference[sex] < 0.1",
            "the equalized odds difference of the new model over the groups of sex",
        ),
        ("n > 0.8 +/- 0.01", f"{NEW} is more than 0.8; the test set is to be large enough to tell that to 0.01"),
    ],
)
def test_a_clause_is_said_in_plain_words(text, said):
    (clause,) = parse(text).clauses
    assert explain_clause(clause).startswith(said)


@pytest.mark.parametrize(
    ("text", "missing", "start"),
    [
        ("n > 0.8", "", "it needs no champion"),
        ("n - o > 0", "skipped without a champion", "the first promotion needs a hand"),
        ("n - o > 0 and n > 0.8", "skipped without a champion", "'n > 0.8' alone decides, and the rest is skipped"),
        ("n - a > 0", "skipped without an anchor", "needs a hand"),
        ("o + d - a > 0", "skipped without a champion or an anchor", "needs a hand"),
    ],
)
def test_what_is_skipped_for_a_first_model_is_said(text, missing, start):
    condition = parse(text)

    assert explain_missing(condition.clauses[0]) == missing
    assert start in explain_start(condition)
