"""The pages of the documentation as data: their headings, links, and the commands that they show.

What a reader types stands behind `$ ` in a fence of language `console`, and what is printed follows it; `> ` goes on
with a command. A comment right above the fence says what is special about it:

    <!-- not run: needs Docker -->                      its commands are not run by the tests, and why
    <!-- run first: python make_table.py -->            a command that a reader needs not, or has done otherwise

In what is printed, numbers with a point, times, and hexadecimal names stand for any of their kind; `...` stands for
anything within a line, and alone in a line for any number of lines.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

from mlops_assets.settings import PROJECT

DOCS: Final = PROJECT / "docs"

_FENCE = re.compile(r"(?P<indent> *)(?P<ticks>`{3,})(?P<language>[\w-]*)(?P<info>.*)")
_COMMENT = re.compile(r" *<!-- (?P<what>not run|run first): (?P<text>.+) -->")
_SAME: Final = (
    (re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]"), ""),
    (re.compile(r"^\s*\d\d:\d\d:\d\d\s+"), ""),  # a log leaves the time out where it is that of the line before
    (re.compile(r"[─━═]+"), "─"),
    (re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d)?(\.\d+)?(Z|[+-]\d\d:?\d\d)?"), "TIME"),
    (re.compile(r"\b\d\d:\d\d:\d\d\b"), "TIME"),
    (re.compile(r"\b\d[\d,]*\.\d+(e[+-]\d+)?\b"), "NUMBER"),
    (re.compile(r"\b[0-9a-f]{8,}(-[0-9a-f]+)*\b"), "NAME"),  # one of 2,500 short ones has no digit
    (re.compile(r"\b\d+( (ms|s|KiB|MiB|GiB|KB|MB|GB|rows/s))\b"), r"NUMBER\1"),
    (re.compile(r"\s+"), " "),
)


@dataclass(frozen=True)
class Command:
    """What a reader types, and what the page says is printed then."""

    text: str
    printed: tuple[str, ...]
    line: int

    def pattern(self) -> "re.Pattern[str]":
        """What the output must match, after `same`."""
        lines: list[str] = []
        for line in self.printed:
            if line.strip() == "...":
                lines.append(r"(?:.*\n)*?")
            elif line.strip():
                pieces = [re.escape(same(piece).strip()) for piece in line.split("...")]
                lines.append(" ?.* ?".join(pieces).replace(r"\ ", " ") + r"\n")
        return re.compile("".join(lines))


@dataclass(frozen=True)
class Fence:
    """A fenced block.

    Attributes:
        line: Number of its first line in the page.
        language: Such as `console`; empty when there is none.
        text: What is in it.
        not_run: Why its commands are not run; empty when they are.
        first: Commands that a test runs before.
    """

    line: int
    language: str
    text: str
    not_run: str
    first: tuple[str, ...]

    @property
    def commands(self) -> tuple[Command, ...]:
        """The commands in order."""
        found: list[Command] = []
        for number, line in enumerate(self.text.splitlines(), start=self.line + 1):
            if line.startswith("$ "):
                found.append(Command(line[2:], (), number))
            elif line.startswith("> ") and found and not found[-1].printed:
                found[-1] = Command(f"{found[-1].text}\n{line[2:]}", (), found[-1].line)
            elif found:
                found[-1] = Command(found[-1].text, (*found[-1].printed, line), found[-1].line)
            else:
                raise AssertionError(f"line {number}: a console begins with a command, '$ ...'")
        return tuple(found)


@dataclass(frozen=True)
class Page:
    """A Markdown file."""

    path: Path

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @property
    def name(self) -> str:
        return str(self.path.relative_to(PROJECT))

    @cached_property
    def fences(self) -> tuple[Fence, ...]:
        return tuple(_fences(self.text))

    @property
    def consoles(self) -> tuple[Fence, ...]:
        return tuple(fence for fence in self.fences if fence.language == "console")

    @property
    def prose(self) -> str:
        """The text without what is in fences and in code."""
        kept, inside = [], ""
        for line in self.text.splitlines():
            fence = _FENCE.fullmatch(line)
            if fence and (not inside or fence["ticks"] == inside):
                inside = "" if inside else fence["ticks"]
                kept.append("")
            else:
                kept.append("" if inside else line)
        return re.sub(r"(`+)(?!`).+?(?<!`)\1(?!`)", "`code`", "\n".join(kept))

    @property
    def anchors(self) -> set[str]:
        """What a link into the page may name, as GitHub and MkDocs both make it of its headings."""
        inside, found = "", set()
        for line in self.text.splitlines():
            fence = _FENCE.fullmatch(line)
            if fence and (not inside or fence["ticks"] == inside):
                inside = "" if inside else fence["ticks"]
            elif not inside and (heading := re.fullmatch(r"#{1,6} (.+)", line)):
                words = re.sub(r"[^\w\s-]", "", heading[1].replace("`", "")).strip().lower()
                found.add(re.sub(r"[-\s]+", "-", words))
        return found

    @property
    def links(self) -> list[str]:
        """The targets of all links and pictures."""
        return [found[1] for found in re.finditer(r"\]\(([^)\s]+)(?: \"[^\"]*\")?\)", self.prose)]


def _fences(text: str) -> Iterator[Fence]:
    lines = text.splitlines()
    comments: dict[str, list[str]] = {}
    number = 0
    while number < len(lines):
        comment, fence = _COMMENT.fullmatch(lines[number]), _FENCE.fullmatch(lines[number])
        if comment:
            comments.setdefault(comment["what"], []).append(comment["text"])
        elif fence:
            indent, end = len(fence["indent"]), number + 1
            while lines[end].strip() != fence["ticks"]:
                end += 1
            inside = "\n".join(line[indent:] for line in lines[number + 1 : end])
            not_run = "; ".join(comments.pop("not run", []))
            yield Fence(number + 1, fence["language"], inside, not_run, tuple(comments.pop("run first", [])))
            number = end
        elif lines[number].strip() and comments:
            raise AssertionError(f"line {number + 1}: a comment on commands stands right above their fence")
        number += 1


def same(text: str) -> str:
    """Take out of a line what differs from run to run."""
    for pattern, replacement in _SAME:
        text = pattern.sub(replacement, text)
    return text


def printed(text: str) -> str:
    """An output as `Command.pattern` reads it: no empty lines, and nothing that differs from run to run."""
    return "".join(f"{same(line).strip()}\n" for line in text.splitlines() if line.strip())


def all_pages() -> list[Page]:
    """The README and every page of the site."""
    return [Page(PROJECT / "README.md"), *(Page(path) for path in sorted(DOCS.rglob("*.md")))]
