"""What a ledger's entries say about champions: who was one and when, who is barred, which is the anchor.

Belongs here: reading entries, without asking anybody. Not here: appending any (`champion.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from mlops_assets.registry.ledger import Record


class Reign(NamedTuple):
    """Who was champion from some moment on.

    Attributes:
        version: None when nobody was.
        record: What tells so.
    """

    since: datetime
    version: int | None
    record: Record


def history(records: Sequence[Record]) -> list[Reign]:
    """Who was champion, the oldest first; a move that was confirmed after a kill counts from its intent."""
    intents = {record.number: record.at for record in records if record.kind == "intent"}
    return [
        Reign(
            intents[record.facts["intent"]] if record.facts.get("reconciled") else record.at,
            record.facts["version"],
            record,
        )
        for record in records
        if record.kind in {"moved", "noticed"}
    ]


def reign_at(records: Sequence[Record], time: datetime) -> Reign | None:
    """Who was champion at a moment; None before the first. A time without a zone is local."""
    moment = time.astimezone(UTC)
    return next((reign for reign in reversed(history(records)) if reign.since <= moment), None)


def bars(records: Sequence[Record]) -> dict[int, Record]:
    """The versions that are barred, each with the record that says so."""
    found: dict[int, Record] = {}
    for record in records:
        if record.kind == "barred":
            found[record.facts["version"]] = record
        elif record.kind == "cleared":
            found = {number: bar for number, bar in found.items() if not is_of(bar, record.facts)}
    return found


def pinned(records: Sequence[Record]) -> int | None:
    """The anchor: the version that was pinned last, else the first champion."""
    pins = [record.facts["version"] for record in records if record.kind == "anchored"]
    reigns = [reign.version for reign in history(records) if reign.version is not None]
    return pins[-1] if pins else reigns[0] if reigns else None


def is_of(record: Record, facts: Mapping[str, Any]) -> bool:
    """Whether a record is of a version, or of one with the same weights."""
    digest = facts["model_digest"]
    return record.facts["version"] == facts["version"] or bool(digest and record.facts["model_digest"] == digest)
