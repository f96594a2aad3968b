"""What a benchmark hands back, and how it is told."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, Final

from rich.console import Console
from rich.table import Table

console: Final = Console(soft_wrap=True, width=None if sys.stdout.isatty() else 140)

NOISY_LOAD: Final = 3.0
"""One-minute load average beyond which a figure says more about the machine's other work than about ours."""


@dataclass
class Figure:
    """One thing measured several times.

    Attributes:
        what: What was measured, in words.
        unit: Unit of the values.
        values: One per run.
        against: The figure to compare with: the bare alternative.
        compare: Whether the comparison is a ratio or a difference of medians.
        target: What the median, or where there is `against` the comparison, should stay under.
        absolute: The target is of the median also where there is `against`.
    """

    what: str
    unit: str = "s"
    values: list[float] = field(default_factory=list)
    against: Figure | None = None
    compare: str = "ratio"
    target: float | None = None
    absolute: bool = False
    loads: list[float] = field(default_factory=list)

    def add(self, value: float) -> None:
        """Record a run, and how busy the machine is."""
        self.values.append(value)
        self.loads.append(os.getloadavg()[0])
        console.print(f"[dim]  {self.what}: {value:.3g} {self.unit}[/dim]")

    @property
    def median(self) -> float:
        """The middle value."""
        return median(self.values)

    @property
    def compared(self) -> float | None:
        """Ratio or difference of medians; None with nothing to compare with."""
        if self.against is None or not self.against.values:
            return None
        if self.compare == "ratio":
            return self.median / self.against.median
        return self.median - self.against.median

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "what": self.what,
            "unit": self.unit,
            "values": self.values,
            "median": self.median,
            "min": min(self.values),
            "max": max(self.values),
            "against": self.against.what if self.against else None,
            self.compare: self.compared,
            "target": self.target,
            "loads": self.loads,
        }


@dataclass
class Breakdown:
    """Where the time of one figure goes: medians of parts that follow one another, or of packages."""

    title: str
    unit: str
    parts: dict[str, list[float]] = field(default_factory=dict)

    def add(self, parts: dict[str, float]) -> None:
        """Record the parts of one run."""
        for name, value in parts.items():
            self.parts.setdefault(name, []).append(value)


@dataclass
class Result:
    """All that one benchmark measured."""

    figures: list[Figure]
    breakdowns: list[Breakdown] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "figures": [one.to_dict() for one in self.figures],
            "breakdowns": [asdict(one) for one in self.breakdowns],
            "notes": self.notes,
        }


def spread(values: Sequence[float]) -> str:
    """Median and extremes."""
    middle, low, high = (f"{value:#.3g}".rstrip(".") for value in (median(values), min(values), max(values)))
    return middle if len(values) == 1 else f"{middle} ({low}-{high})"


def show(name: str, result: Result) -> None:
    """Print one benchmark's tables."""
    table = Table(
        "what", "median (min-max)", "runs", "against the bare one", "target", "load", title=name, title_justify="left"
    )
    for one in result.figures:
        compared = ""
        if one.compared is not None:
            compared = f"{one.compared:.2f} times" if one.compare == "ratio" else f"{one.compared:+.1f} {one.unit}"
        table.add_row(
            one.what,
            f"{spread(one.values)} {one.unit}",
            str(len(one.values)),
            compared,
            _judged(one),
            f"{median(one.loads):.1f}{' noisy' if median(one.loads) > NOISY_LOAD else ''}",
        )
    console.print(table)
    for breakdown in result.breakdowns:
        parts = Table("part", f"median (min-max), {breakdown.unit}", title=breakdown.title, title_justify="left")
        for part, values in breakdown.parts.items():
            parts.add_row(part, spread(values))
        console.print(parts)
    for note in result.notes:
        console.print(note, markup=False)


def _judged(one: Figure) -> str:
    if one.target is None:
        return ""
    of_median = one.absolute or one.compared is None
    value = one.median if of_median else one.compared
    assert value is not None
    unit = one.unit if of_median or one.compare != "ratio" else "times"
    return f"{'[green]' if value < one.target else '[red]'}under {one.target:g} {unit}[/]"
