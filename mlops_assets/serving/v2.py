"""The Open Inference Protocol v2: its tensors, over plain bytes.

Belongs here: datatypes, tensors from JSON's values and from raw bytes, what a pipeline's tensors are, the documents
about models. Not here: how requests carry them over HTTP (`http_v2.py`) and over gRPC (`grpc_v2.py`).

A table takes one tensor for each raw column, of shape [n] or [n, 1]; images come as one tensor `input`, UINT8
[n, height, width, channels]. Answers have `probabilities`, FP32 [n, classes], and `label`, BYTES [n].

Raw tensors are viewed where they lie in the body, never copied: they live as long as the body does, and are read-only.
The specification: https://github.com/kserve/open-inference-protocol, and for the binary form
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from math import nan, prod
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from mlops_assets.errors import MlopsError
from mlops_assets.serving.checks import shown

if TYPE_CHECKING:
    from mlops_assets.serving.slot import Answer, Batch, Slot

DATATYPES: Final[Mapping[str, np.dtype[Any]]] = {
    "BOOL": np.dtype("?"),
    "UINT8": np.dtype("<u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("<i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BYTES": np.dtype("O"),
}
"""NumPy's type of each datatype; BYTES is an array of objects, each a text or bytes."""

IMAGES: Final = "input"
"""The one tensor that a pipeline of images takes."""

PROBABILITIES: Final = "probabilities"
LABEL: Final = "label"
OUTPUTS: Final = (PROBABILITIES, LABEL)

_CODES: Final[Mapping[str, str]] = {
    "UINT16": "H",
    "UINT32": "I",
    "UINT64": "Q",
    "INT8": "b",
    "INT16": "h",
    "INT32": "i",
    "INT64": "q",
    "FP16": "f",
    "FP32": "f",
    "FP64": "d",
}
"""Of `array.array`, which refuses fractions and what is out of range where NumPy would round and wrap."""

_OF_COLUMNS: Final[Mapping[str, str]] = {
    **{f"{kind}{bits}": f"{kind.upper()}{bits}" for kind in ("Int", "UInt") for bits in (8, 16, 32, 64)},
    "Float32": "FP32",
    "Float64": "FP64",
    "Boolean": "BOOL",
}
"""The datatype of a Polars column; every other kind (texts, dates, decimals) travels as BYTES of text."""

_MOST_DIMENSIONS: Final = 8
_MOST_ELEMENTS: Final = 1 << 31
_LENGTH: Final = struct.Struct("<I")


class V2Error(MlopsError):
    """A request that is not of the protocol, or does not fit the model; the sentence names the tensor.

    Args:
        sentence: What is wrong, and where.
        tensor: Name of the input or output that is wrong; empty when it is the request as a whole.
    """

    def __init__(self, sentence: str, tensor: str = "") -> None:
        super().__init__(sentence)
        self.tensor = tensor


def to_batch(slot: Slot, tensors: Mapping[str, NDArray[Any]]) -> Batch:
    """Valid raw rows from a request's tensors; NaN stands for a value that is not there, as the protocol has no null.

    Raises:
        InvalidInput: A tensor is missing, unknown, or of another shape or type, or a value is refused.
    """
    if slot.contract.kind == "images":
        return slot.from_columns(tensors)
    return slot.from_columns({name: _without_nan(name, tensor) for name, tensor in tensors.items()})


def _without_nan(name: str, tensor: NDArray[Any]) -> Any:
    if tensor.dtype.kind != "f" or not np.isnan(tensor).any():
        return tensor
    if tensor.ndim != 1 and not (tensor.ndim == 2 and tensor.shape[1] == 1):
        return tensor  # of no shape that a column has, which is said where columns are made

    import polars as pl

    return pl.Series(name, tensor.reshape(-1)).fill_nan(None)


def outputs(slot: Slot, answer: Answer, wanted: Iterable[str]) -> dict[str, NDArray[Any]]:
    """The wanted tensors of an answer: `probabilities` FP32 [n, classes], `label` BYTES [n] (texts).

    Raises:
        V2Error: There is no such output.
    """
    made: dict[str, NDArray[Any]] = {}
    for name in wanted:
        if name == PROBABILITIES:
            made[name] = answer.probabilities
        elif name == LABEL:
            made[name] = np.array(answer.labels, dtype=object)
        else:
            raise unknown_output(name, slot.pipeline)
    return made


def unknown_output(name: str, model: str = "") -> V2Error:
    """The refusal of an output that there is not."""
    whose = f"'{model}'" if model else "the model"
    return V2Error(f"output '{name}' is none of {whose}; there are {' and '.join(OUTPUTS)}", name)


def tensor_from_raw(name: str, datatype: str, shape: Sequence[int], raw: memoryview | bytes) -> NDArray[Any]:
    """A tensor over little-endian bytes in row-major order, not copied; of BYTES each has its 4-byte length before it.

    Raises:
        V2Error: Datatype or shape are not allowed, or the bytes are not as many as they ask for.
    """
    dtype, count = _dtype(name, datatype), _count(name, shape)
    if datatype == "BYTES":
        return _unpacked(name, count, memoryview(raw)).reshape(shape)
    if len(raw) != count * dtype.itemsize:
        raise V2Error(
            f"tensor '{name}' has {len(raw)} bytes, but {datatype} {list(shape)} takes {count * dtype.itemsize}", name
        )
    if datatype == "BOOL":  # a byte that is neither 0 nor 1 is no bool to NumPy
        truths: NDArray[np.bool_] = np.frombuffer(raw, np.uint8) != 0
        return truths.reshape(shape)
    return np.frombuffer(raw, dtype).reshape(shape)


