"""`oxen/NAME` and `NAME/dataset`: a table of an Oxen repository at a commit, read, typed and checked."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

import dagster as dg

from mlops_assets.assets.report import check_result, table_metadata
from mlops_assets.assets.stage import Output, StageRun, plain_failures, stage_asset
from mlops_assets.functions import call
from mlops_assets.pipeline import Pipeline
from mlops_assets.provenance import DIGEST, asset_key, metadata_history, source_key
from mlops_assets.resources.oxen import OxenResource
from mlops_assets.resources.store import StoreResource
from mlops_assets.store import Entry

TABLE: Final = "table.parquet"
OXEN_COMMIT: Final = "oxen commit"
CLASS_COUNTS: Final = "class counts"
HISTORY: Final = 50
"""How many materializations back the version before this one is looked for."""


def build_source(pipeline: Pipeline) -> Any:
    """The observable source asset of a pipeline's data."""
    data = pipeline.spec.data

    @dg.observable_source_asset(
        key=source_key(pipeline.name),
        group_name=pipeline.name,
        tags={"dagster/kind/oxen": ""},  # this decorator has no `kinds` of its own
        description=f"`{data.path}` on branch `{data.branch}` of the Oxen repository `{pipeline.repository}`. "
        "Its data version is a digest of the content: a reverted commit is the old version again.",
    )
    def source(oxen: OxenResource) -> dg.DataVersion:
        with plain_failures():
            repository = oxen.repository(pipeline.repository)
            return dg.DataVersion(repository.digest(data.path, repository.resolve(data.branch)))

    return source


def build_dataset(pipeline: Pipeline) -> list[dg.AssetsDefinition]:
    """The dataset with its checks: `schema` and `target` block what follows, `label_shift` warns."""
    key = asset_key(pipeline.name, "dataset")

    @stage_asset(
        pipeline,
        "dataset",
        kinds={"oxen", "polars"},
        deps=[source_key(pipeline.name)],
        description=f"{pipeline.spec.description or pipeline.name}: the table at the branch's head, verified against "
        "its hashes and typed by the schema.",
    )
    def dataset(
        context: dg.AssetExecutionContext, oxen: OxenResource, store: StoreResource
    ) -> Iterator[dg.MaterializeResult[Any]]:
        from mlops_assets.data import readers, validation

        with plain_failures():
            run = StageRun.start(context, pipeline, "dataset", store)
            spec = run.pipeline.spec.data
            repository = oxen.repository(run.pipeline.repository)
            commit = repository.log(spec.branch, limit=1)[0]
            run.source = repository.digest(spec.path, commit.id)

        def compute() -> Output:
            path = repository.materialize(spec.path, commit.id, oxen.cache)
            frame = readers.read_table(path, validation.dtypes(call(run.pipeline.function("schema"))))
            data = readers.to_parquet_bytes(frame)
            counts = validation.class_counts(frame, spec.target)
            return Output(readers.table_digest(data), {TABLE: data}, {CLASS_COUNTS: counts})

        def describe(entry: Entry) -> Mapping[str, Any]:
            return {
                OXEN_COMMIT: commit.id,
                "oxen path": f"{run.pipeline.repository}@{spec.branch}:{spec.path}",
                "commit message": commit.message,
                "committed": dg.MetadataValue.timestamp(commit.timestamp),
                CLASS_COUNTS: dg.MetadataValue.json(dict(entry.info[CLASS_COUNTS])),
                **table_metadata(readers.from_parquet_bytes(entry.read(TABLE))),
            }

        yield from run.run(compute, describe)

    @dg.asset_check(
        asset=key, name="schema", blocking=True, description="Columns, types, nulls and ranges, by the pandera schema."
    )
    def schema_check(context: dg.AssetCheckExecutionContext, store: StoreResource) -> dg.AssetCheckResult:
        from mlops_assets.data import readers, validation

        with plain_failures():
            run = StageRun.start(context, pipeline, "dataset", store)
            frame = readers.from_parquet_bytes(run.output().read(TABLE))
            return check_result(validation.validate(frame, call(run.pipeline.function("schema"))), run.recipe_read)

    @dg.asset_check(
        asset=key,
        name="target",
        blocking=True,
        description="Unique keys, known classes, and rows of each class in each part of the split.",
    )
    def target_check(context: dg.AssetCheckExecutionContext, store: StoreResource) -> dg.AssetCheckResult:
        from mlops_assets.data import readers, validation

        with plain_failures():
            run = StageRun.start(context, pipeline, "dataset", store)
            frame = readers.from_parquet_bytes(run.output().read(TABLE))
            data, split = run.pipeline.spec.data, run.pipeline.spec.split
            report = validation.check_target(
                frame,
                key=data.key,
                target=data.target,
                classes=data.classes,
                salt=split.salt,
                test=split.test,
                validation=split.validation,
            )
            return check_result(report, run.recipe_read)

    @dg.asset_check(asset=key, name="label_shift", description="How far the class shares moved since the last version.")
    def label_shift_check(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        from mlops_assets.data.validation import label_shift

        limit = Pipeline.load(pipeline.folder).spec.data.max_label_shift
        history = [one for one in metadata_history(context.instance, key, limit=HISTORY) if CLASS_COUNTS in one]
        others = [one for one in history if one[DIGEST] != history[0][DIGEST]]
        if not others:
            return dg.AssetCheckResult(passed=True, description="no version before this one to compare with")
        after, before = (dict(one[CLASS_COUNTS].value) for one in (history[0], others[0]))
        distance = label_shift(before, after)
        return dg.AssetCheckResult(
            passed=distance <= limit,
            severity=dg.AssetCheckSeverity.WARN,
            description=f"class shares moved by {distance:.1%} (total variation distance; warns beyond {limit:.0%})",
            metadata={
                "distance": distance,
                "before": dg.MetadataValue.json(before),
                "after": dg.MetadataValue.json(after),
            },
        )

    return [dataset, schema_check, target_check, label_shift_check]
