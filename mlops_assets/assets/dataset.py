"""`oxen/NAME` and `NAME/dataset`: a table or images of an Oxen repository at a commit, read, typed and checked."""

import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import dagster as dg

from mlops_assets.assets.content import content, pixels_of, table_of
from mlops_assets.assets.report import check_result, file_changes, table_metadata
from mlops_assets.assets.stage import PROGRESS_SECONDS, Output, StageRun, log, plain_failures, stage_asset
from mlops_assets.functions import call
from mlops_assets.oxen.errors import OxenError
from mlops_assets.oxen.repository import Repository
from mlops_assets.oxen.tree import Commit
from mlops_assets.pipeline import Pipeline
from mlops_assets.provenance import DIGEST, asset_key, import_key, latest_metadata, metadata_history, source_key
from mlops_assets.resources.oxen import OxenResource
from mlops_assets.resources.store import StoreResource
from mlops_assets.store import Entry, StoreError

if TYPE_CHECKING:
    from mlops_assets.data.images import Images

OXEN_COMMIT: Final = "oxen commit"
CLASS_COUNTS: Final = "class counts"
DECODED_AS: Final = "decoded as"
HISTORY: Final = 50
"""How many materializations back the version before this one is looked for."""


def build_source(pipeline: Pipeline) -> Any:
    """The observable source asset of a pipeline's data."""
    data = pipeline.spec.data
    description = (
        f"`{data.path}` on branch `{data.branch}` of the Oxen repository `{pipeline.repository}`. "
        "Its data version is a digest of the content: a reverted commit is the old version again."
    )

    def version(oxen: OxenResource) -> dg.DataVersion:
        with plain_failures():
            repository = oxen.repository(pipeline.repository)
            return dg.DataVersion(repository.digest(data.path, repository.resolve(data.branch)))

    if data.source:  # only this decorator lets something be upstream
        key = source_key(pipeline.name)
        upstream = dg.AssetSpec(
            key, deps=[import_key(pipeline.name)], description=description, group_name=pipeline.name, kinds={"oxen"}
        )

        @dg.multi_observable_source_asset(specs=[upstream])  # type: ignore[untyped-decorator]
        def fetched(oxen: OxenResource) -> dg.ObserveResult:
            return dg.ObserveResult(key, data_version=version(oxen))

        return fetched

    @dg.observable_source_asset(
        key=source_key(pipeline.name),
        group_name=pipeline.name,
        tags={"dagster/kind/oxen": ""},  # this decorator has no `kinds` of its own
        description=description,
    )
    def source(oxen: OxenResource) -> dg.DataVersion:
        return version(oxen)

    return source


def build_dataset(pipeline: Pipeline) -> list[dg.AssetsDefinition]:
    """The dataset with its checks: `schema` and `target` block what follows, `label_shift` warns."""
    key = asset_key(pipeline.name, "dataset")

    @stage_asset(
        pipeline,
        "dataset",
        kinds={"oxen", "polars"},
        deps=[source_key(pipeline.name)],
        description=f"{pipeline.spec.description or pipeline.name}: the data at the branch's head, verified against "
        "their hashes and typed by the schema.",
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
            if spec.images is not None:
                return _images(run, repository, commit)
            path = repository.materialize(spec.path, commit.id, oxen.cache)
            frame = readers.read_table(path, validation.dtypes(call(run.pipeline.function("schema"))))
            return content(frame, None, {CLASS_COUNTS: validation.class_counts(frame, spec.target)})

        def describe(entry: Entry) -> Mapping[str, Any]:
            return {
                OXEN_COMMIT: commit.id,
                "oxen path": f"{run.pipeline.repository}@{spec.branch}:{spec.path}",
                "commit message": commit.message,
                "committed": dg.MetadataValue.timestamp(commit.timestamp),
                CLASS_COUNTS: dg.MetadataValue.json(dict(entry.info[CLASS_COUNTS])),
                **{name: entry.info[name] for name in ("images decoded", "images reused") if name in entry.info},
                **(_changes(run, repository, commit) if spec.images is not None else {}),
                **table_metadata(table_of(entry)),
            }

        yield from run.run(compute, describe)

    @dg.asset_check(
        asset=key, name="schema", blocking=True, description="Columns, types, nulls and ranges, by the pandera schema."
    )
    def schema_check(context: dg.AssetCheckExecutionContext, store: StoreResource) -> dg.AssetCheckResult:
        from mlops_assets.data import validation

        with plain_failures():
            run = StageRun.start(context, pipeline, "dataset", store)
            frame = table_of(run.output())
            return check_result(validation.validate(frame, call(run.pipeline.function("schema"))), run.recipe_read)

    @dg.asset_check(
        asset=key,
        name="target",
        blocking=True,
        description="Unique keys, known classes, and rows of each class in each part of the split.",
    )
    def target_check(context: dg.AssetCheckExecutionContext, store: StoreResource) -> dg.AssetCheckResult:
        from mlops_assets.data import validation

        with plain_failures():
            run = StageRun.start(context, pipeline, "dataset", store)
            data, split = run.pipeline.spec.data, run.pipeline.spec.split
            report = validation.check_target(
                table_of(run.output()),
                key=data.key,
                target=data.target,
                classes=data.classes,
                **split.model_dump(),
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


def _images(run: StageRun, repository: Repository, commit: Commit) -> Output:
    """The images of a commit, of which only those are decoded that the last version did not have."""
    from mlops_assets.data.images import SourceFile, read_images
    from mlops_assets.data.validation import class_counts

    data = run.pipeline.spec.data
    assert data.images is not None
    files = [
        SourceFile(
            entry.path.removeprefix(data.path).lstrip("/"), entry.hash, entry.bytes, partial(repository.read, entry)
        )
        for entry in repository.entries(data.path, commit.id)
    ]
    decoded = read_images(files, data.images, known=_known(run), on_progress=_progress(run.name))
    frame = decoded.images.table
    info = {
        CLASS_COUNTS: class_counts(frame, data.target),
        DECODED_AS: run.pipeline.decoding,
        "images decoded": decoded.decoded,
        "images reused": decoded.reused,
    }
    return content(frame, decoded.images.pixels, info)


def _known(run: StageRun) -> "Images | None":
    """The images of the last version, if they were decoded as they would be now."""
    from mlops_assets.data.images import Images

    images, made = run.pipeline.spec.data.images, run.state.get("dataset")
    if images is None or images.layout != "folder":
        return None  # the other layouts are a few large files
    try:
        entry = run.store.find(run.name, made.recipe) if made else None
        if entry is None or entry.info.get(DECODED_AS) != run.pipeline.decoding:
            return None
        return Images(table_of(entry), pixels_of(entry))
    except StoreError as error:
        log.warning("%s: every image is decoded again, because %s", run.name, error)
        return None


def _changes(run: StageRun, repository: Repository, commit: Commit) -> Mapping[str, Any]:
    """Which files were added, removed and changed since the last materialization."""
    (before,) = latest_metadata(run.context.instance, [asset_key(run.pipeline.name, run.stage)])
    if OXEN_COMMIT not in before:
        return {}
    try:
        found = repository.diff(str(before[OXEN_COMMIT].value), commit.id, run.pipeline.spec.data.path)
    except OxenError:
        return {}  # the repository was made anew since then
    return file_changes(found.added, found.removed, found.changed)


def _progress(name: str) -> Callable[[int, int], None]:
    told = time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal told
        if time.monotonic() - told >= PROGRESS_SECONDS:
            told = time.monotonic()
            log.info("%s: %d of %d read", name, done, total)

    return tell
