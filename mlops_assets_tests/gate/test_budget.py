"""What a look costs, and how often the same rows may be looked at, whatever the test set is called."""

from __future__ import annotations

import math
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from mlops_assets.gate import GateError
from mlops_assets.gate.budget import SMALLEST_TEST_SET, Budget, BudgetExhausted, Looks
from mlops_assets.registry.ledger import Ledger, LedgerError


@pytest.fixture
def looks(tmp_path: Path) -> Looks:
    return Looks(Ledger(tmp_path / "ledger", "iris"))


def ids(*rows: int | range) -> np.ndarray:
    """Rows by number, or by a range of numbers."""
    numbers = [number for one in rows for number in (one if isinstance(one, range) else [one])]
    return Looks.row_ids(np.array(numbers, dtype=np.int64))


def ask(looks: Looks, times: int, rows: np.ndarray, budget: Budget, name: str = "") -> None:
    for number in range(times):
        looks.charge(f"{name} {number}", rows, budget, {})


# --- what a look may cost


@pytest.mark.parametrize(
    ("adaptivity", "error"), [("none", 0.0001 / 32), ("first-change", 0.0001 / 32), ("full", 0.0001 / 2**32)]
)
def test_the_error_of_a_look_is_the_papers(adaptivity: str, error: float) -> None:
    budget = Budget(0.9999, 32, adaptivity)  # type: ignore[arg-type]
    assert budget.error == pytest.approx(error, rel=1e-9)
    assert budget.level == 1 - budget.error


def test_one_step_is_the_reliability_itself() -> None:
    assert Budget(0.978, 1).level == pytest.approx(0.978)


@pytest.mark.parametrize(
    ("reliability", "steps", "adaptivity"),
    [(0.4, 5, "none"), (1.0, 5, "none"), (math.nan, 5, "none"), (0.95, 0, "none"), (0.95, 5, "some")],
)
def test_what_is_no_budget(reliability: float, steps: int, adaptivity: str) -> None:
    with pytest.raises(GateError, match=r"is no budget: choose .* one of none, full, first-change"):
        Budget(reliability, steps, adaptivity)  # type: ignore[arg-type]


def test_more_steps_than_any_test_set_can_meet() -> None:
    assert Budget(0.95, 10_000).level < 1
    with pytest.raises(GateError, match=r"60 steps with adaptivity 'full' leave each look an error of 4e-20, .* fewer"):
        Budget(0.95, 60, "full")
    with pytest.raises(GateError, match="leave each look an error of 0, "):
        Budget(0.95, 10_000, "full")


# --- rows


def test_a_row_is_known_by_its_key_alone() -> None:
    numbers = Looks.row_ids(np.array([1, 22, 3]))
    assert numbers.dtype == np.uint64
    for same in (np.array(["1", "22", "3"]), np.array(["1", "22", "3"], dtype=object), np.array([1, 22, 3], np.uint8)):
        assert np.array_equal(Looks.row_ids(same), numbers)
    assert np.array_equal(Looks.row_ids(np.array(["3", "ü"]))[:1], numbers[2:])
    assert len(np.unique(ids(range(100_000)))) == 100_000


# --- looks


def test_the_same_decision_asked_twice_costs_one_look(looks: Looks) -> None:
    budget, rows = Budget(0.95, 3), ids(range(50))
    assert looks.find("q") is None
    first, mask = looks.charge("q", rows, budget, {"condition": "n > 0.9"})
    again, same = looks.charge("q", rows, budget, {"condition": "n > 0.9"})
    assert again == first == looks.find("q")
    assert mask.all()
    assert np.array_equal(same, mask)
    assert first.facts["condition"] == "n > 0.9"
    assert looks.counts(rows, budget).tolist() == [1] * 50
    looks.charge("another", rows, budget, {})
    assert looks.counts(rows, budget).tolist() == [2] * 50
    assert looks.left(rows, budget) == 1


def test_a_decision_asked_again_rests_on_the_rows_of_the_first_time(looks: Looks) -> None:
    budget = Budget(0.95, 1)
    ask(looks, 1, ids(range(10)), budget)
    first, mask = looks.charge("q", ids(range(100)), budget, {})
    assert mask.tolist() == [False] * 10 + [True] * 90
    again, same = looks.charge("q", ids(range(99, 4, -1)), budget, {})
    assert again == first
    assert same.tolist() == [True] * 90 + [False] * 5, "though no row has a look left"
    assert looks.rows_of(first, ids(50, 3, 1000)).tolist() == [True, False, False]


def test_an_outcome_is_kept_once(looks: Looks) -> None:
    with pytest.raises(GateError, match=r"decision q has no look in .*iris.jsonl: charge it before it is made"):
        looks.outcome("q", {})
    look, _ = looks.charge("q", ids(range(50)), Budget(0.95, 3), {})
    assert looks.answer("q") is None
    kept = looks.outcome("q", {"verdict": "true", "promoted": True, "clauses": [1.5]})
    assert (kept.facts["look"], kept.facts["verdict"], kept.facts["clauses"]) == (look.number, "true", [1.5])
    assert looks.outcome("q", {"verdict": "false"}) == kept == looks.answer("q")


def test_an_appended_row_does_not_reset_the_count(looks: Looks) -> None:
    budget = Budget(0.95, 4)
    for number in range(4):
        looks.charge(str(number), ids(range(100 + number)), budget, {})
    grown = ids(range(104))
    assert looks.counts(grown, budget).tolist() == [4] * 100 + [3, 2, 1, 0]
    with pytest.raises(
        BudgetExhausted,
        match="100 of the 104 test rows have had all 4 looks, and a decision takes 30 that have not: "
        "commit fresh labelled data, with at least 26 new test rows",
    ):
        looks.charge("4", grown, budget, {})
    assert looks.left(grown, budget) == 0
    assert len(looks.ledger.records()) == 4, "a refusal is no look"
    fresh = ids(range(104 + 26))
    assert looks.left(fresh, budget) == 1
    _, mask = looks.charge("4", fresh, budget, {})
    assert mask.tolist() == [False] * 100 + [True] * 30
    assert looks.left(fresh, budget) == 0


