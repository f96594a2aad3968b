"""What the portal shows of all pipelines, as plain values.

Belongs here: turning what was gathered into what a page, JSON and metrics can say. Not here: when it is gathered
(`gatherer.py`), and how it looks (`page.html.j2`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mlops_assets.backup import note
from mlops_assets.errors import MlopsError
from mlops_assets.pipeline import NoDataYet, PipelineElsewhere
from mlops_assets.settings import Settings

if TYPE_CHECKING:
    import dagster as dg

    from mlops_assets.overview import Overview

State = Literal["up to date", "stale", "running", "blocked", "error", "elsewhere", "no data yet"]


@dataclass(frozen=True)
class Data:
    """The commit that a pipeline follows."""

    commit: str
    message: str
    at: datetime


@dataclass(frozen=True)
class Champion:
    """The version that answers users, and how good it is; `since` is when it was promoted, where the ledger says so."""

    version: int
    accuracy: float | None
    lower: float | None
    upper: float | None
    rows: int
    since: datetime | None


@dataclass(frozen=True)
class Run:
    """The newest run; `ended` is None while it lasts."""

    id: str
    status: str
    ended: datetime | None


@dataclass(frozen=True)
class Row:
    """One pipeline.

    Attributes:
        reasons: Why it is not up to date.
        stale: How many stages are stale.
        served: The version that the model server answers with; None when it answers with none.
    """

    name: str
    state: State
    description: str = ""
    reasons: Sequence[str] = ()
    stale: int = 0
    data: Data | None = None
    champion: Champion | None = None
    served: int | None = None
    run: Run | None = None


@dataclass(frozen=True)
class Picture:
    """All pipelines at a moment.

    Attributes:
        models: Whether the model server answered.
        backup: As of when the newest archive holds everything; None where none was made.
    """

    at: datetime
    models: bool
    backup: datetime | None
    rows: Sequence[Row]


def take(here: Settings, instance: dg.DagsterInstance, folders: Sequence[Path]) -> Picture:
    """Gather everything."""
    from mlops_assets.overview import overviews, served_versions

    served = served_versions(here)
    found = overviews(folders, here, instance)
    ended = _ends(instance, [one.last_run.run_id for one in found if one.last_run])
    rows = [_row(one, here, served or {}, ended) for one in found]
    return Picture(datetime.now(UTC), served is not None, note.last(here.home), rows)


def _ends(instance: dg.DagsterInstance, runs: Sequence[str]) -> dict[str, datetime]:
    import dagster as dg

    records = instance.get_run_records(dg.RunsFilter(run_ids=runs)) if runs else []
    return {one.dagster_run.run_id: datetime.fromtimestamp(one.end_time, UTC) for one in records if one.end_time}


def _row(one: Overview, here: Settings, served: Mapping[str, int | None], ended: Mapping[str, datetime]) -> Row:
    champion, damage = _champion(one, here)
    run = one.last_run
    row = Row(
        one.name,
        "error",
        champion=champion,
        served=served.get(one.name),
        run=Run(run.run_id, run.status.value, ended.get(run.run_id)) if run else None,
    )
    if isinstance(one.now, MlopsError):
        if isinstance(one.now, PipelineElsewhere):
            return replace(row, state="elsewhere", reasons=[f"code location '{one.now.location}' has it"])
        if isinstance(one.now, NoDataYet) and not damage:
            return replace(row, state="no data yet", reasons=[str(one.now)])
        return replace(row, reasons=[*damage, str(one.now)])
    plan, commit = one.now.plan, one.now.head.commit
    state: State = "up to date"
    if damage:
        state = "error"
    elif one.running:
        state = "running"
    elif plan.blocked:
        state = "blocked"
    elif plan.stale:
        state = "stale"
    return replace(
        row,
        state=state,
        description=one.now.pipeline.spec.description,
        reasons=[*damage, *([plan.blocked] if plan.blocked else []), *([plan.reason] if plan.reason else [])],
        stale=len(plan.stale),
        data=Data(commit.id, commit.message, commit.timestamp),
    )


def _champion(one: Overview, here: Settings) -> tuple[Champion | None, list[str]]:
    """The champion, and what is wrong with the ledger that says since when it is."""
    from mlops_assets.registry.history import history
    from mlops_assets.registry.ledger import Ledger, LedgerError

    facts = one.champion
    if facts is None or not facts.version:
        return None, []
    damage, since = [], None
    try:
        reigns = history(Ledger(here.home / "ledger", one.name).records())
        since = reigns[-1].since if reigns and reigns[-1].version == facts.version else None
    except LedgerError as error:
        damage = [str(error)]
    figures = (facts.accuracy, facts.accuracy_lower, facts.accuracy_upper)
    return Champion(facts.version, *figures, facts.rows, since), damage
