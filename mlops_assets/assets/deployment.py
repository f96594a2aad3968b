"""`NAME/deployment`: the champion where its users are."""

import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import dagster as dg

from mlops_assets.assets.stage import StageRun, log, plain_failures, stage_asset
from mlops_assets.pipeline import Pipeline
from mlops_assets.provenance import asset_key
from mlops_assets.resources.store import StoreResource
from mlops_assets.settings import settings

if TYPE_CHECKING:
    from mlops_assets.serving.slot import Slot

SERVER_SECONDS: Final = 10.0
"""How long a model server that is up may take to answer with a new champion; it takes less than one."""

ANSWER_SECONDS: Final = 2.0
"""After which it is asked again."""


def build_deployment(pipeline: Pipeline) -> list[dg.AssetsDefinition]:
    """The champion, proven to answer as in training, and seen in the answers of the model server if one is up."""

    @stage_asset(
        pipeline,
        "deployment",
        kinds={"onnx", "fastapi"},
        deps=[asset_key(pipeline.name, "champion")],
        description="The champion's files for serving, proven to answer as in training; a model server that is up "
        "follows by itself."
        + (f" Pushed to the Space {pipeline.spec.deployment.space}." if pipeline.spec.deployment.space else ""),
    )
    def deployment(context: dg.AssetExecutionContext, store: StoreResource) -> Iterator[dg.MaterializeResult[Any]]:
        from mlops_assets.serving.contract import ContractError
        from mlops_assets.serving.slot import Unservable
        from mlops_assets.serving.watcher import NoChampion, champion_slot

        with plain_failures():
            run = StageRun.start(context, pipeline, "deployment", store)
            if run.nothing_to_do():
                log.info("%s: unchanged, nothing to deploy", run.name)
                return
            digest = run.state["champion"].digest
            try:
                slot = champion_slot(settings(), run.pipeline)
            except (NoChampion, Unservable, ContractError) as error:  # no fault of this run, and another mends nothing
                log.warning("%s: %s", run.name, error)
                result = run.result(digest, {"outcome": str(error)})
            else:
                log.info("%s: version %d answers as in training", run.name, slot.version)
                result = run.result(digest, {**_described(slot), **_seen(slot), **_pushed(run.pipeline, slot)})
        yield result

    return [deployment]


def _described(slot: "Slot") -> dict[str, Any]:
    here, contract = settings(), slot.contract
    metadata: dict[str, Any] = {
        "version": slot.version,
        "answers": dg.MetadataValue.url(f"{here.serve_page}/docs"),
        "raw columns": ", ".join(one.name for one in contract.inputs) or "images",
        "time for a row, ms": round(slot.row_seconds * 1000, 3),
    }
    if slot.accuracy:
        estimate, lower, upper = slot.accuracy
        metadata["accuracy"] = f"{estimate:.3f} [{lower:.3f}, {upper:.3f}]"
    return metadata


def _seen(slot: "Slot") -> dict[str, Any]:
    """Whether the model server answers with the version; a server that is not up will when it starts."""
    import httpx

    url, deadline = f"{settings().serve_url}/v2/models/{slot.pipeline}", time.monotonic() + SERVER_SECONDS
    while True:
        try:
            told = httpx.get(url, timeout=ANSWER_SECONDS, trust_env=False).json()
        except httpx.ReadTimeout:
            told = "it is up, and too busy to say"
        except (httpx.HTTPError, ValueError):
            return {"model server": "not up; it answers with this version as soon as it starts"}
        versions = told.get("versions", []) if isinstance(told, dict) else []
        if str(slot.version) in versions:
            log.info("%s/deployment: version %d answers at %s", slot.pipeline, slot.version, settings().serve_url)
            return {"model server": f"answers with version {slot.version}"}
        if time.monotonic() > deadline:
            log.warning("%s/deployment: the model server does not answer with version %d", slot.pipeline, slot.version)
            return {"model server": f"does not answer with version {slot.version}: {told}"}
        time.sleep(0.1)


def _pushed(pipeline: Pipeline, slot: "Slot") -> dict[str, Any]:
    """Push to the pipeline's Space, if it has one; without a token, say so.

    Raises:
        SpaceError: The Hub cannot be reached, or refuses.
    """
    space, token = pipeline.spec.deployment.space, os.environ.get("HF_TOKEN", "")
    if not space:
        return {}
    if not token:
        return {"Space": f"{space} is as it was: there is no token in HF_TOKEN"}
    from mlops_assets.deploy.space import build, fresh, push

    folder = settings().home / "spaces" / pipeline.name
    with fresh(folder) as made:
        build(slot, made, pipeline.spec.description)
    pushed = push(folder, space, token)
    return {"Space": dg.MetadataValue.url(pushed.url), "files pushed": pushed.files}
