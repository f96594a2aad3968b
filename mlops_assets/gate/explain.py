"""A condition in plain words.

Belongs here: saying what a clause asks for. Not here: its grammar, and what came of it (`decide.py` says that).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from mlops_assets.gate.clauses import Clause, Condition, Direction, Model, Term, decimal

_MODELS: Final[Mapping[Model, str]] = {"n": "the new model", "o": "the champion", "a": "the anchor"}
_IS: Final[Mapping[Direction, str]] = {
    ">": "is more than",
    ">=": "is at least",
    "<": "is less than",
    "<=": "is at most",
}
_AHEAD: Final[Mapping[Direction, str]] = {
    ">": "is above {other} by more than {gap}",
    ">=": "is above {other} by at least {gap}",
    "<": "is above {other} by less than {gap}, if at all",
    "<=": "is above {other} by at most {gap}, if at all",
}
_BEHIND: Final[Mapping[Direction, str]] = {
    ">": "is below {other} by less than {gap}, if at all",
    ">=": "is below {other} by at most {gap}, if at all",
    "<": "is below {other} by more than {gap}",
    "<=": "is below {other} by at least {gap}",
}
_BESIDE: Final[Mapping[Direction, str]] = {
    ">": "is above {other}",
    ">=": "is at least {other}",
    "<": "is below {other}",
    "<=": "is at most {other}",
}


def explain_clause(clause: Clause) -> str:
    """Say what a clause asks for, without a full stop."""
    said = _comparison(clause) or f"{_form(clause)} {_IS[clause.direction]} {decimal(clause.threshold)}"
    if clause.tolerance is not None:
        said += f"; the test set is to be large enough to tell that to {decimal(clause.tolerance)}"
    return said


def explain_start(condition: Condition) -> str:
    """Say what is judged as long as there is no champion."""
    judged = [f"'{clause.text}'" for clause in condition.absolute]
    if len(judged) == len(condition.clauses):
        return "it needs no champion: a first model is judged like any other"
    if judged:
        return f"without a champion, {' and '.join(judged)} alone decides, and the rest is skipped"
    return "without a champion nothing of it can be judged: the first promotion needs a hand"


def explain_missing(clause: Clause) -> str:
    """Say without which models a clause is skipped; empty for none."""
    names: dict[Model, str] = {"o": "a champion", "d": "a champion", "a": "an anchor"}
    missing = dict.fromkeys(names[model] for model in ("o", "d", "a") if model in clause.models)
    return f"skipped without {' or '.join(missing)}" if missing else ""


def _comparison(clause: Clause) -> str:
    """Say how far one model is ahead of another, where that is all that a clause is about; else nothing."""
    ahead = [term for term, factor in clause.coefficients.items() if factor == 1]
    behind = [term for term, factor in clause.coefficients.items() if factor == -1]
    if not (len(ahead) == len(behind) == 1 and len(clause.coefficients) == 2 and "d" not in clause.models):
        return ""
    words = _AHEAD if clause.threshold > 0 else _BEHIND if clause.threshold < 0 else _BESIDE
    gap = decimal(abs(clause.threshold))
    return f"{_term(ahead[0])} {words[clause.direction].format(other=_term(behind[0]), gap=gap)}"


def _form(clause: Clause) -> str:
    said = ""
    for term, factor in sorted(clause.coefficients.items(), key=lambda item: item[1] < 0):
        one = _term(term) if abs(factor) == 1 else f"{decimal(abs(factor))} times {_term(term)}"
        if said:
            said += f" minus {one}" if factor < 0 else f" plus {one}"
        else:
            said = f"minus {one}" if factor < 0 else one
    return said


def _term(term: Term) -> str:
    rows = ""
    if term.slice:
        column, value = term.slice
        rows = f" over the groups of {column}" if value is None else f" on rows with {column} {value}"
    if term.model == "d":
        return f"the share of predictions that differ between the new model and the champion{rows}"
    return f"the {term.metric.replace('_', ' ')} of {_MODELS[term.model]}{rows}"