def tensor_from_values(name: str, datatype: str, shape: Sequence[int], values: Sequence[Any]) -> NDArray[Any]:
    """A tensor of Python's numbers, booleans, texts or bytes: flat in row-major order, or nested as the shape says.

    Raises:
        V2Error: Datatype or shape are not allowed, the values are not as many, or one is not of the datatype.
    """
    dtype, count = _dtype(name, datatype), _count(name, shape)
    flat = _flat(name, shape, values) if values and isinstance(values[0], list) else values
    if len(flat) != count:
        raise V2Error(f"tensor '{name}' has {len(flat)} values, but shape {list(shape)} takes {count}", name)
    if datatype in {"BYTES", "BOOL"}:
        allowed = (str, bytes, type(None)) if datatype == "BYTES" else (bool,)
        for value in flat:
            if not isinstance(value, allowed):
                raise V2Error(f"tensor '{name}' is {datatype}, and {shown(value)} is none", name)
        made = np.empty(count, dtype)
        made[:] = flat
        return made.reshape(shape)
    try:
        return _numbers(datatype, flat).reshape(shape)
    except (TypeError, ValueError, OverflowError):
        wrong = next((value for value in flat if not _fits(datatype, value)), None)
    if wrong is None and dtype.kind == "f":
        return tensor_from_values(name, datatype, shape, [nan if value is None else value for value in flat])
    raise V2Error(f"tensor '{name}' is {datatype}, and {'null' if wrong is None else shown(wrong)} is none", name)


def _numbers(datatype: str, values: Sequence[Any]) -> NDArray[Any]:
    if datatype == "UINT8":
        return np.frombuffer(bytes(values), np.uint8)
    made = np.asarray(array(_CODES[datatype], values))
    if datatype != "FP16":
        return made
    with np.errstate(over="ignore"):  # infinite, and refused where values are
        return made.astype(np.float16)


def _fits(datatype: str, value: Any) -> bool:
    try:
        _numbers(datatype, [value])
    except (TypeError, ValueError, OverflowError):
        return False
    return True


def to_raw(tensor: NDArray[Any]) -> bytes:
    """A tensor as the binary form has it: little-endian, row-major; texts with their 4-byte lengths before them."""
    if tensor.dtype != object:
        return tensor.tobytes()
    encoded = (value if isinstance(value, bytes) else str(value).encode() for value in tensor.flat)
    return b"".join(chain.from_iterable((_LENGTH.pack(len(value)), value) for value in encoded))


def server_metadata(version: str) -> dict[str, Any]:
    """The document about the server; `version` is the platform's."""
    return {"name": "mlops_assets", "version": version, "extensions": ["binary_tensor_data", "model_repository(index)"]}


def model_metadata(slot: Slot) -> dict[str, Any]:
    """The document about a model: its tensors, and the classes in the order of `probabilities`."""
    contract = slot.contract
    if contract.kind == "images":
        inputs = [{"name": IMAGES, "datatype": "UINT8", "shape": [-1, *contract.image_shape]}]
    else:
        inputs = [
            {"name": one.name, "datatype": _OF_COLUMNS.get(one.dtype, "BYTES"), "shape": [-1]}
            for one in contract.inputs
        ]
    classes = list(contract.classes)
    return {
        "name": slot.pipeline,
        "versions": [str(slot.version)],
        "platform": "onnx_onnxv1",
        "inputs": inputs,
        "outputs": [
            {
                "name": PROBABILITIES,
                "datatype": "FP32",
                "shape": [-1, len(classes)],
                "parameters": {"classes": classes},
            },
            {"name": LABEL, "datatype": "BYTES", "shape": [-1]},
        ],
        "parameters": {"run_id": slot.run_id, "model_digest": slot.model_digest},
    }


def _dtype(name: str, datatype: str) -> np.dtype[Any]:
    dtype = DATATYPES.get(datatype)
    if dtype is None:
        known = ", ".join(DATATYPES)
        raise V2Error(f"tensor '{name}' has the datatype {shown(datatype)}, which is none of {known}", name)
    return dtype


def _count(name: str, shape: Sequence[int]) -> int:
    """How many elements there are: bounded, since NumPy would take a product that wraps for a small one."""
    if not 0 < len(shape) <= _MOST_DIMENSIONS or not all(type(one) is int and one >= 0 for one in shape):
        told = f"tensor '{name}' has shape {shown(list(shape))}"
        raise V2Error(f"{told}, which must be 1 to {_MOST_DIMENSIONS} whole numbers from 0", name)
    if prod(max(one, 1) for one in shape) > _MOST_ELEMENTS:
        raise V2Error(f"tensor '{name}' has shape {shown(list(shape))}, which is more than a request may hold", name)
    return prod(shape)


def _flat(name: str, shape: Sequence[int], values: Sequence[Any]) -> Sequence[Any]:
    for axis, size in enumerate(shape):
        if axis:
            if not all(isinstance(one, list) and len(one) == size for one in values):
                raise V2Error(f"tensor '{name}' is not nested as its shape {list(shape)} says", name)
            values = list(chain.from_iterable(values))
        elif len(values) != size:
            break
    return values


def _unpacked(name: str, count: int, view: memoryview) -> NDArray[Any]:
    """The elements of a BYTES tensor; memory is taken for no more of them than the bytes can hold."""
    made: list[bytes] = []
    position = 0
    while len(made) < count and position + _LENGTH.size <= len(view):
        start = position + _LENGTH.size
        position = start + _LENGTH.unpack_from(view, position)[0]
        made.append(bytes(view[start:position]))
    if len(made) != count or position != len(view):
        raise V2Error(
            f"tensor '{name}' must be {count} times a 4-byte length and as many bytes, in {len(view)} bytes altogether",
            name,
        )
    array_of = np.empty(count, object)
    array_of[:] = made
    return array_of
