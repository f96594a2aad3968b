"""The `registry` sensor: notice what others do in MLflow's registry.

Belongs here: one look at the registry and the runs that follow from it. Not here: judging (`assets/champion.py`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import dagster as dg

from mlops_assets.assets.champion import MOVE_TAG
from mlops_assets.errors import MlopsError
from mlops_assets.pipeline import Pipeline
from mlops_assets.provenance import PIPELINE_TAG, asset_key, job_name
from mlops_assets.registry.history import history
from mlops_assets.registry.ledger import Ledger
from mlops_assets.registry.watch import Seen, look
from mlops_assets.settings import settings

LOOK_SECONDS: Final = 30.0
"""How often the registry is looked at when nobody says that it has changed."""

DAY_SECONDS: Final = 86_400
"""A candidate whose run failed is asked for again on the next day."""

SETTLE_SECONDS: Final = 60.0
"""How long a move of the champion may be under way: after that its process is taken for gone."""


def build_registry(folders: Sequence[Path], jobs: Sequence[Any]) -> dg.SensorDefinition:
    """One sensor for all pipelines; polling is the truth, since MLflow delivers its webhooks at most once.

    Args:
        folders: The pipelines' folders.
        jobs: Their jobs.
    """

    @dg.sensor(
        name="registry",
        jobs=jobs,
        minimum_interval_seconds=5,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Has versions judged that others register in MLflow, and notes an alias that was moved by hand.",
    )
    def registry(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        here, now = settings(), time.time()
        # A webhook that comes while this tick looks is a later time than the one noted, and so looked after.
        told = here.registry_poke.stat().st_mtime if here.registry_poke.exists() else 0.0
        last = json.loads(context.cursor or "{}")
        if last.get("told") == told and now - last.get("looked", 0.0) < LOOK_SECONDS:
            return dg.SensorResult(skip_reason="looked a moment ago", cursor=context.cursor)
        cursor = json.dumps({"told": told, "looked": now})
        heads = _heads(folders, here.home)
        try:
            seen = look(here.mlflow_url)
        except MlopsError as error:
            return dg.SensorResult(skip_reason=str(error), cursor=cursor)
        requests, reasons = [], []
        for folder in folders:
            try:
                requests += _requests(Pipeline.load(folder), seen, here.home, heads.get(folder.name))
            except MlopsError as error:
                reasons.append(f"{folder.name}: {error}")
        skipped = "; ".join(reasons) or "the registry is as the ledgers say"
        return dg.SensorResult(run_requests=requests, skip_reason=None if requests else skipped, cursor=cursor)

    return registry


def _heads(folders: Sequence[Path], home: Path) -> dict[str, str]:
    found = {}
    for folder in folders:
        with suppress(MlopsError):  # whoever reads the damaged ledger next says what is wrong with it
            found[folder.name] = Ledger(home / "ledger", folder.name).head
    return found


def _requests(pipeline: Pipeline, seen: Mapping[str, Seen], home: Path, head: str | None) -> list[dg.RunRequest]:
    """The runs that a look at the registry calls for.

    Args:
        pipeline: Whose model it is about.
        seen: What the registry showed.
        home: Where the ledger is.
        head: The ledger's head before the look; None when it could not be read.
    """
    found = seen.get(pipeline.model_name)
    if found is None:
        return []
    ledger = Ledger(home / "ledger", pipeline.name)
    if ledger.head != head:
        return []  # a move came between, so that what was seen may be older than what the ledger says now
    records = ledger.records()
    last = records[-1] if records else None
    if last and last.kind == "intent" and (datetime.now(UTC) - last.at).total_seconds() < SETTLE_SECONDS:
        return []  # a move is under way
    alias = found.aliases.get(pipeline.spec.gate.champion_alias, 0)
    reigns = history(records)
    if alias != ((reigns[-1].version or 0) if reigns else 0) or (last and last.kind == "intent"):
        return [_request(pipeline, {"how": "notice"}, f"notice-{alias}-{ledger.head}")]
    since = records[0].at.timestamp() if records else 0.0
    new = [version for version, registered in found.unjudged.items() if registered >= since]
    if not new or not pipeline.spec.sensor:
        return []
    # All of them, since one that cannot be judged must not hold up the next; Dagster's queue lets one run at a time.
    # Without a ledger only the newest of what was there before.
    day = int(time.time() // DAY_SECONDS)
    return [
        _request(pipeline, {"how": "candidate", "version": version}, f"candidate-{version}-{day}")
        for version in (new if records else new[-1:])
    ]


def _request(pipeline: Pipeline, move: Mapping[str, Any], key: str) -> dg.RunRequest:
    return dg.RunRequest(
        run_key=f"{pipeline.name}-{key}",
        job_name=job_name(pipeline.name),
        asset_selection=[asset_key(pipeline.name, "champion")],
        tags={PIPELINE_TAG: pipeline.name, MOVE_TAG: json.dumps(move)},
    )
