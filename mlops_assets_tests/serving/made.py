"""Versions to serve, made in milliseconds: linear models over a few columns, or over small images."""

import base64
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlops_assets.registry.aliases import register
from mlops_assets.serving.config import ServingSpec
from mlops_assets.serving.contract import Contract, RawContract, key_of
from mlops_assets.serving.pointer import Accuracy, Pointer, unpack, write_pointer
from mlops_assets.serving.slot import Slot
from mlops_assets.serving.watcher import CONTRACT_ARTIFACT, MODEL_ARTIFACT
from mlops_assets.tracking import tags as keys
from mlops_assets.tracking.runs import Tracking

TABLE_CLASSES = ("setosa", "versicolor", "virginica")
TABLE_SAMPLE = (
    {"length": 5.1, "width": 3.5, "count": 3, "colour": "red"},
    {"length": 6.2, "width": 2.2, "count": 1, "colour": "blue"},
    {"length": 4.0, "width": 1.0, "count": 7, "colour": None},
)
TABLE_FEATURES = '''
"""Features."""

import polars as pl

from .helpers import product


def features(frame: pl.DataFrame) -> pl.DataFrame:
    """Two lengths, their product, and whether the colour is red."""
    return frame.select(
        "id", "species", "length", "width", area=product("length", "width"),
        red=pl.col("colour").eq_missing("red").cast(pl.Int8),
    )
'''
HELPERS = '''
"""Helpers."""

import polars as pl


def product(one: str, other: str) -> pl.Expr:
    """The product of two columns."""
    return pl.col(one) * pl.col(other)
'''
TABLE_SCHEMA = '''
"""Schema."""

import pandera.polars as pa
import polars as pl


def schema() -> pa.DataFrameSchema:
    """The columns."""
    return pa.DataFrameSchema(
        {
            "id": pa.Column(pl.Int64),
            "length": pa.Column(pl.Float64, pa.Check.in_range(0, 15, include_min=False)),
            "width": pa.Column(pl.Float64, pa.Check.in_range(0, 15, include_min=False)),
            "count": pa.Column(pl.Int64, pa.Check.ge(0)),
            "colour": pa.Column(pl.String, pa.Check.isin(["red", "blue"]), nullable=True),
            "species": pa.Column(pl.String),
        }
    )
'''
IMAGE_CLASSES = tuple(str(digit) for digit in range(10))
IMAGE_FEATURES = '''
"""Features."""

import numpy as np


def features(images: np.ndarray) -> np.ndarray:
    """The images as they are."""
    return images
'''


