"""What people want to know of a pipeline, from Dagster's event log alone: no MLflow import, no server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import dagster as dg

from mlops_assets.provenance import PIPELINE_TAG, asset_key


@dataclass(frozen=True)
class ChampionFacts:
    """The newest decision of a pipeline, and the champion it left."""

    version: int
    outcome: str
    accuracy: float | None
    accuracy_lower: float | None
    accuracy_upper: float | None
    rows: int
    mlflow_url: str

    @property
    def figures(self) -> str:
        """Accuracy with its interval, for people."""
        if self.accuracy is None:
            return ""
        return f"{self.accuracy:.3f} [{self.accuracy_lower:.3f}, {self.accuracy_upper:.3f}] on {self.rows} test rows"


def champion_facts(instance: dg.DagsterInstance, pipeline: str) -> ChampionFacts | None:
    """The champion as its last materialization tells; None when the gate never decided."""
    event = instance.get_latest_materialization_event(asset_key(pipeline, "champion"))
    materialization = event.asset_materialization if event else None
    if event is None or materialization is None:
        return None
    values: dict[str, Any] = {name: value.value for name, value in materialization.metadata.items()}
    return ChampionFacts(
        version=int(values.get("champion", 0)),
        outcome=str(values.get("outcome", "")),
        accuracy=values.get("accuracy"),
        accuracy_lower=values.get("accuracy_lower"),
        accuracy_upper=values.get("accuracy_upper"),
        rows=int(values.get("test rows", 0)),
        mlflow_url=str(values.get("MLflow run", "")),
    )


def champion_line(instance: dg.DagsterInstance, pipeline: str) -> str:
    """One line about the champion."""
    facts = champion_facts(instance, pipeline)
    if facts is None:
        return f"{pipeline}: no champion yet"
    return f"{pipeline}: {facts.outcome}" + (f"; champion's accuracy {facts.figures}" if facts.figures else "")


def last_run(instance: dg.DagsterInstance, pipeline: str) -> dg.DagsterRun | None:
    """The newest run that the platform asked for."""
    runs = instance.get_runs(dg.RunsFilter(tags={PIPELINE_TAG: pipeline}), limit=1)
    return runs[0] if runs else None


def made_by(instance: dg.DagsterInstance, run_id: str) -> dict[dg.AssetKey, tuple[str, str]]:
    """Per asset that a run materialized: what happened in a few words, and the step's seconds."""
    entries = instance.all_logs(
        run_id, of_type={dg.DagsterEventType.ASSET_MATERIALIZATION, dg.DagsterEventType.STEP_SUCCESS}
    )
    events = [entry.dagster_event for entry in entries if entry.dagster_event]
    seconds = {
        event.step_key: f"{event.step_success_data.duration_ms / 1000:.1f}" for event in events if event.is_step_success
    }
    made: dict[dg.AssetKey, tuple[str, str]] = {}
    for event in events:
        materialization = event.step_materialization_data.materialization if event.is_step_materialization else None
        if materialization:
            stored = materialization.metadata.get("from store")
            outcome = materialization.metadata.get("outcome")
            what = "taken from the store" if stored and stored.value else "computed"
            made[materialization.asset_key] = (
                str(outcome.value).partition(",")[0] if outcome else what,
                seconds.get(event.step_key, ""),
            )
    return made
