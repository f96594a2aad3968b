"""A decision from end to end: which rows may still be asked, the note that they are, and what the gate says of them.

Belongs here: budget, ledger and condition brought together. Not here: each of these, and what a promotion does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlops_assets.gate.budget import Budget, BudgetExhausted, Looks
from mlops_assets.gate.condition import parse
from mlops_assets.gate.decide import Decision, decide

if TYPE_CHECKING:
    from mlops_assets.gate.rows import Paired
    from mlops_assets.spec import GateSpec


@dataclass(frozen=True)
class Judged:
    """A decision, and what it cost.

    Attributes:
        decision: What the gate says.
        look: Number of the ledger's record of this look at the test rows; 0 when nobody had to look.
        rows: Test rows that were asked.
        spent: Test rows that were not, because all their looks are used up.
        left: How many decisions the rows have left.
    """

    decision: Decision
    look: int = 0
    rows: int = 0
    spent: int = 0
    left: int = 0


def by_hand(reason: str) -> Judged:
    """A decision that the gate leaves to a person."""
    return Judged(Decision(promote=False, verdict="by hand", reason=reason, clauses=()))


def judge(gate: GateSpec, rows: Paired, looks: Looks, question: str, facts: Mapping[str, Any]) -> Judged:
    """Ask the gate, at the cost of one look at the test rows; the same question costs nothing the second time.

    Args:
        gate: The rule.
        rows: What the models said, with keys.
        looks: The looks so far.
        question: What is asked, as a digest over the models' predictions and the rule.
        facts: What the record of the look tells beside that.

    Returns:
        The decision; "by hand" when the rows have no looks left.
    """
    assert rows.keys is not None
    budget = Budget(gate.reliability, gate.steps, gate.adaptivity)
    ids = looks.row_ids(rows.keys)
    try:
        look, asked = looks.charge(question, ids, budget, facts)
    except BudgetExhausted as error:
        return by_hand(str(error))
    decision = decide(
        parse(gate.condition), rows.take(asked), reliability=budget.level, mode=gate.mode, method=gate.method
    )
    looks.outcome(question, {"verdict": decision.verdict, "promoted": decision.promote, "reason": decision.reason})
    seen = int(asked.sum())
    return Judged(decision, look.number, seen, len(rows) - seen, looks.left(ids[asked], budget))
