r"""The language of the promotion rule: text in, linear clauses out.

Belongs here: grammar, normal form and the errors that point into the text. Not here: predictions, confidence, verdicts.

The language is a superset of ease.ml/ci's (Renggli et al., MLSys 2019); in EBNF:

    condition  = clause , { ( "and" | "/\" ) , clause } ;
    clause     = sum , comparison , sum , [ ( "+/-" | "±" ) , number ] ;
    comparison = ">" | "<" | ">=" | "<=" ;
    sum        = product , { ( "+" | "-" ) , product } ;
    product    = factor , { "*" , factor } ;                     (* at most one factor with variables *)
    factor     = { "+" | "-" } , ( number | variable | "(" , sum , ")" ) ;
    variable   = "n" | "o" | "d" ;
    number     = digits , [ "." , [ digits ] ] | "." , digits ;  (* no exponent, no percent sign *)

`n` is the accuracy of the new model, `o` that of the old one (the champion), `d` the share of test rows on which their
predictions differ; all three are fractions of the same test rows. White space separates and is otherwise ignored.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from typing import Final, Literal, NamedTuple, cast

from mlops_assets.gate.tokens import ConditionError, Token, error_at, quoted, tokenize

__all__ = ["ROW_STATES", "VARIABLES", "Clause", "Condition", "ConditionError", "Direction", "parse"]

Direction = Literal[">", "<", ">=", "<="]

VARIABLES: Final[Mapping[str, str]] = {
    "n": "accuracy of the new model",
    "o": "accuracy of the old one, the champion",
    "d": "share of predictions that differ",
}

# What one test row can contribute to (n, o, d); every value a clause can take lies in the convex hull of these.
ROW_STATES: Final = ((0, 0, 0), (1, 1, 0), (1, 0, 1), (0, 1, 1), (0, 0, 1))

_MIRRORED: Final[Mapping[str, Direction]] = {">": "<", "<": ">", ">=": "<=", "<=": ">="}
_SMALLEST, _LARGEST = Fraction(1, 10**9), Fraction(10**9)
_DEEPEST_NESTING = 50

_NAME_HINTS: Final[Mapping[str, str]] = {
    "or": "clauses can only be joined by 'and'",
    "not": "turn the comparison round instead",
    "AND": "write 'and' in small letters",
    "And": "write 'and' in small letters",
}


@dataclass(frozen=True)
class Clause:
    """One comparison, as `coefficients · (n, o, d)  direction  threshold`.

    The direction stays as written, so that messages read as their author thinks: only a clause with all its variables
    on the right is turned round. Equality leaves out how and where a clause was written.

    Attributes:
        text: The clause as written, white space collapsed.
        coefficients: Variable to factor; only factors that are not zero, at least one.
        threshold: What the linear form is compared with.
        direction: How it is compared.
        tolerance: What stood after `+/-`; it sizes test sets and takes no part in a verdict.
        start: Offset of the clause's first character in the condition's text.
        end: Offset behind its last character.
    """

    text: str = field(compare=False)
    coefficients: Mapping[str, float] = field(hash=False)
    threshold: float
    direction: Direction
    tolerance: float | None
    start: int = field(compare=False)
    end: int = field(compare=False)

    @property
    def range(self) -> tuple[float, float]:
        """The lowest and the highest value that the linear form can take, on any test set."""
        factors = [Fraction(repr(self.coefficients.get(name, 0.0))) for name in VARIABLES]
        values = [sum(f * value for f, value in zip(factors, state, strict=True)) for state in ROW_STATES]
        return float(min(values)), float(max(values))

    @property
    def form(self) -> str:
        """The linear form as text, positive terms first, such as `2*n - o`."""
        form = ""
        for name, factor in sorted(self.coefficients.items(), key=lambda item: item[1] < 0):
            term = name if abs(factor) == 1 else f"{_decimal(abs(factor))}*{name}"
            if form:
                form += f" - {term}" if factor < 0 else f" + {term}"
            else:
                form = f"-{term}" if factor < 0 else term
        return form

    def __str__(self) -> str:
        """Return the clause in its normal form, the threshold alone on the right."""
        tolerance = "" if self.tolerance is None else f" +/- {_decimal(self.tolerance)}"
        return f"{self.form} {self.direction} {_decimal(self.threshold)}{tolerance}"


@dataclass(frozen=True)
class Condition:
    """A whole promotion rule: it holds when every clause holds.

    Attributes:
        clauses: At least one, in the order written.
        text: The rule as written.
    """

    clauses: tuple[Clause, ...]
    text: str = field(compare=False)

    @property
    def absolute(self) -> tuple[Clause, ...]:
        """The clauses on `n` alone, which need no champion."""
        return tuple(clause for clause in self.clauses if set(clause.coefficients) == {"n"})

    @property
    def relative(self) -> tuple[Clause, ...]:
        """The clauses on `o` or `d`, which need a champion."""
        return tuple(clause for clause in self.clauses if set(clause.coefficients) != {"n"})

    def __str__(self) -> str:
        """Return the normal form, which parses to an equal condition."""
        return " and ".join(str(clause) for clause in self.clauses)


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

    terms: Mapping[str, Fraction]
    constant: Fraction

    def plus(self, other: _Linear, factor: int = 1) -> _Linear:
        terms = {v: self.terms.get(v, Fraction(0)) + factor * other.terms.get(v, Fraction(0)) for v in VARIABLES}
        return _Linear({v: c for v, c in terms.items() if c}, self.constant + factor * other.constant)

    def times(self, factor: Fraction) -> _Linear:
        return _Linear({v: c * factor for v, c in self.terms.items() if factor}, self.constant * factor)


class _Parser:
    """Recursive descent, one method per rule of the grammar."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = tokenize(text)
        self._index = 0
        self._depth = 0

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
            return _Linear({self._variable(token): Fraction(1)}, Fraction(0))
        if not self._take("("):
            raise self._unexpected("a number, n, o, d or '('")
        self._depth += 1
        if self._depth > _DEEPEST_NESTING:
            raise self._error(f"parentheses nest more than {_DEEPEST_NESTING} deep", token.start)
        inner = self._sum()
        if not self._take(")"):
            raise self._unexpected("+, -, * or ')'")
        self._depth -= 1
        return inner

    def _variable(self, token: Token) -> str:
        name = token.text
        if name in VARIABLES:
            return name
        if name in _NAME_HINTS:
            raise self._error(f"'{name}' is not part of a condition: {_NAME_HINTS[name]}", token.start)
        known = ", ".join(f"{variable} ({meaning})" for variable, meaning in VARIABLES.items())
        if re.fullmatch(r"[noad]([.\[].*)?", name):
            raise self._error(f"'{name}' is not available yet: a condition knows {known}", token.start)
        raise self._error(f"unknown name '{name}': a condition knows {known}", token.start)

    def _refuse_bare_d(self, left: _Linear, right: _Linear, left_start: int, right_start: int) -> None:
        """Some take d for a number of their choice; and n - o never exceeds d, so the clause would say nothing."""
        for side, other, start in ((left, right, left_start), (right, left, right_start)):
            bare = set(side.terms) == {"d"} and abs(side.terms["d"]) == 1 and not side.constant
            if bare and {"n", "o"} <= set(other.terms):
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
            coefficients={name: self._bounded(factor, start) for name, factor in form.terms.items()},
            threshold=self._bounded(-form.constant, start),
            direction=direction,
            tolerance=tolerance,
            start=start,
            end=end,
        )
        lowest, highest = clause.range
        possible = {
            ">": highest > clause.threshold,
            ">=": highest >= clause.threshold,
            "<": lowest < clause.threshold,
            "<=": lowest <= clause.threshold,
        }
        if not possible[direction]:
            between = f"{_decimal(lowest)} and {_decimal(highest)}"
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


def _decimal(value: float) -> str:
    """Write a number as the grammar reads it, without an exponent, to the last digit."""
    return format(Decimal(repr(value)).normalize(), "f")
