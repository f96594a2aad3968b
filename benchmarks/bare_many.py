"""As many trivial assets, checks, jobs and sensors as so many pipelines have: what Dagster does with nothing of ours.

Variables: BARE_COUNT, how many; BARE_FOLDER, where each one's sensor finds the file that it watches.
"""

import hashlib
import os
from pathlib import Path
from typing import Final

import dagster as dg

FOLDER: Final = Path(os.environ["BARE_FOLDER"])
CHECKS: Final = {
    "dataset": ("schema", "target", "label_shift"),
    "features": ("features",),
    "model": (),
    "evaluation": (),
    "champion": ("gate",),
}


def build(name: str) -> dg.Definitions:
    @dg.observable_source_asset(name=name, key_prefix="oxen", group_name=name)
    def source() -> dg.DataVersion:
        return dg.DataVersion((FOLDER / name).read_text())

    assets, checks = [source], []
    for stage, names in CHECKS.items():

        @dg.asset(key=[name, stage], group_name=name, deps=[assets[-1]])
        def made() -> None: ...

        assets.append(made)
        for each in names:

            @dg.asset_check(asset=made, name=each, blocking=True)
            def check() -> dg.AssetCheckResult:
                return dg.AssetCheckResult(passed=True)

            checks.append(check)
    job = dg.define_asset_job(f"{name}_job", selection=dg.AssetSelection.groups(name))

    @dg.sensor(
        name=f"{name}_watch",
        job=job,
        minimum_interval_seconds=1,
        default_status=dg.DefaultSensorStatus.RUNNING,
    )
    def watch(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        digest = hashlib.sha256((FOLDER / name).read_bytes()).hexdigest()
        if digest == context.cursor:
            return dg.SensorResult(skip_reason="nothing new")
        # The first look only remembers, as the pipelines beside which this is measured have nothing to do either.
        requests = [dg.RunRequest(run_key=digest)] if context.cursor else []
        return dg.SensorResult(run_requests=requests, skip_reason=None if requests else "first look", cursor=digest)

    @dg.sensor(name=f"{name}_level", job=job)
    def level(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        """Compares with the newest materialization instead of a cursor, as whatever decides by content must."""
        digest = hashlib.sha256((FOLDER / name).read_bytes()).hexdigest()
        event = context.instance.get_latest_materialization_event(dg.AssetKey([name, "dataset"]))
        if event and event.asset_materialization and event.asset_materialization.metadata["digest"].value == digest:
            return dg.SensorResult(skip_reason="nothing new")
        return dg.SensorResult(run_requests=[dg.RunRequest(run_key=digest)])

    return dg.Definitions(assets=assets, asset_checks=checks, jobs=[job], sensors=[watch, level])


NAMES: Final = [f"bare_{number:03d}" for number in range(int(os.environ["BARE_COUNT"]))]

defs = dg.Definitions.merge(*[build(name) for name in NAMES], dg.Definitions(executor=dg.in_process_executor))
