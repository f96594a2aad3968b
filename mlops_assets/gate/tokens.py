"""The words of the promotion rule, and errors that point at them.

Belongs here: cutting a condition's text into tokens, and the error with its line and caret. Not here: what the tokens
mean together.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, Literal, NamedTuple, cast

from mlops_assets.gate import GateError

Kind = Literal["number", "name", "symbol", "end"]

_LONGEST_TEXT = 2_000

_HINTS: Final[Mapping[str, str]] = {
    "%": "write a percentage as a fraction, 0.8 for 80 %",
    "=": "compare with >, <, >= or <=",
    "!": "compare with >, <, >= or <=",
    "≥": "write >=",
    "≤": "write <=",
    "\N{MINUS SIGN}": "write -",
    "\N{EN DASH}": "write -",
    "\N{MULTIPLICATION SIGN}": "write *",
    "/": "multiply by a number instead of dividing",
    "&": "join clauses by 'and'",
    "∧": "join clauses by 'and'",
    ",": "join clauses by 'and', and write decimals with a point",
    ";": "join clauses by 'and'",
}
_TOKEN = re.compile(
    r"""  (?P<space>  \s+ )
        | (?P<number> [0-9]+ (?: \. [0-9]* )? | \. [0-9]+ )
        | (?P<name>   [^\W\d]\w* (?: \. \w+ )* (?: \[ [^\]\n]* \] )? )
        | (?P<symbol> \+/- | ± | /\\ | >= | <= | [-+*()<>] )""",
    re.VERBOSE,
)


class ConditionError(GateError):
    """A condition that does not parse: one sentence, then the line it is in and a caret under the place.

    Attributes:
        position: Offset into the condition's text, in characters, at which the trouble was seen.
    """

    position: int = 0


class Token(NamedTuple):
    """A word of a condition and where it starts; the last token of a text is its "end", of no length."""

    kind: Kind
    text: str
    start: int

    @property
    def end(self) -> int:
        """Offset behind the last character."""
        return self.start + len(self.text)


def tokenize(text: str) -> list[Token]:
    """Cut a condition into tokens.

    Args:
        text: The condition.

    Returns:
        Its tokens in order, and an "end" right behind the last.

    Raises:
        ConditionError: The text is too long, or a character of it belongs to no token.
    """
    if len(text) > _LONGEST_TEXT:
        message = f"a condition has at most {_LONGEST_TEXT} characters, and this one has {len(text)}"
        raise ConditionError(message)
    tokens: list[Token] = []
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            hint = f": {_HINTS[text[position]]}" if text[position] in _HINTS else ""
            raise error_at(text, position, f"unexpected {quoted(text[position])}{hint}")
        if match.lastgroup != "space":
            token = Token(cast("Kind", match.lastgroup), match.group(), position)
            if token.kind != "symbol" and tokens and tokens[-1].kind == "number" and tokens[-1].end == position:
                raise error_at(text, position, "write products as 2*n, and numbers without an exponent")
            tokens.append(token)
        position = match.end()
    tokens.append(Token("end", "", tokens[-1].end if tokens else 0))
    return tokens


def error_at(text: str, position: int, problem: str) -> ConditionError:
    """Make the error that shows `problem` at an offset of the condition's text."""
    line_start = text.rfind("\n", 0, position) + 1
    line = "".join(
        character if character.isprintable() or character == "\t" else "\N{REPLACEMENT CHARACTER}"
        for character in text[line_start:].split("\n", 1)[0]
    )
    column = position - line_start
    padding = "".join("\t" if character == "\t" else " " for character in line[:column])
    where = f"line {text[:position].count(chr(10)) + 1}, column {column + 1}"
    error = ConditionError(f"the condition is wrong at {where}: {problem}\n  {line}\n  {padding}^")
    error.position = position
    return error


def quoted(text: str) -> str:
    """Quote a piece of a condition so that it can be read in an error."""
    return f"'{text}'" if text.isprintable() else ascii(text)
