"""`NAME/import`: new versions of the data, fetched from the pipeline's `source` into Oxen.

Not one of the pipeline's stages: what it commits is in Oxen then, and the sensor follows that as it follows any commit.
So a source that has nothing new makes no commit, and nothing else runs.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg

from mlops_assets.assets.dataset import OXEN_COMMIT
from mlops_assets.assets.stage import PROGRESS_SECONDS, log, plain_failures
from mlops_assets.intake import DataError
from mlops_assets.liveness import hold
from mlops_assets.oxen.repository import Repository
from mlops_assets.pipeline import Pipeline
from mlops_assets.provenance import import_key
from mlops_assets.resources.oxen import OxenResource
from mlops_assets.settings import settings


def build_import(pipeline: Pipeline) -> dg.AssetsDefinition:
    """The asset of a pipeline with a source."""
    source = pipeline.spec.data.source
    assert source
    door = "folder" if source.folder else "sql" if source.sql else "http"

    @dg.asset(
        key=import_key(pipeline.name),
        description=f"The data of {pipeline.name} from its source, committed to the Oxen repository "
        f"`{pipeline.repository}` where they are new; a source that fails leaves the last version in place.",
        group_name=pipeline.name,
        kinds={door, "oxen"},
        owners=pipeline.spec.owners,
    )
    def imported(context: dg.AssetExecutionContext, oxen: OxenResource) -> dg.MaterializeResult[Any]:
        from mlops_assets import doors
        from mlops_assets.intake import commit

        with plain_failures():
            hold(settings().home, context.run.run_id)
            current = Pipeline.load(pipeline.folder)
            wanted = current.spec.data.source
            if wanted is None:
                raise DataError(f"{current.folder / 'defs.yaml'} has no `source` any more; reload the code location")
            repository = oxen.repository(current.repository)
            made = None
            with doors.opened(
                current, wanted, repository, Path(oxen.home), tell=_tell(current.name), meter=_meter(current.name)
            ) as intake:
                if intake is not None:
                    made = commit(repository, current, intake, f"import {intake.source}")
            outcome = f"committed {made.id}" if made else "unchanged"
            log.info("%s/import: %s", current.name, outcome)
            return _result(current, repository, outcome)

    return imported


def _result(pipeline: Pipeline, repository: Repository, outcome: str) -> dg.MaterializeResult[Any]:
    """What the branch has now."""
    data = pipeline.spec.data
    head = repository.log(data.branch, limit=1)[0]
    files = repository.entries(data.path, head.id)
    table = repository.table(data.path, head.id) if data.images is None else None
    return dg.MaterializeResult(
        asset_key=import_key(pipeline.name),
        data_version=dg.DataVersion(repository.digest(data.path, head.id)),
        metadata={
            "outcome": outcome,
            "dagster/row_count": table.rows if table else len(files),
            "bytes": sum(one.bytes for one in files),
            OXEN_COMMIT: head.id,
            "commit message": head.message,
            "committed": dg.MetadataValue.timestamp(head.timestamp),
        },
    )


def _tell(name: str) -> Callable[[str], None]:
    return lambda sentence: log.info("%s/import: %s", name, sentence)


def _meter(name: str) -> Callable[[str], Any]:
    @contextmanager
    def meter(title: str) -> Iterator[Callable[[int, int], None]]:
        told = time.monotonic()

        def tell(done: int, total: int) -> None:
            nonlocal told
            if time.monotonic() - told >= PROGRESS_SECONDS:
                told = time.monotonic()
                log.info("%s/import: %s: %d of %s", name, title, done, total or "unknown")

        yield tell

    return meter
