"""`NAME/features`: the pipeline's own function over the dataset, and the split."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import dagster as dg

from mlops_assets.assets.dataset import OXEN_COMMIT, TABLE
from mlops_assets.assets.report import check_result, table_metadata
from mlops_assets.assets.stage import Output, StageRun, plain_failures, stage_asset
from mlops_assets.functions import FunctionError, call
from mlops_assets.pipeline import Pipeline
from mlops_assets.provenance import asset_key, latest_metadata
from mlops_assets.resources.store import StoreResource
from mlops_assets.store import Entry

if TYPE_CHECKING:
    import polars as pl

SPLIT = "split"


def build_features(pipeline: Pipeline) -> list[dg.AssetsDefinition]:
    """The feature table, and the blocking check that a network can take it."""
    key = asset_key(pipeline.name, "features")

    @stage_asset(
        pipeline,
        "features",
        kinds={"polars"},
        deps=[asset_key(pipeline.name, "dataset")],
        description="The table that the model learns from, made by the pipeline's features function, with its split.",
    )
    def features(context: dg.AssetExecutionContext, store: StoreResource) -> Iterator[dg.MaterializeResult[Any]]:
        from mlops_assets.data import readers, splits

        with plain_failures():
            run = StageRun.start(context, pipeline, "features", store)

        def compute() -> Output:
            frame = readers.from_parquet_bytes(run.input("dataset").read(TABLE))
            made = call(run.pipeline.function("features"), frame)
            made = _in_order(made, run.pipeline)
            spec = run.pipeline.spec
            parts = splits.assign(made[spec.data.key], **spec.split.model_dump())
            data = readers.to_parquet_bytes(made.insert_column(2, parts.alias(SPLIT)))
            return Output(readers.table_digest(data), {TABLE: data})

        def describe(entry: Entry) -> Mapping[str, Any]:
            frame = readers.from_parquet_bytes(entry.read(TABLE))
            parts = dict(sorted(frame[SPLIT].value_counts().iter_rows()))
            (dataset,) = latest_metadata(context.instance, [asset_key(pipeline.name, "dataset")])
            return {
                OXEN_COMMIT: str(dataset[OXEN_COMMIT].value),
                "rows per part": dg.MetadataValue.json(parts),
                **table_metadata(frame),
            }

        yield from run.run(compute, describe)

    @dg.asset_check(
        asset=key, name="features", blocking=True, description="Numbers only, no nulls, nothing infinite, unique keys."
    )
    def features_check(context: dg.AssetCheckExecutionContext, store: StoreResource) -> dg.AssetCheckResult:
        from mlops_assets.data import readers, validation

        with plain_failures():
            run = StageRun.start(context, pipeline, "features", store)
            data = run.pipeline.spec.data
            frame = readers.from_parquet_bytes(run.output().read(TABLE))
            report = validation.check_features(
                frame, key=data.key, target=data.target, split=SPLIT, classes=data.classes
            )
            return check_result(report, run.recipe_read)

    return [features, features_check]


def _in_order(made: Any, pipeline: Pipeline) -> "pl.DataFrame":
    """Key and target first, so that the rest are the features.

    Raises:
        FunctionError: The function returned something else than a DataFrame with both.
    """
    import polars as pl

    data, where = pipeline.spec.data, f"{pipeline.folder.name}'s features function"
    if not isinstance(made, pl.DataFrame):
        raise FunctionError(f"{where} returned {type(made).__name__}; return a polars.DataFrame (collect a LazyFrame)")
    lost = [column for column in (data.key, data.target) if column not in made.columns]
    if lost:
        raise FunctionError(f"{where} dropped {' and '.join(lost)}; keep key and target beside the features")
    if SPLIT in made.columns:
        raise FunctionError(f"{where} returned a column '{SPLIT}', a name the platform needs; rename it")
    return made.select(data.key, data.target, pl.exclude(data.key, data.target))
