"""Copies of iris, each with a repository and materialized assets of its own; run as a file in a project.

Argument: how many pipelines there shall be with iris, which has been run for real. A copy's repository is a copy; its
events are written by Dagster's own interface with the metadata of iris' events, the recipes computed for the copy.
"""

import shutil
import sys

import dagster as dg

from mlops_assets.assessment import Assessment
from mlops_assets.home import ensure_home, open_instance
from mlops_assets.pipeline import BLOCKING_CHECKS, DEFS, STAGES, Pipeline
from mlops_assets.provenance import RECIPE, asset_key, latest_metadata, provenance_metadata, read_state
from mlops_assets.staleness import Wanted, recipe


def main(count: int) -> None:
    here = ensure_home()
    with open_instance(here) as instance:
        state = read_state(instance, "iris")
        metadata = dict(
            zip(STAGES, latest_metadata(instance, [asset_key("iris", stage) for stage in STAGES]), strict=True)
        )
        for number in range(1, count):
            name = f"iris_{number:03d}"
            shutil.copytree(DEFS / "iris", DEFS / name, ignore=shutil.ignore_patterns("__pycache__"))
            shutil.copytree(here.home / "oxen" / "iris", here.home / "oxen" / name)
            pipeline = Pipeline.load(DEFS / name)
            wanted = Wanted.of(pipeline, state["dataset"].inputs["oxen"])
            for stage in STAGES:
                made = recipe(stage, name, wanted, state, tick="")
                assert made
                told = {**metadata[stage], **provenance_metadata(made, state[stage].digest)}
                key = asset_key(name, stage)
                instance.report_runless_asset_event(dg.AssetMaterialization(key, metadata=told))
                for check in BLOCKING_CHECKS[stage]:
                    instance.report_runless_asset_event(
                        dg.AssetCheckEvaluation(
                            asset_key=key, check_name=check, passed=True, blocking=True, metadata={RECIPE: made.key}
                        )
                    )
            now = Assessment.of(pipeline, here.repository(name), instance)
            assert not now.plan.stale, now.plan


if __name__ == "__main__":
    main(int(sys.argv[1]))
