"""What people want to know of a pipeline, from Dagster's event log alone: no MLflow import, no server."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dagster as dg

from mlops_assets.pipeline import STAGES
from mlops_assets.provenance import PIPELINE_TAG, asset_key, latest_metadata


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
    return all_champion_facts(instance, [pipeline]).get(pipeline)


def all_champion_facts(instance: dg.DagsterInstance, pipelines: Sequence[str]) -> dict[str, ChampionFacts]:
    """`champion_facts` of the pipelines whose gate has decided, by name."""
    found = latest_metadata(instance, [asset_key(name, "champion") for name in pipelines])
    return {name: _champion(metadata) for name, metadata in zip(pipelines, found, strict=True) if metadata}


def _champion(metadata: Mapping[str, dg.MetadataValue[Any]]) -> ChampionFacts:
    values: dict[str, Any] = {name: value.value for name, value in metadata.items()}
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


def accuracy_line(instance: dg.DagsterInstance, pipeline: str) -> str:
    """What the newest evaluation says of the newest model."""
    event = instance.get_latest_materialization_event(asset_key(pipeline, "evaluation"))
    metadata = event.asset_materialization.metadata if event and event.asset_materialization else {}
    found = [metadata.get(f"test_{name}") for name in ("accuracy", "accuracy_lower", "accuracy_upper", "rows")]
    values = [float(str(one.value)) for one in found if one is not None]
    if len(values) < len(found):
        return "not evaluated"
    return "accuracy {:.3f} [{:.3f}, {:.3f}] on {:.0f} test rows".format(*values)


def last_run(instance: dg.DagsterInstance, pipeline: str) -> dg.DagsterRun | None:
    """The newest run that touches the pipeline, whoever asked for it."""
    return last_runs(instance, [pipeline]).get(pipeline)


def last_runs(instance: dg.DagsterInstance, pipelines: Collection[str]) -> dict[str, dg.DagsterRun]:
    """`last_run` of the pipelines that have one, by name."""
    owners = {asset_key(name, stage): name for name in pipelines for stage in STAGES}
    touched: dict[str, set[str]] = {}
    for record in instance.get_asset_records([*owners]):
        # The run that last planned to make the asset: also one that nobody tagged, started by hand from the UI.
        if record.asset_entry.last_run_id:
            touched.setdefault(record.asset_entry.last_run_id, set()).add(owners[record.asset_entry.asset_key])
    newest: dict[str, dg.DagsterRun] = {}
    for run in instance.get_runs(dg.RunsFilter(run_ids=[*touched])) if touched else []:  # the newest first
        for name in touched[run.run_id]:
            newest.setdefault(name, run)
    for name in set(pipelines) - set(newest):  # an asset that was wiped has no last run any more
        for run in instance.get_runs(dg.RunsFilter(tags={PIPELINE_TAG: name}), limit=1):
            newest[name] = run
    return newest


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
            decoded = materialization.metadata.get("images decoded")
            what = "taken from the store" if stored and stored.value else "computed"
            if decoded and what == "computed":
                what += f", {decoded.value:,} images decoded"
            made[materialization.asset_key] = (
                str(outcome.value).partition(",")[0] if outcome else what,
                seconds.get(event.step_key, ""),
            )
    return made
