"""Two trivial assets and a sensor that watches a file: what the same Dagster does with nothing of ours in it."""

import hashlib
import os
from pathlib import Path

import dagster as dg

WATCHED = Path(os.environ["BARE_FILE"])


@dg.asset
def dataset() -> dg.MaterializeResult[None]:
    return dg.MaterializeResult(metadata={"bytes": len(WATCHED.read_bytes())})


@dg.asset(deps=[dataset])
def features() -> dg.MaterializeResult[None]:
    return dg.MaterializeResult(metadata={"bytes": len(WATCHED.read_bytes())})


job = dg.define_asset_job("bare_job", selection="*")


@dg.sensor(job=job, minimum_interval_seconds=1, default_status=dg.DefaultSensorStatus.RUNNING)
def watch(context: dg.SensorEvaluationContext) -> dg.SensorResult:
    digest = hashlib.sha256(WATCHED.read_bytes()).hexdigest()
    if digest == context.cursor:
        return dg.SensorResult(skip_reason="nothing new")
    return dg.SensorResult(run_requests=[dg.RunRequest(run_key=digest)], cursor=digest)


defs = dg.Definitions(assets=[dataset, features], jobs=[job], sensors=[watch], executor=dg.in_process_executor)
