"""`batch`: files scored by a served version against a script by hand that reads all, scores and writes all.

An MLP over a table in Parquet, and a small CNN over images of 8 x 8 pixels in an idx file; each measurement is a fresh
process, timed from the loading of its model to the last byte written, without the imports. Of ours the peak memory is
also taken for four times the rows: it must not grow with the file.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from benchmarks.figures import Figure, Result
from benchmarks.project import CHECKOUT, BenchmarkFailed, Project, copied_project

if TYPE_CHECKING:
    from numpy.typing import NDArray

ROWS: Final = 1_000_000
LARGER: Final = 4
"""How many times as many rows the second file has."""
MOST_LARGER_RUNS: Final = 3
THREADS: Final = os.cpu_count() or 1
TARGET: Final = 1 / 0.9
"""Times the seconds of the script by hand: nine tenths of its rows a second."""
MEMORY_TARGET: Final = 1.1
COLUMNS: Final = tuple(f"x{number}" for number in range(8))
SIDE: Final = 8
CLASSES: Final = tuple(str(index) for index in range(10))
TOLERANCE: Final = 1e-4

OURS: Final = """
import json, resource, sys, time
from pathlib import Path
import onnxruntime, polars, pyarrow.parquet
from mlops_assets.serving import batch
from mlops_assets.serving.pointer import read_pointer
from mlops_assets.serving.slot import Slot
served, source, target = map(Path, sys.argv[1:])
began = time.perf_counter()
pointer = read_pointer(served / "current.json")
slot = Slot.load(served / pointer.key, pointer)
scored = batch.score(slot, source, target)
seconds = time.perf_counter() - began
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
print(json.dumps({"seconds": seconds, "peak": peak, "rows": scored.rows}))
"""

Node = tuple[str, list[str], str, dict[str, Any]]
"""Operator, inputs, output and options."""

FEATURES: Final = {
    "table": "def features(frame):\n    return frame\n",
    "images": "def features(images):\n    return images\n",
}


def measure(runs: int) -> Result:
    figures: list[Figure] = []
    with copied_project() as project:
        for kind, what in (("table", "MLP over 8 columns"), ("images", "CNN over 8 x 8 images")):
            figures += _measured(project, kind, what, runs)
    note = (
        f"{ROWS:,} rows, {THREADS} threads; nine tenths of the bare script's rows a second are 1.11 times its seconds; "
        f"both write the same probabilities to {TOLERANCE:g}"
    )
    return Result(figures, notes=[note])


def _measured(project: Project, kind: str, what: str, runs: int) -> list[Figure]:
    bare = Figure(f"{what}: a script that reads all, scores and writes")
    ours = Figure(f"{what}: scored by a served version", against=bare, target=TARGET)
    bare_peak = Figure(f"{what}: peak memory of the script", "MiB")
    peak = Figure(f"{what}: our peak memory", "MiB", against=bare_peak)
    larger = Figure(f"{what}: our peak memory, {LARGER} times the rows", "MiB", against=peak, target=MEMORY_TARGET)
    served = _serve(project.home, kind)
    one, four = (_write(project.folder, kind, rows) for rows in (ROWS, LARGER * ROWS))
    script, model = str(CHECKOUT / "benchmarks" / "bare_batch.py"), str(next(served.glob("*/model.onnx")))
    theirs, target = project.folder / "theirs.parquet", project.folder / "ours.parquet"
    for number in range(runs):
        told = _told(project, script, kind, str(one), model, str(theirs), str(THREADS))
        bare.add(told["seconds"])
        bare_peak.add(told["peak"])
        told = _told(project, "-c", OURS, str(served), str(one), str(target))
        ours.add(told["seconds"])
        peak.add(told["peak"])
        if not number:
            _compare(theirs, target)
        if number < MOST_LARGER_RUNS:
            larger.add(_told(project, "-c", OURS, str(served), str(four), str(target))["peak"])
    return [bare, ours, bare_peak, peak, larger]


def _told(project: Project, *arguments: str) -> dict[str, float]:
    told: dict[str, float] = json.loads(project.run(*arguments).splitlines()[-1])
    return told


def _compare(theirs: Path, ours: Path) -> None:
    """Refuse to compare times of different work."""
    import polars as pl

    names = [f"p_{one}" for one in CLASSES]
    expected, found = (pl.read_parquet(path, columns=names).to_numpy() for path in (theirs, ours))
    if expected.shape != found.shape or not np.allclose(expected, found, atol=TOLERANCE):
        raise BenchmarkFailed("the two did not write the same probabilities")


def _write(folder: Path, kind: str, rows: int) -> Path:
    """A file to score, written in parts, so that this process stays small."""
    import polars as pl
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    random, part = np.random.default_rng(0), 1 << 18
    starts = range(0, rows, part)
    if kind == "images":
        path = folder / f"{rows}-images-idx3-ubyte"
        with path.open("wb") as file:
            file.write(bytes([0, 0, 8, 3]) + b"".join(side.to_bytes(4, "big") for side in (rows, SIDE, SIDE)))
            for start in starts:
                file.write(random.bytes(min(part, rows - start) * SIDE * SIDE))
        return path
    path, writer = folder / f"{rows}.parquet", None
    for start in starts:
        count = min(part, rows - start)
        values = {name: random.normal(size=count) for name in COLUMNS}
        table = pl.DataFrame({"id": np.arange(start, start + count), **values}).to_arrow()
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
    assert writer
    writer.close()
    return path


def _serve(home: Path, kind: str) -> Path:
    """Unpack a version as a server has it; returns the folder of its pipeline."""
    from mlops_assets.serving.contract import Contract, RawContract, key_of
    from mlops_assets.serving.pointer import Pointer, unpack, write_pointer
    from mlops_assets.training.predict import predict

    model = _mlp() if kind == "table" else _cnn()
    rows = np.random.default_rng(1)
    raw: dict[str, Any] = {
        "pipeline": kind,
        "kind": kind,
        "key": "id" if kind == "table" else "key",
        "key_type": "Int64" if kind == "table" else "String",
        "target": "label",
        "sources": {f"{kind}/features.py": FEATURES[kind]},
        "functions": {"features": "features.py:features", "schema": "features.py:features"},
    }
    x: NDArray[Any]
    if kind == "table":
        x = rows.normal(size=(3, len(COLUMNS))).astype(np.float32)
        raw["inputs"] = [{"name": name, "dtype": "Float64"} for name in COLUMNS]
        raw["sample"] = [dict(zip(COLUMNS, row, strict=True)) for row in x.tolist()]
    else:
        x = rows.integers(0, 256, (3, SIDE, SIDE, 1), dtype=np.uint8)
        raw |= {"inputs": [], "images": {"layout": "idx", "mode": "L"}, "image_shape": x.shape[1:]}
        raw["sample"] = [base64.b64encode(one.tobytes()).decode() for one in x]
    contract = Contract.of(
        RawContract.model_validate(raw),
        classes=CLASSES,
        features=COLUMNS if kind == "table" else (),
        shape=x.shape[1:],
        onnx=hashlib.sha256(model).hexdigest(),
        answers=predict(model, x).tolist(),
    )
    folder = unpack(home, kind, contract.to_bytes(), model)
    pointer = Pointer(
        pipeline=kind, key=key_of(contract), version=1, run_id="", model_digest=contract.onnx, alias="champion"
    )
    write_pointer(home, pointer)
    return folder.parent


def _mlp() -> bytes:
    """Two hidden layers of 64."""
    weights, name = _Weights(), "input"
    nodes: list[Node] = []
    for number, (inputs, outputs) in enumerate(((len(COLUMNS), 64), (64, 64), (64, len(CLASSES)))):
        last = outputs == len(CLASSES)
        nodes.append(("Gemm", [name, *weights.dense(inputs, outputs)], "logits" if last else f"h{number}", {}))
        if not last:
            nodes.append(("Relu", [f"h{number}"], f"r{number}", {}))
            name = f"r{number}"
    return weights.model(nodes, "float", [len(COLUMNS)])


def _cnn() -> bytes:
    """Two convolutions of 3 x 3 with 16 and 32 channels, each halved by pooling, and one dense layer."""
    weights = _Weights()
    same, halved = {"pads": [1, 1, 1, 1]}, {"kernel_shape": [2, 2], "strides": [2, 2]}
    nodes: list[Node] = [
        ("Cast", ["input"], "floats", {"to": 1}),
        ("Mul", ["floats", weights.add(np.array(1 / 255, np.float32))], "scaled", {}),
        ("Transpose", ["scaled"], "planes", {"perm": [0, 3, 1, 2]}),
        ("Conv", ["planes", *weights.convolution(1, 16)], "c0", same),
        ("Relu", ["c0"], "r0", {}),
        ("MaxPool", ["r0"], "p0", halved),
        ("Conv", ["p0", *weights.convolution(16, 32)], "c1", same),
        ("Relu", ["c1"], "r1", {}),
        ("MaxPool", ["r1"], "p1", halved),
        ("Flatten", ["p1"], "flat", {}),
        ("Gemm", ["flat", *weights.dense(128, len(CLASSES))], "logits", {}),
    ]
    return weights.model(nodes, "uint8", [SIDE, SIDE, 1])


class _Weights:
    """Random weights of a network, and the ONNX model that they make with its nodes."""

    def __init__(self) -> None:
        self._random = np.random.default_rng(0)
        self._tensors: list[Any] = []

    def add(self, values: NDArray[np.float32]) -> str:
        from onnx import numpy_helper

        name = f"w{len(self._tensors)}"
        self._tensors.append(numpy_helper.from_array(values, name))
        return name

    def dense(self, inputs: int, outputs: int) -> list[str]:
        values = self._random.normal(size=(inputs, outputs)) / np.sqrt(inputs)
        return [self.add(values.astype(np.float32)), self.add(np.zeros(outputs, np.float32))]

    def convolution(self, inputs: int, outputs: int) -> list[str]:
        values = self._random.normal(size=(outputs, inputs, 3, 3)) / np.sqrt(9 * inputs)
        return [self.add(values.astype(np.float32)), self.add(np.zeros(outputs, np.float32))]

    def model(self, nodes: list[Node], kind: str, shape: list[int]) -> bytes:
        from onnx import TensorProto, helper

        made = helper.make_graph(
            [helper.make_node(operator, inputs, [output], **options) for operator, inputs, output, options in nodes],
            "benchmark",
            [helper.make_tensor_value_info("input", getattr(TensorProto, kind.upper()), ["batch", *shape])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(CLASSES)])],
            self._tensors,
        )
        model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        data: bytes = model.SerializeToString()
        return data
