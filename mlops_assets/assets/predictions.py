"""`NAME/predictions`: files that arrive in the pipeline's repository, scored by the champion and written back to it.

Not one of the pipeline's stages: nothing is trained on it, what it reads comes and goes, and a file that is refused
must not stop a training.

What lies under `predictions.path` at the head of the pipeline's branch wants predictions by the champion; what lies
under `predictions.to` are those predictions, one Parquet file for each input, and a manifest. A round scores what the
champion has not scored, removes the predictions of inputs that are gone, and commits both at once; where nothing is
new, nothing is committed.

A refused file does not fail the run: a run that fails records no materialization, so that the predictions of all other
files would be committed and not be seen, and Dagster would try again what cannot succeed. It fails the check
`accepted`, which blocks nothing, with a sentence for each file until it is replaced or removed. The manifest remembers
it, so that no sensor asks for it and nobody reads it again before there is another champion.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import dagster as dg

from mlops_assets.assets.dataset import OXEN_COMMIT
from mlops_assets.assets.stage import log, plain_failures
from mlops_assets.liveness import hold
from mlops_assets.pipeline import Pipeline
from mlops_assets.provenance import asset_key, source_key
from mlops_assets.resources.oxen import OxenResource
from mlops_assets.resources.store import StoreResource
from mlops_assets.settings import settings

if TYPE_CHECKING:
    from mlops_assets.serving.batch_run import Round

ACCEPTED: Final = "accepted"
_SHOWN: Final = 100  # files of a table, and sentences


def predictions_key(pipeline: str) -> dg.AssetKey:
    """`NAME/predictions`."""
    return dg.AssetKey([pipeline, "predictions"])


def build_predictions(pipeline: Pipeline) -> list[dg.AssetsDefinition]:
    """The predictions, and the check that no input was refused."""
    key, spec = predictions_key(pipeline.name), pipeline.spec.predictions

    @dg.asset(
        key=key,
        deps=[asset_key(pipeline.name, "champion"), source_key(pipeline.name)],
        description=f"What arrives under `{spec.path}` of the Oxen repository `{pipeline.repository}`, scored by the "
        f"champion into `{spec.to}`; what it has scored before is not scored again.",
        group_name=pipeline.name,
        kinds={"oxen", "onnx"},
        owners=pipeline.spec.owners,
        check_specs=[
            dg.AssetCheckSpec(ACCEPTED, asset=key, description="Every input could be read, and every row answered.")
        ],
    )
    def predictions(
        context: dg.AssetExecutionContext, oxen: OxenResource, store: StoreResource
    ) -> Iterator[dg.MaterializeResult[Any]]:
        from mlops_assets.serving import batch_run
        from mlops_assets.serving.contract import ContractError
        from mlops_assets.serving.slot import Unservable
        from mlops_assets.serving.watcher import NoChampion, champion_slot

        with plain_failures():
            hold(settings().home, context.run.run_id)
            current = Pipeline.load(pipeline.folder)
            try:
                slot = champion_slot(settings(), current)
            except (NoChampion, Unservable, ContractError) as error:  # nobody to ask, which no other run would mend
                log.warning("%s/predictions: %s", current.name, error)
                passed = dg.AssetCheckResult(check_name=ACCEPTED, passed=True, description="nothing was scored")
                none = dg.DataVersion("none")
                yield dg.MaterializeResult(
                    asset_key=key, data_version=none, metadata={"outcome": str(error)}, check_results=[passed]
                )
                return
            repository = oxen.repository(current.repository)
            done = batch_run.run(
                slot,
                repository,
                current.spec,
                store.open(),
                Path(oxen.home),
                told=f"Dagster run {context.run.run_id}",
            )
            commit = done.commit.id if done.commit else done.look.commit
            version = dg.DataVersion(repository.digest(spec.to, commit) if done.manifest.files else "none")
        log.info("%s/predictions: %s", current.name, _sentence(done))
        metadata = {"version": slot.version, "model digest": slot.model_digest, OXEN_COMMIT: commit, **_metadata(done)}
        yield dg.MaterializeResult(
            asset_key=key, data_version=version, metadata=metadata, check_results=[_accepted(done)]
        )

    return [predictions]


def _sentence(done: "Round") -> str:
    if not done.look.units:
        return "there is no file to score" + (f", and {done.look.others} of other kinds" if done.look.others else "")
    refused = sum(not one.output for one in done.records.values())
    scored = len(done.records) - len(done.reused) - refused
    return (
        f"of {len(done.look.units)} inputs {scored} scored, {len(done.reused)} taken from the store, "
        f"{refused} refused, {done.kept} known already; {len(done.removed)} predictions removed"
    )


def _metadata(done: "Round") -> dict[str, Any]:
    files = done.manifest.files
    labels: dict[str, int] = {}
    for one in files.values():
        for label, count in one.labels.items():
            labels[label] = labels.get(label, 0) + count
    return {
        "outcome": _sentence(done),
        "files": len(files),
        "skipped files": done.kept,
        "dagster/row_count": sum(one.rows for one in files.values()),
        "rows scored": done.rows,
        "rows per second": round(done.rows / done.seconds) if done.seconds else 0,
        "predicted classes": dg.MetadataValue.json(dict(sorted(labels.items()))),
        "committed": done.commit is not None,
        "scored files": _table(done),
    }


def _table(done: "Round") -> dg.TableMetadataValue:
    """The inputs, those of this round first."""
    ordered = sorted(done.manifest.files.items(), key=lambda one: (one[0] not in done.records, one[0]))
    records = [
        dg.TableRecord(
            {
                "input": path,
                "rows": one.rows,
                "version": one.version,
                "predictions": one.output or "refused",
                "how": "known" if path not in done.records else "from the store" if path in done.reused else "now",
            }
        )
        for path, one in ordered[:_SHOWN]
    ]
    schema = dg.TableSchema(
        [
            dg.TableColumn("input", "string"),
            dg.TableColumn("rows", "int"),
            dg.TableColumn("version", "int"),
            dg.TableColumn("predictions", "string"),
            dg.TableColumn("how", "string"),
        ]
    )
    return dg.MetadataValue.table(records, schema)


def _accepted(done: "Round") -> dg.AssetCheckResult:
    refusals = done.refusals
    said = "; ".join(refusals[:3]) + (f"; and {len(refusals) - 3} more" if len(refusals) > 3 else "")
    metadata: dict[str, Any] = {"refused": len(refusals)}
    if refusals:
        metadata["sentences"] = dg.MetadataValue.md("\n".join(f"* {one}" for one in refusals[:_SHOWN]))
    return dg.AssetCheckResult(
        check_name=ACCEPTED,
        passed=not refusals,
        description=said or f"{len(done.look.units)} inputs, none refused",
        metadata=metadata,
    )