def onnx_model(weights: NDArray[np.float32], *, images: tuple[int, ...] = ()) -> bytes:
    """A linear model with the logits `x @ weights`, of rows of floats or of uint8 images of a shape.

    Args:
        weights: Shape (features, classes).
        images: Height, width and channels, or nothing.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    kind = TensorProto.UINT8 if images else TensorProto.FLOAT
    shape = ["batch", *(images or weights.shape[:1])]
    flat = [
        helper.make_node("Cast", ["input"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["floats"], ["rows"], axis=1),
    ]
    nodes = [*(flat if images else []), helper.make_node("MatMul", ["rows" if images else "input", "w"], ["logits"])]
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("input", kind, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", weights.shape[1]])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data


def table_contract(seed: int = 1, **changed: Any) -> tuple[Contract, bytes]:
    """The contract and ONNX file of a version of `flowers`; another seed is another model."""
    weights = np.random.default_rng(seed).normal(size=(4, 3)).astype(np.float32)
    raw = {
        "pipeline": "flowers",
        "kind": "table",
        "inputs": [
            {"name": "length", "dtype": "Float64", "checks": [_in_range()]},
            {"name": "width", "dtype": "Float64", "checks": [_in_range()]},
            {
                "name": "count",
                "dtype": "Int64",
                "required": False,
                "checks": [{"name": "greater_than_or_equal_to", "statistics": {"min_value": 0}}],
            },
            {
                "name": "colour",
                "dtype": "String",
                "nullable": True,
                "checks": [{"name": "isin", "statistics": {"allowed_values": ["red", "blue"]}}],
            },
        ],
        "key": "id",
        "key_type": "Int64",
        "target": "species",
        "sources": {
            "flowers/features.py": TABLE_FEATURES,
            "flowers/helpers.py": HELPERS,
            "flowers/schema.py": TABLE_SCHEMA,
        },
        "functions": {"features": "features.py:features", "schema": "schema.py:schema"},
        "sample": TABLE_SAMPLE,
        **changed,
    }
    x = np.array(
        [
            [row["length"], row["width"], row["length"] * row["width"], row["colour"] == "red"]  # type: ignore[operator]
            for row in TABLE_SAMPLE
        ],
        dtype=np.float32,
    )
    names = ("length", "width", "area", "red")
    return _trained(raw, onnx_model(weights), x @ weights, classes=TABLE_CLASSES, features=names, shape=(4,))


def image_contract(seed: int = 1, **changed: Any) -> tuple[Contract, bytes]:
    """The contract and ONNX file of a version of `scans`; another seed is another model."""
    random = np.random.default_rng(seed)
    shape = (8, 8, 1)
    weights = (random.normal(size=(64, 10)) / 500).astype(np.float32)
    images = np.random.default_rng(7).integers(0, 256, size=(3, *shape), dtype=np.uint8)
    raw = {
        "pipeline": "scans",
        "kind": "images",
        "inputs": [
            {
                "name": "mean",
                "dtype": "Float32",
                "checks": [_in_range(5, 250)],
                "required": False,
            }
        ],
        "images": {"layout": "folder", "mode": "L"},
        "image_shape": shape,
        "key": "key",
        "target": "label",
        "sources": {"scans/features.py": IMAGE_FEATURES, "scans/schema.py": TABLE_SCHEMA},
        "functions": {"features": "features.py:features", "schema": "schema.py:schema"},
        "sample": [base64.b64encode(one.tobytes()).decode() for one in images],
        **changed,
    }
    logits = images.reshape(3, -1).astype(np.float32) @ weights
    return _trained(raw, onnx_model(weights, images=shape), logits, classes=IMAGE_CLASSES, features=(), shape=shape)


def publish(
    home: Path, contract: Contract, model: bytes, *, version: int = 1, serving: ServingSpec | None = None
) -> Pointer:
    """Let a version answer for its pipeline."""
    unpack(home, contract.pipeline, contract.to_bytes(), model)
    pointer = Pointer(
        pipeline=contract.pipeline,
        key=key_of(contract),
        version=version,
        run_id=f"run{version}",
        model_digest=f"{version:032x}",
        alias="champion",
        accuracy=Accuracy(estimate=0.95, lower=0.91, upper=0.98),
        serving=serving or ServingSpec(),
    )
    write_pointer(home, pointer)
    return pointer


def publish_table(home: Path, version: int = 1, *, serving: ServingSpec | None = None, **changed: Any) -> Pointer:
    """Let a version of `flowers` answer; each version has weights of its own."""
    return publish(home, *table_contract(version, **changed), version=version, serving=serving)


def publish_images(home: Path, version: int = 1, *, serving: ServingSpec | None = None, **changed: Any) -> Pointer:
    """Let a version of `scans` answer; each version has weights of its own."""
    return publish(home, *image_contract(version, **changed), version=version, serving=serving)


def loaded(home: Path, pointer: Pointer) -> Slot:
    """The slot of a published version."""
    return Slot.load(home / "serving" / pointer.pipeline / pointer.key, pointer)


def _in_range(low: float = 0, high: float = 15) -> dict[str, Any]:
    told = {"min_value": low, "max_value": high, "include_min": False, "include_max": True}
    return {"name": "in_range", "statistics": told}


def _trained(
    raw: dict[str, Any],
    model: bytes,
    logits: NDArray[Any],
    *,
    classes: tuple[str, ...],
    features: tuple[str, ...],
    shape: tuple[int, ...],
) -> tuple[Contract, bytes]:
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    contract = Contract.of(
        RawContract.model_validate(raw),
        classes=classes,
        features=features,
        shape=shape,
        onnx=hashlib.sha256(model).hexdigest(),
        answers=(shares / shares.sum(axis=1, keepdims=True)).tolist(),
    )
    return contract, model


def register_version(
    tracking: Tracking, folder: Path, contract: Contract, model: bytes, *, tags: dict[str, str] | None = None
) -> int:
    """Register a version of a contract's pipeline, with the files and tags that a training leaves.

    Args:
        tracking: Where.
        folder: An empty folder, or one that an earlier call had.
        contract: Its contract.
        model: Its ONNX file.
        tags: Instead of those that a training sets.
    """
    files = folder / "logged"
    files.mkdir(exist_ok=True)
    (files / "MLmodel").write_text("flavors: {}\n")
    data = contract.to_bytes()
    with tracking.training_run(experiment=contract.pipeline, name="fit", params={}, tags={}) as run:
        logged = tracking.client.create_logged_model(run.experiment_id, "model", run.run_id)
        tracking.client.log_model_artifacts(logged.model_id, str(files))
        run.log_artifact(MODEL_ARTIFACT, model)
        run.log_artifact(CONTRACT_ARTIFACT, data)
    told = {"test_accuracy": 0.9, "test_accuracy_lower": 0.8, "test_accuracy_upper": 0.95}
    tracking.log_evaluation(run.run_id, metrics=told, tags={}, artifacts={})
    if tags is None:
        tags = {
            keys.CONTRACT: hashlib.sha256(data).hexdigest(),
            keys.MODEL_DIGEST: contract.onnx[:32],
            keys.RECIPE: "r",
        }
    return register(tracking, name=contract.pipeline, model_uri=logged.model_uri, tags=tags).number
