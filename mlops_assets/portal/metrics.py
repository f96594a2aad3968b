"""A picture as Prometheus reads it."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING

from mlops_assets.portal.gatherer import Sight

if TYPE_CHECKING:
    from prometheus_client.core import Metric

    from mlops_assets.portal.picture import Row

_HELP = {
    "stale_stages": "Stages that a run would make anew.",
    "blocked": "1 when a failed check stands in the way.",
    "running": "1 while a run is queued or under way.",
    "failing": "1 when it cannot be told how the pipeline is.",
    "last_run_success": "1 when the newest run that ended has succeeded.",
    "last_run_end_timestamp_seconds": "When that run ended.",
    "champion_version": "The champion's version.",
    "champion_accuracy": "The champion's accuracy on its test set.",
    "champion_since_timestamp_seconds": "When the champion was promoted.",
    "served_version": "The version that the model server answers with; 0 when with none.",
    "data_commit_timestamp_seconds": "When the newest commit of the data was made.",
}


def page_of(sight: Sight) -> bytes:
    """The text that Prometheus reads."""
    from prometheus_client import CollectorRegistry, generate_latest

    registry = CollectorRegistry()
    registry.register(_Gauges(sight))
    return generate_latest(registry)


class _Gauges:
    def __init__(self, sight: Sight) -> None:
        self._sight = sight

    def collect(self) -> Iterable[Metric]:
        """One family per value; a pipeline that has none is left out of it."""
        from prometheus_client.core import GaugeMetricFamily

        picture = self._sight.picture
        up = GaugeMetricFamily("mlops_portal_problem", "1 when no newer picture could be taken.")
        up.add_metric([], bool(self._sight.problem))
        yield up
        if picture is None:
            return
        age = GaugeMetricFamily("mlops_portal_gathered_age_seconds", "Seconds since all of this was gathered.")
        age.add_metric([], self._sight.age)
        yield age
        backup = GaugeMetricFamily("mlops_backup_timestamp_seconds", "When the newest backup was made; 0: none yet.")
        backup.add_metric([], _seconds(picture.backup) or 0)
        yield backup
        families = {
            name: GaugeMetricFamily(f"mlops_pipeline_{name}", text, labels=["pipeline"]) for name, text in _HELP.items()
        }
        for row in picture.rows:
            for name, value in _values(row, models=picture.models).items():
                if value is not None:
                    families[name].add_metric([row.name], value)
        yield from families.values()


def _values(row: Row, *, models: bool) -> dict[str, float | None]:
    champion, run = row.champion, row.run
    known = row.state not in {"error", "elsewhere", "no data yet"}
    return {
        "stale_stages": row.stale if known else None,
        "blocked": row.state == "blocked" if known else None,
        "running": row.state == "running" if known else None,
        "failing": row.state == "error",
        "last_run_success": run.status == "SUCCESS" if run and run.ended else None,
        "last_run_end_timestamp_seconds": _seconds(run.ended if run else None),
        "champion_version": champion.version if champion else None,
        "champion_accuracy": champion.accuracy if champion else None,
        "champion_since_timestamp_seconds": _seconds(champion.since if champion else None),
        "served_version": row.served or 0 if models and champion else None,
        "data_commit_timestamp_seconds": _seconds(row.data.at if row.data else None),
    }


def _seconds(at: datetime | None) -> float | None:
    return at.timestamp() if at else None
