"""`ModelPipeline`: from one `defs.yaml` to assets, checks, jobs and sensors.

Belongs here: which definitions a pipeline consists of. Does not: what its YAML may say (`spec.py`) and what an asset
does (`assets/`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import dagster as dg
from pydantic import BaseModel

from mlops_assets.assets.champion import build_champion
from mlops_assets.assets.dataset import build_dataset, build_source
from mlops_assets.assets.deployment import build_deployment
from mlops_assets.assets.evaluation import build_evaluation
from mlops_assets.assets.features import build_features
from mlops_assets.assets.imported import build_import
from mlops_assets.assets.model import build_model
from mlops_assets.assets.predictions import build_predictions
from mlops_assets.pipeline import Pipeline
from mlops_assets.provenance import PIPELINE_TAG, import_job_name, import_key, job_name
from mlops_assets.sensors.imports import build_import_schedule
from mlops_assets.sensors.retrain import build_retrain
from mlops_assets.settings import settings
from mlops_assets.spec import NAME_PATTERN, PipelineSpec
from mlops_assets.spec_file import SpecError


class ModelPipeline(dg.Component):
    """One folder, one model pipeline: dataset, features, model, evaluation and champion, with checks and sensors."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline

    @classmethod
    def get_model_cls(cls) -> type[BaseModel]:
        """The schema of `attributes`, for Dagster's loader and for `dg check yaml`."""
        return PipelineSpec

    @classmethod
    def load(cls, attributes: BaseModel | None, context: dg.ComponentLoadContext) -> Self:  # noqa: ARG003
        """Make the component of a folder.

        The file is read once more by our own reader: `attributes` does not show a key that was written twice, a
        second document, or what stands beside it.
        """
        folder = Path(context.path)
        if not NAME_PATTERN.fullmatch(folder.name):
            raise SpecError(f"{folder}: a pipeline's folder is named by lower-case letters, digits and underscores")
        if folder.parent != Path(context.defs_module_path):
            raise SpecError(
                f"{folder}: a pipeline's folder lies directly below {context.defs_module_path}; move it there"
            )
        return cls(Pipeline.load(folder))

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:  # noqa: ARG002  Dagster calls it by name
        """All definitions of the pipeline; none where another code location has it."""
        if self.pipeline.spec.location != settings().location:
            return dg.Definitions()
        return pipeline_definitions(self.pipeline)


def pipeline_definitions(pipeline: Pipeline) -> dg.Definitions:
    """The graph of one pipeline, without the resources that it runs with."""
    assets: list[Any] = [
        build_source(pipeline),
        *build_dataset(pipeline),
        *build_features(pipeline),
        *build_model(pipeline),
        *build_evaluation(pipeline),
        *build_champion(pipeline),
        *build_deployment(pipeline),
        *build_predictions(pipeline),
    ]
    source = pipeline.spec.data.source
    everything = dg.AssetSelection.groups(pipeline.name)
    fetched = dg.AssetSelection.assets(import_key(pipeline.name))
    if source:
        assets.append(build_import(pipeline))
    job = dg.define_asset_job(
        job_name(pipeline.name),
        selection=everything - fetched if source else everything,
        description=f"Everything of {pipeline.name}; stages whose recipe is unchanged do nothing.",
        tags={PIPELINE_TAG: pipeline.name},
    )
    fetching = dg.define_asset_job(
        import_job_name(pipeline.name),
        selection=fetched,
        description=f"Fetches the data of {pipeline.name} from their source.",
    )
    schedules = [build_retrain(pipeline)] if pipeline.spec.schedule else []
    if source and source.schedule:
        schedules.append(build_import_schedule(pipeline))
    checks = [one for one in assets if isinstance(one, dg.AssetChecksDefinition)]
    return dg.Definitions(
        assets=[one for one in assets if one not in checks],
        asset_checks=checks,
        jobs=[job, fetching] if source else [job],
        schedules=schedules,
    )