def test_a_subset_under_another_order_is_the_same_test_set(looks: Looks) -> None:
    budget, rows = Budget(0.95, 2), ids(range(200))
    ask(looks, 2, rows, budget)
    with pytest.raises(BudgetExhausted):
        looks.usable(rows[::-3], budget)
    assert looks.usable(ids(range(200, 300)), budget).all()


def test_a_test_set_that_is_small_to_begin_with_can_be_asked(looks: Looks) -> None:
    budget, rows = Budget(0.95, 2), ids(range(12))
    assert looks.left(rows, budget) == 2
    ask(looks, 2, rows, budget)
    with pytest.raises(BudgetExhausted, match=r"12 of the 12 test rows .* at least 30 new test rows"):
        looks.charge("q", rows, budget, {})
    with pytest.raises(BudgetExhausted, match=r"12 of the 20 test rows .* at least 22 new test rows"):
        looks.charge("q", ids(range(20)), budget, {})


def test_a_promotion_spends_the_rows_under_first_change(looks: Looks) -> None:
    for adaptivity, left in (("none", 9), ("full", 9), ("first-change", 0)):
        own = Looks(Ledger(looks.ledger.folder, adaptivity.replace("-", "_")))
        budget, rows = Budget(0.95, 10, adaptivity), ids(range(40))  # type: ignore[arg-type]
        own.charge("q", rows, budget, {})
        own.outcome("q", {"promoted": True})
        assert own.left(rows, budget) == left
        assert own.counts(ids(0, 99), budget).tolist() == [10 - left, 0]
    assert own.left(rows, Budget(0.95, 10, "none")) == 0, "what was spent stays spent"
    refused, budget = Looks(Ledger(looks.ledger.folder, "refused")), Budget(0.95, 10, "first-change")
    refused.charge("q", rows, budget, {})
    refused.outcome("q", {"promoted": False})
    assert refused.left(rows, budget) == 9


def test_more_steps_do_not_buy_rows_another_life(looks: Looks) -> None:
    rows = ids(range(50))
    ask(looks, 5, rows, Budget(0.95, 10))
    assert looks.left(rows, Budget(0.95, 10)) == 5
    assert looks.left(rows, Budget(0.95, 100)) == 50, "half of the error is left, for smaller parts of it"
    assert looks.left(rows, Budget(0.95, 4)) == 2
    assert looks.left(rows, Budget(0.99, 100)) == 0, "more was spent than may be in all"
    ask(looks, 5, rows, Budget(0.95, 10), "more")
    for steps in (1, 10, 1000):
        assert looks.left(rows, Budget(0.95, steps)) == 0


@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(30, 80), st.sampled_from([3, 7, 49])), max_size=12),
    st.sampled_from([0.9, 0.95, 0.9999]),
)
@hypothesis_settings(max_examples=15)
def test_no_row_ever_pays_more_than_is_permitted(
    tmp_path_factory: pytest.TempPathFactory, asked: list[tuple[int, int, int]], reliability: float
) -> None:
    looks = Looks(Ledger(tmp_path_factory.mktemp("looks"), "iris"))
    spent = np.zeros(200)
    for number, (first, count, steps) in enumerate(asked):
        rows, budget = np.arange(first, first + count), Budget(reliability, steps)
        left = looks.left(ids(*rows), budget)
        try:
            _, mask = looks.charge(str(number), ids(*rows), budget, {})
        except BudgetExhausted:
            assert left == 0
            continue
        assert left >= 1
        assert mask.sum() >= min(SMALLEST_TEST_SET, count)
        spent[rows[mask]] += budget.error
    assert spent.max() <= (1 - reliability) * (1 + 1e-6)


def test_two_that_want_the_last_look(looks: Looks) -> None:
    budget, rows, refused = Budget(0.95, 1), ids(range(50)), []

    def work(name: str) -> None:
        try:
            looks.charge(name, rows, budget, {})
        except BudgetExhausted:
            refused.append(name)

    threads = [threading.Thread(target=work, args=[str(number)]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 3
    assert len(looks.ledger.records()) == 1


# --- what lies beside the ledger


def test_rows_are_kept_once_and_checked(looks: Looks, tmp_path: Path) -> None:
    budget, rows = Budget(0.95, 9), ids(range(50))
    ask(looks, 3, rows, budget)
    looks.charge("reversed", rows[::-1], budget, {})
    (kept,) = (tmp_path / "ledger" / "rows").iterdir()
    assert looks.verify() == []
    data = bytearray(kept.read_bytes())
    data[-1] ^= 1
    kept.write_bytes(data)
    told = f"{kept}, the rows of a look, is damaged: put a copy of it from a backup back"
    assert looks.verify() == [told]
    with pytest.raises(LedgerError, match="is damaged: put a copy"):
        looks.charge("q", rows, budget, {})
    kept.unlink()
    with pytest.raises(LedgerError, match="cannot be read: No such file"):
        looks.left(rows, budget)
    assert len(looks.verify()) == 1
    assert len(looks.ledger.records()) == 4


def test_rows_that_cannot_be_kept_cost_nothing(looks: Looks) -> None:
    looks.ledger.folder.mkdir()
    (looks.ledger.folder / "rows").write_text("")
    with pytest.raises(LedgerError, match="cannot be written"):
        looks.charge("q", ids(range(50)), Budget(0.95, 3), {})
    assert looks.ledger.records() == []
