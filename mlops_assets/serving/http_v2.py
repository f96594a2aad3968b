"""The Open Inference Protocol v2 over HTTP: JSON, and JSON with raw tensors after it.

Belongs here: requests from bytes, answers to bytes. Not here: tensors themselves (`v2.py`), routes (`app.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray

from mlops_assets.serving.checks import shown
from mlops_assets.serving.http_call import ID
from mlops_assets.serving.v2 import (
    LABEL,
    OUTPUTS,
    V2Error,
    tensor_from_raw,
    tensor_from_values,
    to_raw,
    unknown_output,
)


class Request(NamedTuple):
    """A parsed request: its id (None without one), inputs by name, and wanted outputs by name: whether as raw bytes."""

    id: str | None
    tensors: dict[str, NDArray[Any]]
    wanted: dict[str, bool]


def parse(body: bytes, header_length: int | None) -> Request:
    """Take a request apart.

    Args:
        body: All of it.
        header_length: Bytes of the JSON at its beginning, raw tensors follow (the header
            Inference-Header-Content-Length); None when all of it is JSON.

    Raises:
        V2Error: It is not of the protocol.
    """
    view = memoryview(body)
    rest = view[:0]
    if header_length is not None:
        if not 0 < header_length <= len(body):
            raise V2Error(
                f"Inference-Header-Content-Length is {header_length}, which must be from 1 to the body's {len(body)}"
            )
        view, rest = view[:header_length], view[header_length:]
    try:
        document = orjson.loads(view)
    except orjson.JSONDecodeError as error:
        raise V2Error(f"the request is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise V2Error("the request must be a JSON object with 'inputs'")
    request_id = document.get("id") or None
    if request_id is not None and not (isinstance(request_id, str) and ID.fullmatch(request_id)):
        raise V2Error("'id' must be a text of 1 to 128 visible ASCII characters, without spaces")
    inputs = document.get("inputs")
    if not isinstance(inputs, list) or not inputs:
        raise V2Error("'inputs' must be a list with one object for each tensor")
    return Request(request_id, _inputs(inputs, rest), _wanted(document))


def _inputs(inputs: list[Any], rest: memoryview) -> dict[str, NDArray[Any]]:
    tensors: dict[str, NDArray[Any]] = {}
    for given in inputs:
        if not isinstance(given, dict) or not isinstance(given.get("name"), str):
            raise V2Error("each of 'inputs' must be an object with 'name', 'shape', 'datatype' and 'data'")
        name, datatype, shape = given["name"], given.get("datatype"), given.get("shape")
        if not isinstance(datatype, str):
            raise V2Error(f"tensor '{name}' has no 'datatype', such as FP32", name)
        if name in tensors:
            raise V2Error(f"tensor '{name}' is there twice", name)
        if not isinstance(shape, list):
            raise V2Error(f"tensor '{name}' has no 'shape', a list of whole numbers", name)
        size = _parameters(given, f"tensor '{name}'", name).get("binary_data_size")
        if size is None:
            values = given.get("data")
            if not isinstance(values, list):
                raise V2Error(f"tensor '{name}' has neither a list 'data' nor a parameter 'binary_data_size'", name)
            tensors[name] = tensor_from_values(name, datatype, shape, values)
            continue
        if "data" in given:
            raise V2Error(f"tensor '{name}' has both 'data' and 'binary_data_size'; send one of them", name)
        if type(size) is not int or not 0 <= size <= len(rest):
            raise V2Error(
                f"tensor '{name}' says binary_data_size {shown(size)}, but {len(rest)} bytes of the body are left",
                name,
            )
        tensors[name] = tensor_from_raw(name, datatype, shape, rest[:size])
        rest = rest[size:]
    if len(rest):
        raise V2Error(f"{len(rest)} bytes follow after the last tensor; binary_data_size of each must say all of them")
    return tensors


def _wanted(document: dict[str, Any]) -> dict[str, bool]:
    binary = _flag(_parameters(document, "the request", ""), "binary_data_output", False, "")
    given = document.get("outputs")
    if given is None or given == []:
        return dict.fromkeys(OUTPUTS, binary)
    wanted: dict[str, bool] = {}
    for one in given if isinstance(given, list) else [None]:
        if not isinstance(one, dict) or not isinstance(one.get("name"), str):
            raise V2Error("'outputs' must be a list of objects with a 'name'")
        name = one["name"]
        if name not in OUTPUTS:
            raise unknown_output(name)
        if name in wanted:
            raise V2Error(f"output '{name}' is asked for twice", name)
        parameters = _parameters(one, f"output '{name}'", name)
        if parameters.get("classification"):
            raise V2Error(f"output '{name}' cannot be had as 'classification'; ask for '{LABEL}' instead", name)
        wanted[name] = _flag(parameters, "binary_data", binary, name)
    return wanted


def encode(
    model: str, version: int, request_id: str, made: Mapping[str, NDArray[Any]], wanted: Mapping[str, bool]
) -> tuple[bytes, int | None]:
    """An answer's body, and how many bytes of it are JSON when raw tensors follow.

    Args:
        model: The pipeline's name.
        version: The version that answered.
        request_id: As the client gave it, or as made for it.
        made: The outputs, by name.
        wanted: By name, whether as raw bytes.
    """
    described: list[dict[str, Any]] = []
    parts: list[bytes] = [b""]
    for name, tensor in made.items():
        text = tensor.dtype == object
        one: dict[str, Any] = {"name": name, "datatype": "BYTES" if text else "FP32", "shape": tensor.shape}
        if wanted[name]:
            parts.append(to_raw(tensor))
            one["parameters"] = {"binary_data_size": len(parts[-1])}
        else:
            one["data"] = tensor.tolist() if text else np.ascontiguousarray(tensor).reshape(-1)
        described.append(one)
    parts[0] = orjson.dumps(
        {"model_name": model, "model_version": str(version), "id": request_id, "outputs": described},
        option=orjson.OPT_SERIALIZE_NUMPY,
    )
    return b"".join(parts), len(parts[0]) if len(parts) > 1 else None


def _parameters(given: dict[str, Any], whose: str, name: str) -> dict[str, Any]:
    parameters = given.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise V2Error(f"the 'parameters' of {whose} must be an object", name)
    return parameters


def _flag(parameters: dict[str, Any], key: str, default: bool, name: str) -> bool:
    value = parameters.get(key, default)
    if not isinstance(value, bool):
        raise V2Error(f"parameter '{key}' must be true or false (got {shown(value)})", name)
    return value
