"""The serving contract of a pipeline's versions: begun when the features are made, completed when a model is trained.

Belongs here: gathering what it takes from a pipeline and its stages. Not here: what a contract is
(`serving/contract.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from mlops_assets.functions import call
from mlops_assets.pipeline import Pipeline
from mlops_assets.serving import CONTRACT
from mlops_assets.store import Entry

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
    from numpy.typing import NDArray

SAMPLE_FEATURES: Final = "contract.safetensors"
"""The features of the contract's sample rows."""


def begun(
    pipeline: Pipeline,
    frame: pl.DataFrame,
    made: Any,
    pixels: NDArray[np.uint8] | None,
    function: Callable[..., Any],
) -> dict[str, bytes]:
    """The files that a features entry keeps for serving.

    A pipeline whose rows cannot be answered one by one is trained and evaluated all the same; its contract says why.

    Args:
        pipeline: The pipeline, as it is on disk.
        frame: The dataset.
        made: What the features function made: a table, or images.
        pixels: The raw images, or None for a table.
        function: The features function.
    """
    from safetensors.numpy import save

    from mlops_assets.serving import contract_making
    from mlops_assets.serving.contract import ContractError

    spec = pipeline.spec
    data, sources, problem = spec.data, dict[str, str](), ""
    try:
        files = [pipeline.function_file("features"), pipeline.function_file("schema")]
        sources = contract_making.collect_sources(files, pipeline.folder.parent)
    except ContractError as error:
        problem = str(error)
    known: dict[str, Any] = {
        "pipeline": pipeline.name,
        "sources": sources,
        "functions": {"features": spec.functions.features, "schema": spec.functions.schema_},
        "schema": call(pipeline.function("schema")),
        "key": data.key,
        "target": data.target,
        "features": function,
    }
    x: Any
    if pixels is not None:
        assert data.images is not None
        raw, x = contract_making.images_contract(pixels=pixels, made=made, table=frame, images=data.images, **known)
    else:
        ignored = [spec.split.column] if spec.split.column else []
        raw, x = contract_making.table_contract(
            frame=frame, made=made, ignored=ignored, left_out=spec.serving.log.leave_out, **known
        )
    if problem:
        raw = raw.model_copy(update={"unservable": problem, "sample": ()})
    return {CONTRACT: raw.to_bytes(), SAMPLE_FEATURES: save({"x": x.copy()})}


def completed(
    features: Entry, *, classes: Sequence[str], names: Sequence[str], shape: Sequence[int], onnx: bytes, network: str
) -> bytes:
    """The contract of a trained model, as JSON.

    Args:
        features: The stored features that it was trained on.
        classes: In the order of its outputs.
        names: Of the feature columns.
        shape: Of one row of what it takes.
        onnx: The exported model.
        network: The SHA-256 of that.
    """
    from safetensors.numpy import load

    from mlops_assets.serving.contract import Contract, RawContract
    from mlops_assets.training.predict import predict

    raw = RawContract.model_validate_json(features.read(CONTRACT))
    answers = [] if raw.unservable else predict(onnx, load(features.read(SAMPLE_FEATURES))["x"]).tolist()
    trained: Mapping[str, Any] = {"classes": classes, "features": names, "shape": shape, "onnx": network}
    return Contract.of(raw, **trained, answers=answers).to_bytes()
