"""Models of 8 bits: made by the kind of network, and let through only when the gate allows what they lose."""

import logging
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from mlops_assets.deploy.quantize import (
    CONDITION,
    QuantizationRefused,
    QuantizeError,
    judge,
    latency_ratio,
    quantize,
    require_allowed,
)
from mlops_assets.gate.condition import ConditionError
from mlops_assets.training.predict import predict

CLASSES = tuple("abcd")
CHANNELS, SIDE = 16, 8


class Network(NamedTuple):
    """A trained network, and rows that it has not seen."""

    model: bytes
    train: NDArray[Any]
    x: NDArray[Any]
    y: NDArray[np.int64]


def scans(rows: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Noisy pictures of four kinds."""
    kinds = np.random.default_rng(0).integers(40, 216, (len(CLASSES), SIDE, SIDE, 1))
    random = np.random.default_rng(seed)
    y = random.integers(0, len(CLASSES), rows)
    return (kinds[y] + random.normal(0, 90, (rows, SIDE, SIDE, 1))).clip(0, 255).astype(np.uint8), y


def onnx_file(nodes: list[Any], weights: dict[str, NDArray[np.float32]], kind: int, shape: tuple[int, ...]) -> bytes:
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("input", kind, ["batch", *shape])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(CLASSES)])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def fitted(hidden: NDArray[np.float32], y: NDArray[np.int64]) -> NDArray[np.float32]:
    """A last layer, by ridge regression."""
    products = hidden.T @ hidden
    products[np.diag_indices(len(products))] += products.trace() / 1000
    return np.linalg.solve(products, hidden.T @ (4 * np.eye(len(CLASSES), dtype=np.float32)[y])).astype(np.float32)


@pytest.fixture(scope="module")
def convolutions() -> Network:
    """Random convolutions over scans with a fitted last layer."""
    random = np.random.default_rng(1)
    train, labels = scans(1200, 2)
    weights = {
        "kernels": (random.normal(size=(CHANNELS, 1, 3, 3)) / 3).astype(np.float32),
        "scale": np.array(255, np.float32),
        "last": np.zeros((CHANNELS * SIDE * SIDE, len(CLASSES)), np.float32),
    }
    nodes = [
        helper.make_node("Cast", ["input"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["floats", "scale"], ["scaled"]),
        helper.make_node("Transpose", ["scaled"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["planes", "kernels"], ["maps"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["maps"], ["lit"]),
        helper.make_node("Flatten", ["lit"], ["rows"], axis=1),
        helper.make_node("MatMul", ["rows", "last"], ["logits"]),
    ]
    padded = np.pad(train[..., 0] / np.float32(255), ((0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    maps = np.maximum(np.einsum("nhwij,cij->nchw", windows, weights["kernels"][:, 0]), 0)
    weights["last"] = fitted(maps.reshape(len(train), -1), labels)
    model = onnx_file(nodes, weights, TensorProto.UINT8, (SIDE, SIDE, 1))
    return Network(model, train, *scans(600, 3))


@pytest.fixture(scope="module")
def layers() -> Network:
    """A hidden layer over the same as rows of floats, written as PyTorch exports it."""
    random = np.random.default_rng(4)
    (train, labels), (x, y) = scans(1200, 2), scans(600, 3)
    first = (random.normal(size=(128, SIDE * SIDE)) / SIDE).astype(np.float32)
    flat, unseen = ((one.reshape(len(one), -1) / 255).astype(np.float32) for one in (train, x))
    hidden = np.maximum(flat @ first.T, 0)
    weights = {
        "first": first,
        "bias": np.zeros(128, np.float32),
        "last": np.ascontiguousarray(fitted(hidden, labels).T),
        "ground": np.zeros(len(CLASSES), np.float32),
    }
    nodes = [
        helper.make_node("Gemm", ["input", "first", "bias"], ["sums"], transB=1),
        helper.make_node("Relu", ["sums"], ["lit"]),
        helper.make_node("Gemm", ["lit", "last", "ground"], ["logits"], transB=1),
    ]
    return Network(onnx_file(nodes, weights, TensorProto.FLOAT, (SIDE * SIDE,)), flat, unseen, y)


def judged(new: bytes, network: Network, rows: int, condition: str = CONDITION) -> Any:
    x, y = network.x[:rows], network.y[:rows]
    return judge(new, network.model, x, y, classes=CLASSES, condition=condition, reliability=0.95)


def operations(model: bytes) -> set[str]:
    return {node.op_type for node in onnx.load_model_from_string(model).graph.node}


def test_convolutions_are_quantised_statically_and_stay_good(convolutions: Network) -> None:
    handlers = list(logging.getLogger().handlers)
    made = quantize(convolutions.model, convolutions.train)
    assert {"QuantizeLinear", "DequantizeLinear", "Conv"} <= operations(made.model)
    assert made.method.startswith("static, ")
    assert "from 512 training rows" in made.method
    assert len(made.model) < 0.5 * len(convolutions.model)
    found = judged(made.model, convolutions, 600)
    assert found.old > 0.9
    assert abs(found.new - found.old) < 0.01
    assert found.new == (predict(made.model, convolutions.x).argmax(axis=1) == convolutions.y).mean()
    assert found.rows == 600
    require_allowed(found)
    assert logging.getLogger().handlers == handlers


def test_matrix_products_are_quantised_dynamically_and_stay_good(layers: Network) -> None:
    handlers = list(logging.getLogger().handlers)
    made = quantize(layers.model, layers.train)
    assert {"DynamicQuantizeLinear", "MatMulInteger"} <= operations(made.model)
    assert made.method.startswith("dynamic, ")
    assert len(made.model) < 0.5 * len(layers.model)
    found = judged(made.model, layers, 600)
    assert found.old > 0.9
    require_allowed(found)
    assert logging.getLogger().handlers == handlers


def test_quantising_is_deterministic(convolutions: Network) -> None:
    assert (
        quantize(convolutions.model, convolutions.train).model == quantize(convolutions.model, convolutions.train).model
    )


def test_too_few_rows_allow_nothing(convolutions: Network) -> None:
    found = judged(convolutions.model, convolutions, 40)
    assert found.decision.verdict == "unknown"
    with pytest.raises(QuantizationRefused) as refused:
        require_allowed(found)
    said = str(refused.value)
    assert f"accuracy {found.new:.4f} after and {found.old:.4f} before quantisation on 40 validation rows" in said
    assert "n - o > -0.02 is undecided" in said
    assert "more validation rows like these would decide it" in said
    assert "--condition" in said
    require_allowed(judged(convolutions.model, convolutions, 40, "n - o > -0.2"))


def test_a_worse_model_is_refused_however_many_rows_there_are(convolutions: Network) -> None:
    broken = onnx.load_model_from_string(convolutions.model)
    (last,) = (one for one in broken.graph.initializer if one.name == "last")
    last.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(last)[::-1].copy(), "last"))
    found = judged(broken.SerializeToString(), convolutions, 600)
    assert found.decision.verdict == "false"
    with pytest.raises(QuantizationRefused, match=r"n - o > -0\.02 fails: difference -0\.\d+"):
        require_allowed(found)


def test_a_condition_is_the_gates_language(convolutions: Network) -> None:
    with pytest.raises(ConditionError):
        judged(convolutions.model, convolutions, 40, "n - o >> 1")
    found = judged(convolutions.model, convolutions, 600, "n - o > -0.02 and d < 0.02 and n.f1_a > 0.8")
    assert found.decision.promote


def test_what_cannot_be_quantised_is_one_sentence(convolutions: Network) -> None:
    with pytest.raises(QuantizeError, match=r"ONNX Runtime cannot quantise this model .*; use --target onnx") as raised:
        quantize(b"no model", convolutions.train)
    assert "\n" not in str(raised.value)
    with pytest.raises(QuantizeError, match="there are no validation rows"):
        judged(convolutions.model, convolutions, 0)


def test_the_latency_of_a_model_is_compared_with_another(convolutions: Network, layers: Network) -> None:
    ratio = latency_ratio(convolutions.model, convolutions.model, convolutions.x[:1])
    assert ratio > 0
    assert np.isfinite(ratio)
