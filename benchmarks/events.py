"""What Dagster's event log tells about the way of one change."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import dagster as dg

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dagster import DagsterInstance, EventLogEntry

ACTIVE: Final = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]

MILESTONES: Final = {
    "RUN_ENQUEUED": "run queued",
    "RUN_DEQUEUED": "run dequeued",
    "RUN_STARTING": "worker asked for",
    "RUN_START": "worker loaded the code, run starts",
}


def active(instance: DagsterInstance) -> bool:
    """Whether any run is queued or under way."""
    return bool(instance.get_runs(dg.RunsFilter(statuses=ACTIVE), limit=1))


def materialized(instance: DagsterInstance, key: dg.AssetKey, after: float) -> EventLogEntry | None:
    """The newest materialization of an asset, if it is later than a point in time."""
    event = instance.get_latest_materialization_event(key)
    return event if event and event.timestamp > after else None


def last_tick_before(instance: DagsterInstance, sensor: str, moment: float) -> float | None:
    """When the sensor's last tick before a moment began."""
    for state in instance.all_instigator_state():
        if state.name == sensor:
            ticks = instance.get_ticks(state.instigator_origin_id, state.selector_id, before=moment, limit=1)
            return ticks[0].timestamp if ticks else None
    return None


def milestones(entries: Sequence[EventLogEntry], until: float) -> dict[str, float]:
    """When each part of a run began or ended, in order of time, up to a moment."""
    found: dict[str, float] = {}
    for entry in entries:
        event = entry.dagster_event
        if event is None or entry.timestamp > until:
            continue
        kind = event.event_type_value.replace("PIPELINE_", "RUN_")
        if kind in MILESTONES:
            found.setdefault(MILESTONES[kind], entry.timestamp)
        elif kind == "ENGINE_EVENT" and (event.message or "").startswith("Started process for run"):
            found.setdefault("worker's process runs", entry.timestamp)
        elif kind == "STEP_START":
            found.setdefault(f"{event.step_key} starts", entry.timestamp)
        elif kind == "ASSET_MATERIALIZATION" and event.asset_key:
            found[f"{event.asset_key.path[-1]} materialized"] = entry.timestamp
        elif kind == "ASSET_CHECK_EVALUATION":
            found[f"check {event.asset_check_evaluation_data.check_name} evaluated"] = entry.timestamp
    return dict(sorted(found.items(), key=lambda item: item[1]))


def phases(began: float, found: dict[str, float]) -> dict[str, float]:
    """Seconds from each milestone's predecessor to it."""
    spans: dict[str, float] = {}
    before = began
    for name, moment in found.items():
        spans[f"... {name}"] = moment - before
        before = moment
    return spans
