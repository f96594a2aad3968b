"""`NAME/features`: the pipeline's own function over the dataset, and the split."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import dagster as dg

from mlops_assets.assets import contract
from mlops_assets.assets.content import content, pixels_of, table_of
from mlops_assets.assets.dataset import OXEN_COMMIT
from mlops_assets.assets.report import check_result, table_metadata
from mlops_assets.assets.stage import Output, StageRun, plain_failures, stage_asset
from mlops_assets.functions import FunctionError, call
from mlops_assets.pipeline import Pipeline
from mlops_assets.provenance import asset_key, latest_metadata
from mlops_assets.resources.store import StoreResource
from mlops_assets.store import Entry

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
    from numpy.typing import NDArray

SPLIT = "split"
IMAGE_SHAPE = "image shape"


def build_features(pipeline: Pipeline) -> list[dg.AssetsDefinition]:
    """The feature table, and the blocking check that a network can take it."""
    key = asset_key(pipeline.name, "features")

    @stage_asset(
        pipeline,
        "features",
        kinds={"polars"},
        deps=[asset_key(pipeline.name, "dataset")],
        description="What the model learns from, made by the pipeline's features function, with its split.",
    )
    def features(context: dg.AssetExecutionContext, store: StoreResource) -> Iterator[dg.MaterializeResult[Any]]:
        with plain_failures():
            run = StageRun.start(context, pipeline, "features", store)

        def compute() -> Output:
            dataset = run.input("dataset")
            frame, function = table_of(dataset), run.pipeline.function("features")
            if run.pipeline.spec.data.images is not None:
                raw = pixels_of(dataset)
                pixels = _as_images(call(function, raw), frame.height, run.pipeline)
                data = run.pipeline.spec.data
                table = _with_split(frame.select(data.key, data.target), frame, run.pipeline)
                output = content(table, pixels, {IMAGE_SHAPE: str(pixels.shape)})
                return output.with_files(contract.begun(run.pipeline, frame, pixels, raw, function))
            made = _in_order(call(function, frame), run.pipeline)
            files = contract.begun(run.pipeline, frame, made, None, function)
            return content(_with_split(made, frame, run.pipeline), None, {}).with_files(files)

        def describe(entry: Entry) -> Mapping[str, Any]:
            frame = table_of(entry)
            parts = dict(sorted(frame[SPLIT].value_counts().iter_rows()))
            (dataset,) = latest_metadata(context.instance, [asset_key(pipeline.name, "dataset")])
            return {
                OXEN_COMMIT: str(dataset[OXEN_COMMIT].value),
                "rows per part": dg.MetadataValue.json(parts),
                **entry.info,
                **table_metadata(frame),
            }

        yield from run.run(compute, describe)

    @dg.asset_check(
        asset=key, name="features", blocking=True, description="What a network can take: no nulls, nothing infinite."
    )
    def features_check(context: dg.AssetCheckExecutionContext, store: StoreResource) -> dg.AssetCheckResult:
        from mlops_assets.data import validation

        with plain_failures():
            run = StageRun.start(context, pipeline, "features", store)
            data, stored = run.pipeline.spec.data, run.output()
            columns: dict[str, Any] = {"key": data.key, "target": data.target, "split": SPLIT, "classes": data.classes}
            if data.images is not None:
                report = validation.check_images(pixels_of(stored), table_of(stored), **columns)
            else:
                report = validation.check_features(table_of(stored), **columns)
            return check_result(report, run.recipe_read)

    if pipeline.spec.data.images is None:
        return [features, features_check]

    @dg.asset_check(asset=key, name="leaks", description="Images for testing that are among the training images too.")
    def leaks_check(context: dg.AssetCheckExecutionContext, store: StoreResource) -> dg.AssetCheckResult:
        from mlops_assets.data import validation

        with plain_failures():
            run = StageRun.start(context, pipeline, "features", store)
            stored = run.output()
            report = validation.leaks(pixels_of(stored), table_of(stored)[SPLIT])
            return check_result(report, run.recipe_read, severity=dg.AssetCheckSeverity.WARN)

    return [features, features_check, leaks_check]


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


def _with_split(made: "pl.DataFrame", dataset: "pl.DataFrame", pipeline: Pipeline) -> "pl.DataFrame":
    """The features with the column that says what each row is for; the data's own split is no feature."""
    import polars as pl

    from mlops_assets.data import splits

    key, split = pipeline.spec.data.key, pipeline.spec.split
    shares = split.model_dump(exclude={"column"})
    own = None
    if split.column is not None:
        told = dataset.select(pl.col(key).cast(pl.String), split.column)  # the function may have cast the key
        keys = made.select(pl.col(key).cast(pl.String))
        own = keys.join(told, on=key, how="left", maintain_order="left")[split.column]
        made = made.drop(split.column, strict=False)
    return made.insert_column(2, splits.assign(made[key], **shares, own=own).alias(SPLIT))


def _as_images(made: Any, rows: int, pipeline: Pipeline) -> "NDArray[np.uint8]":
    """What the features function made of the images.

    Raises:
        FunctionError: The function returned something else than as many images.
    """
    import numpy as np

    what = f"{made.dtype} {made.shape}" if isinstance(made, np.ndarray) else type(made).__name__
    if not isinstance(made, np.ndarray) or made.dtype != np.uint8 or made.ndim != 4 or len(made) != rows:
        raise FunctionError(
            f"{pipeline.name}'s features function returned {what}; return a numpy array of uint8, "
            f"({rows}, height, width, channels)"
        )
    return np.ascontiguousarray(made)
