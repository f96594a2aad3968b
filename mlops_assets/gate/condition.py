r"""The language of the promotion rule: text in, linear clauses out.

Belongs here: grammar, normal form and the errors that point into the text. Not here: predictions, confidence, verdicts.

The language is a superset of ease.ml/ci's (Renggli et al., MLSys 2019); in EBNF:

    condition  = clause , { ( "and" | "/\" ) , clause } ;
    clause     = sum , comparison , sum , [ ( "+/-" | "±" ) , number ] ;
    comparison = ">" | "<" | ">=" | "<=" ;
    sum        = product , { ( "+" | "-" ) , product } ;
    product    = factor , { "*" , factor } ;                     (* at most one factor with variables *)
    factor     = { "+" | "-" } , ( number | variable | "(" , sum , ")" ) ;
    variable   = ( "n" | "o" | "a" ) , [ "." , metric ] , [ slice ] | "d" , [ slice ] ;
    slice      = "[" , column , [ "=" , value ] , "]" ;          (* no value for a metric that compares groups *)
    number     = digits , [ "." , [ digits ] ] | "." , digits ;  (* no exponent, no percent sign *)

`n` is the new model, `o` the old one (the champion), `a` the anchor (a version that stays pinned while champions come
and go), each by its accuracy where no metric is named; `d` is the share of rows on which the predictions of the new
model and of the champion differ. All are of the same test rows, or of those in the slice. A column is anything without
`=` and `]`, a value anything without `]`. White space separates and is otherwise ignored.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Final, NamedTuple, cast

from mlops_assets.gate.clauses import (
    METRICS,
    MODELS,
    OF_A_CLASS,
    OVER_GROUPS,
    Clause,
    Condition,
    Direction,
    Model,
    Slice,
    Term,
    decimal,
)
from mlops_assets.gate.tokens import ConditionError, Token, error_at, quoted, tokenize

__all__ = ["Clause", "Condition", "ConditionError", "Slice", "Term", "parse"]

_BARE_D: Final = Term("d", "")
_MIRRORED: Final[Mapping[str, Direction]] = {">": "<", "<": ">", ">=": "<=", "<=": ">="}
_SMALLEST, _LARGEST = Fraction(1, 10**9), Fraction(10**9)
_DEEPEST_NESTING = 50

_NAME_HINTS: Final[Mapping[str, str]] = {
    "or": "clauses can only be joined by 'and'",
    "not": "turn the comparison round instead",
    "AND": "write 'and' in small letters",
    "And": "write 'and' in small letters",
}


def parse(text: str) -> Condition:
    """Read a condition.

    Args:
        text: A rule such as `n - o > -0.10 and n > 0.80`; it may run over several lines.

    Returns:
        The condition, with one clause per comparison.

    Raises:
        ConditionError: The text is not a condition, or a clause of it says nothing or can never hold.
    """
    return _Parser(text).condition()


class _Linear(NamedTuple):
    """`sum(terms) + constant`, exact, so that what cancels on paper cancels here; terms hold no zeros."""

    terms: Mapping[Term, Fraction]
    constant: Fraction

    def plus(self, other: _Linear, factor: int = 1) -> _Linear:
        terms = dict(self.terms)
        for term, coefficient in other.terms.items():
            terms[term] = terms.get(term, Fraction(0)) + factor * coefficient
        return _Linear({t: c for t, c in terms.items() if c}, self.constant + factor * other.constant)

    def times(self, factor: Fraction) -> _Linear:
        return _Linear({t: c * factor for t, c in self.terms.items() if factor}, self.constant * factor)


class _Parser:
    """Recursive descent, one method per rule of the grammar."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = tokenize(text)
        self._index = 0
        self._depth = 0
        self._places: dict[Term, int] = {}

    def condition(self) -> Condition:
        if len(self._tokens) == 1:
            message = "the condition is empty: write one such as n > 0.80"
            raise ConditionError(message)
        clauses = [self._clause()]
        while self._take("and", "/\\"):
            clauses.append(self._clause())
        if self._token.kind != "end":
            raise self._unexpected("'and' or the end of the condition")
        return Condition(tuple(clauses), self._text)

    def _clause(self) -> Clause:
        start = self._token.start
        self._places = {}
        left = self._sum()
        comparison = self._take(*_MIRRORED)
        if comparison is None:
            raise self._unexpected("+, -, * or a comparison (>, <, >=, <=)")
        right_start = self._token.start
        right = self._sum()
        if self._token.text in _MIRRORED:
            raise self._error("a clause has one comparison: join two by 'and'", self._token.start)
        self._refuse_bare_d(left, right, start, right_start)
        tolerance = self._tolerance()
        end = self._tokens[self._index - 1].end
        direction = cast("Direction", comparison.text)
        return self._normalised(left, direction, right, tolerance=tolerance, start=start, end=end)

    def _tolerance(self) -> float | None:
        if not self._take("+/-", "±"):
            return None
        token = self._token
        if token.kind != "number" or not Fraction(token.text):
            raise self._unexpected("a positive number after the tolerance sign")
        self._index += 1
        return self._bounded(Fraction(token.text), token.start)

    def _sum(self) -> _Linear:
        total = self._product()
        while sign := self._take("+", "-"):
            total = total.plus(self._product(), -1 if sign.text == "-" else 1)
        return total

    def _product(self) -> _Linear:
        result = self._factor()
        while times := self._take("*"):
            other = self._factor()
            if result.terms and other.terms:
                raise self._error("a product may have variables on one side only", times.start)
            result = result.times(other.constant) if result.terms else other.times(result.constant)
        return result

    def _factor(self) -> _Linear:
        sign = 1
        while taken := self._take("+", "-"):
            sign = -sign if taken.text == "-" else sign
        return self._atom().times(Fraction(sign))

    def _atom(self) -> _Linear:
        token = self._token
        if token.kind == "number":
            self._index += 1
            return _Linear({}, Fraction(token.text))
        if token.kind == "name" and token.text != "and":
            self._index += 1
            term = self._term(token)
            self._places.setdefault(term, token.start)
            return _Linear({term: Fraction(1)}, Fraction(0))
        if not self._take("("):
            raise self._unexpected("a number, n, o, a, d or '('")
        self._depth += 1
        if self._depth > _DEEPEST_NESTING:
            raise self._error(f"parentheses nest more than {_DEEPEST_NESTING} deep", token.start)
        inner = self._sum()
        if not self._take(")"):
            raise self._unexpected("+, -, * or ')'")
        self._depth -= 1
        return inner

    def _term(self, token: Token) -> Term:
        name, bracket, rest = token.text.partition("[")
        model, dot, metric = name.partition(".")
        if model not in MODELS:
            if name in _NAME_HINTS:
                raise self._error(f"'{name}' is not part of a condition: {_NAME_HINTS[name]}", token.start)
            known = ", ".join(f"{one} ({meaning})" for one, meaning in MODELS.items())
            raise self._error(f"unknown name '{name}': a condition knows {known}", token.start)
        where = self._slice(rest, token.start + len(name)) if bracket else None
        if model == "d":
            if dot:
                problem = "d is a share of predictions and has no metric: write d, or d[column=value]"
                raise self._error(problem, token.start)
        elif dot:
            self._check_metric(metric, token.start + len(model) + 1)
        metric = metric or ("" if model == "d" else "accuracy")
        if where and where.value is None and metric not in OVER_GROUPS:
            problem = f"name the group that is meant, as in {name}[{where.column}=VALUE]"
            raise self._error(problem, token.start + len(name))
        if metric in OVER_GROUPS and (where is None or where.value is not None):
            problem = f"{metric} compares the groups of a column: write {name}[COLUMN]"
            raise self._error(problem, token.start)
        return Term(cast("Model", model), metric, where)

    def _check_metric(self, metric: str, start: int) -> None:
        if metric in METRICS or metric.startswith(tuple(f"{one}_" for one in OF_A_CLASS)):
            return
        raise self._error(f"unknown metric '{metric}': {_suggestion(metric, [*METRICS])}", start)

    def _slice(self, rest: str, start: int) -> Slice:
        column, equals, value = rest.removesuffix("]").partition("=")
        column, value = column.strip(), value.strip()
        if not column or (equals and not value) or "[" in rest:
            raise self._error("a slice is written [column=value]", start)
        return Slice(column, value if equals else None)

    def _refuse_bare_d(self, left: _Linear, right: _Linear, left_start: int, right_start: int) -> None:
        """Some take d for a number of their choice; and n - o never exceeds d, so the clause would say nothing."""
        for side, other, start in ((left, right, left_start), (right, left, right_start)):
            bare = [*side.terms] == [_BARE_D] and abs(side.terms[_BARE_D]) == 1 and not side.constant
            if bare and {"n", "o"} <= {term.model for term in other.terms}:
                problem = "d is the share of predictions that differ, which n - o never exceeds: write a number instead"
                raise self._error(problem, start)

    def _normalised(
        self, left: _Linear, direction: Direction, right: _Linear, *, tolerance: float | None, start: int, end: int
    ) -> Clause:
        text = " ".join(self._text[start:end].split())
        if right.terms and not left.terms:
            left, right, direction = right, left, _MIRRORED[direction]
        form = left.plus(right, -1)
        if not form.terms:
            raise self._error(f"'{text}' says nothing about the models: no variable is left in it", start)
        clause = Clause(
            text=text,
            coefficients={term: self._bounded(factor, start) for term, factor in form.terms.items()},
            threshold=self._bounded(-form.constant, start),
            direction=direction,
            tolerance=tolerance,
            start=start,
            end=end,
            places={term: place for term, place in self._places.items() if term in form.terms},
        )
        lowest, highest = clause.range
        possible = {
            ">": highest > clause.threshold,
            ">=": highest >= clause.threshold,
            "<": lowest < clause.threshold,
            "<=": lowest <= clause.threshold,
        }
        if not possible[direction]:
            between = f"{decimal(lowest)} and {decimal(highest)}"
            problem = f"'{text}' can never hold, as {clause.form} lies between {between} (0.8 stands for 80 %)"
            raise self._error(problem, start)
        return clause

    def _bounded(self, value: Fraction, start: int) -> float:
        if value and not _SMALLEST <= abs(value) <= _LARGEST:
            raise self._error("a number in this clause is too large or too small to be meant", start)
        return float(value)

    def _error(self, problem: str, position: int) -> ConditionError:
        return error_at(self._text, position, problem)

    @property
    def _token(self) -> Token:
        return self._tokens[self._index]

    def _take(self, *texts: str) -> Token | None:
        token = self._token
        if token.text not in texts:
            return None
        self._index += 1
        return token

    def _unexpected(self, expected: str) -> ConditionError:
        token = self._token
        found = "the end of the condition" if token.kind == "end" else quoted(token.text)
        hint = f" ({_NAME_HINTS[token.text]})" if token.text in _NAME_HINTS else ""
        return self._error(f"expected {expected}, found {found}{hint}", token.start)


def _suggestion(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean '{near[0]}'?" if near else f"there are {', '.join(known)}"
