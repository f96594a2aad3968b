"""The description of the model server: an OpenAPI document with what each pipeline takes, and its page.

Belongs here: schemas from contracts, examples from their sample rows. Not here: the routes themselves (`app.py`), and
checking requests, which the contract's own code does (`checks.py`).

OpenAPI 3.0, which the page's Swagger UI reads: it comes with the package swagger-ui-bundle, so that nothing is loaded
from elsewhere.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from mlops_assets.serving.v2 import DATATYPES, IMAGES, OUTPUTS, model_metadata

if TYPE_CHECKING:
    from mlops_assets.serving.contract import Contract, Input
    from mlops_assets.serving.limits import Limits
    from mlops_assets.serving.slot import Slot

Document = dict[str, Any]

MOST_EXAMPLE: Final = 4096
"""Pixels of an image in an example; a larger one is shown as a file."""

_TEXT: Final[Document] = {"type": "string"}
_OBJECT: Final[Document] = {"type": "object"}
_ERRORS: Final = {
    400: "The request is not of its protocol.",
    404: "This is not served.",
    408: "The body did not come in time.",
    413: "The body is too large, or has too many rows.",
    415: "The body is of a kind that is not taken.",
    422: "A value is refused; `field` and `row` say which.",
    429: "The pipeline has its share of the server's requests.",
    503: "The server has as many requests as it can take, or the pipeline's version did not load.",
    504: "The answer took too long.",
}
_FLAG: Final[Document] = {"type": "boolean"}
_SHAPE: Final[Document] = {
    "type": "array",
    "items": {"type": "integer", "minimum": 0, "maximum": 1 << 31},
    "minItems": 1,
    "maxItems": 8,
}


def openapi(slots: Sequence[Slot], limits: Limits, version: str) -> Document:
    """The document.

    Args:
        slots: The versions that answer.
        limits: Of requests.
        version: The platform's.
    """
    paths = _general()
    for slot in sorted(slots, key=lambda one: one.pipeline):
        paths.update(_pipeline(slot))
    if len(slots) == 1:
        paths["/invocations"] = paths[f"/models/{slots[0].pipeline}/invocations"]
    return {
        "openapi": "3.0.3",
        "info": {
            "title": "Model server",
            "version": version,
            "description": f"Answers with the promoted version of each pipeline. A request may have {limits.rows} rows "
            f"and {limits.bytes} bytes, {limits.json_bytes} of them JSON, and is answered within {limits.seconds:g} s. "
            "Every answer names its version (`x-model-version`) and request (`x-request-id`).",
        },
        "paths": paths,
        "components": {"schemas": {"Error": _error()}},
    }


def swagger_folder() -> Path:
    """Where Swagger UI's files lie."""
    from swagger_ui_bundle import swagger_ui_path  # type: ignore[import-untyped]

    return Path(swagger_ui_path)


def docs_page() -> bytes:
    """The page that shows the document; its addresses are relative, so that it works below a proxy's prefix."""
    from fastapi.openapi.docs import get_swagger_ui_html

    page = get_swagger_ui_html(
        openapi_url="openapi.json",
        title="Model server",
        swagger_js_url="docs/swagger-ui-bundle.js",
        swagger_css_url="docs/swagger-ui.css",
        swagger_favicon_url="docs/favicon-32x32.png",
    )
    return bytes(page.body)


def _general() -> dict[str, Document]:
    def get(summary: str, schema: Document = _OBJECT, *errors: int) -> Document:
        return {"get": {"summary": summary, "tags": ["server"], "responses": _responses(schema, *errors)}}

    ready = {"type": "object", "properties": {"ready": _FLAG, "error": _TEXT}, "required": ["ready"]}
    not_ready = {"description": "It should not.", "content": _content(_OBJECT)}
    paths = {
        "/": get("What is served"),
        "/health": get("What is served, and what is wrong"),
        "/v2": get("The server, by the Open Inference Protocol"),
        "/v2/health/live": get("Whether the process answers"),
        "/v2/health/ready": get("Whether the process should be sent requests", ready),
    }
    for path in ("/health", "/v2/health/ready"):
        paths[path]["get"]["responses"]["503"] = not_ready
    paths["/v2/repository/index"] = {
        "post": {
            "summary": "The pipelines that are served, and those that are not although they have a champion",
            "tags": ["server"],
            "responses": _responses({"type": "array", "items": _OBJECT}, 413, 415),
        }
    }
    return paths


def _pipeline(slot: Slot) -> dict[str, Document]:
    name, contract = slot.pipeline, slot.public
    row, example = _rows(contract)
    metadata = model_metadata(slot)
    infer = _post(slot, "Open Inference Protocol v2", _v2_request(metadata), _v2_example(contract, metadata))
    infer["responses"]["200"]["content"] = _content(_v2_answer())
    predict = _post(slot, "Rows by column name", _listed("rows", row), {"rows": example})
    predict["responses"]["200"]["content"] = _content(_answer(contract))
    scoring = _post(slot, "MLflow's scoring protocol", _scoring(row), {"dataframe_records": example})
    scoring["responses"]["200"]["content"] = _content(_listed("predictions", {"type": "string"}))
    told = {"request_id": "an-earlier-request", "row": 0, "label": contract.classes[0]}
    feedback = _post(slot, "The true label of a row that was answered", _feedback(contract), told)
    feedback["responses"]["200"]["content"] = _content(
        {"type": "object", "properties": {"accepted": _FLAG}, "required": ["accepted"]}
    )
    described = {"get": {"summary": "Tensors and classes", "tags": [name], "responses": _responses(_OBJECT, 404)}}
    ready = {"get": {"summary": "Whether it answers", "tags": [name], "responses": _responses(_OBJECT, 404, 503)}}
    paths = {
        f"/models/{name}/predict": {"post": predict},
        f"/v2/models/{name}/infer": {"post": infer},
        f"/v2/models/{name}/versions/{slot.version}/infer": {"post": infer},
        f"/models/{name}/invocations": {"post": scoring},
        f"/models/{name}/feedback": {"post": feedback},
        f"/v2/models/{name}": described,
        f"/v2/models/{name}/ready": ready,
    }
    if contract.kind == "images":
        files = {"type": "array", "items": {"type": "string", "format": "binary"}, "minItems": 1}
        images = _post(slot, "Image files", _OBJECT, None)
        images["requestBody"]["content"] = {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"files": files},
                    "required": ["files"],
                    "additionalProperties": False,
                }
            },
            "image/*": {"schema": {"type": "string", "format": "binary"}},
        }
        images["responses"]["200"]["content"] = _content(_answer(contract))
        paths[f"/models/{name}/images"] = {"post": images}
    return paths


def _post(slot: Slot, summary: str, schema: Document, example: object) -> Document:
    shown = {} if example is None else {"example": example}
    return {
        "summary": f"{summary} (version {slot.version})",
        "tags": [slot.pipeline],
        "parameters": [
            {"name": "x-request-id", "in": "header", "schema": {"type": "string", "pattern": "^[!-~]{1,128}$"}}
        ],
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema, **shown}}},
        "responses": _responses(_OBJECT, *_ERRORS),
    }


def _responses(schema: Document, *errors: int) -> Document:
    error = _content({"$ref": "#/components/schemas/Error"})
    return {
        "200": {"description": "The answer.", "content": _content(schema)},
        **{str(status): {"description": _ERRORS[status], "content": error} for status in errors},
    }


def _content(schema: Document) -> Document:
    return {"application/json": {"schema": schema}}


def _error() -> Document:
    return {
        "type": "object",
        "properties": {
            "error": {"type": "string", "description": "What is wrong, and what to do."},
            "field": {"type": "string", "description": "The column, tensor or header that is wrong."},
            "row": {"type": "integer", "description": "The row that is wrong, from 0."},
        },
        "required": ["error"],
    }


def _listed(name: str, items: Document) -> Document:
    return {
        "type": "object",
        "properties": {name: {"type": "array", "items": items, "minItems": 1}},
        "required": [name],
    }


def _rows(contract: Contract) -> tuple[Document, list[Any]]:
    """The schema of a row by column name, and sample rows."""
    if contract.kind == "table":
        row: Document = {
            "type": "object",
            "properties": {one.name: _column(one) for one in contract.inputs},
            "additionalProperties": False,
        }
        if needed := [one.name for one in contract.inputs if one.required and not one.nullable]:
            row["required"] = needed
        return row, list(contract.sample)
    image = np.asarray(contract.sample_rows())[0]
    pixels: Document = {"type": "integer", "minimum": 0, "maximum": 255}
    for size in reversed(contract.image_shape):
        pixels = {"type": "array", "items": pixels, "minItems": size, "maxItems": size}
    row = {
        "oneOf": [
            {"type": "object", "properties": {key: schema}, "required": [key], "additionalProperties": False}
            for key, schema in (("pixels", pixels), ("file", {"type": "string", "format": "byte"}))
        ]
    }
    if image.size <= MOST_EXAMPLE:
        return row, [{"pixels": image.tolist()}]
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image.squeeze()).save(file, "png")
    return row, [{"file": base64.b64encode(file.getvalue()).decode()}]


def _column(column: Input) -> Document:
    schema: Document = {"type": "string"}
    if column.dtype.startswith(("Int", "UInt")):
        schema = {"type": "integer"}
    elif column.dtype.startswith("Float"):
        schema = {"type": "number"}
    elif column.dtype == "Boolean":
        schema = {"type": "boolean"}
    elif column.dtype in {"Date", "Datetime"}:
        schema["format"] = {"Date": "date", "Datetime": "date-time"}[column.dtype]
    if column.categories:
        schema["enum"] = list(column.categories)
    for check in column.checks:
        _constrain(schema, check.name, check.statistics)
    if column.nullable:
        schema["nullable"] = True
        if "enum" in schema:
            schema["enum"] = [*schema["enum"], None]
    return schema


def _constrain(schema: Document, check: str, told: dict[str, Any]) -> None:
    """What OpenAPI can say of a check; the others are found by asking."""
    low, high = told.get("min_value"), told.get("max_value")
    if check in {"greater_than", "greater_than_or_equal_to", "in_range"} and isinstance(low, int | float):
        schema["minimum"] = low
        schema["exclusiveMinimum"] = check == "greater_than" or not told.get("include_min", True)
    if check in {"less_than", "less_than_or_equal_to", "in_range"} and isinstance(high, int | float):
        schema["maximum"] = high
        schema["exclusiveMaximum"] = check == "less_than" or not told.get("include_max", True)
    if check == "isin":
        schema["enum"] = list(told["allowed_values"])


def _answer(contract: Contract) -> Document:
    share = {"type": "number", "minimum": 0, "maximum": 1}
    prediction = {
        "type": "object",
        "properties": {
            "label": {"type": "string", "enum": list(contract.classes)},
            "probability": share,
            "probabilities": {
                "type": "object",
                "properties": dict.fromkeys(contract.classes, share),
                "required": list(contract.classes),
            },
        },
        "required": ["label", "probability", "probabilities"],
    }
    answer = _listed("predictions", prediction)
    answer["properties"].update({"model_name": _TEXT, "model_version": _TEXT, "request_id": _TEXT})
    answer["required"] = list(answer["properties"])
    return answer


def _v2_request(metadata: Document) -> Document:
    tensor = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "enum": [one["name"] for one in metadata["inputs"]]},
            "datatype": {"type": "string", "enum": list(DATATYPES)},
            "shape": _SHAPE,
            "data": {"type": "array", "items": {}, "description": "Flat, row by row, or nested as the shape says."},
            "parameters": _OBJECT,
        },
        "required": ["name", "datatype", "shape"],
    }
    request = _listed("inputs", tensor)
    wanted = {
        "type": "object",
        "properties": {"name": {"type": "string", "enum": list(OUTPUTS)}, "parameters": _OBJECT},
    }
    request["properties"] |= {
        "id": {"type": "string", "pattern": "^[!-~]{1,128}$"},
        "outputs": {"type": "array", "items": {**wanted, "required": ["name"]}},
        "parameters": {"type": "object", "properties": {"binary_data_output": _FLAG}},
    }
    return request


def _v2_answer() -> Document:
    tensor = {
        "type": "object",
        "properties": {"name": _TEXT, "datatype": _TEXT, "shape": _SHAPE, "data": {"type": "array", "items": {}}},
        "required": ["name", "datatype", "shape"],
    }
    properties = {
        "model_name": _TEXT,
        "model_version": _TEXT,
        "id": _TEXT,
        "outputs": {"type": "array", "items": tensor},
    }
    return {"type": "object", "properties": properties, "required": list(properties)}


def _v2_example(contract: Contract, metadata: Document) -> Document | None:
    if contract.kind == "images":
        image = np.asarray(contract.sample_rows())[:1]
        if image.size > MOST_EXAMPLE:
            return None
        shape, data = list(image.shape), image.reshape(-1).tolist()
        return {"inputs": [{"name": IMAGES, "datatype": "UINT8", "shape": shape, "data": data}]}
    inputs = []
    for one in metadata["inputs"]:
        values = [row.get(one["name"]) for row in contract.sample]
        datatype = "FP64" if None in values and one["datatype"] not in {"BYTES", "BOOL"} else one["datatype"]
        inputs.append({"name": one["name"], "datatype": datatype, "shape": [len(values)], "data": values})
    return {"inputs": inputs}


def _feedback(contract: Contract) -> Document:
    properties = {
        "request_id": {"type": "string", "minLength": 1, "maxLength": 128},
        "row": {"type": "integer", "minimum": 0, "default": 0},
        "label": {"type": "string", "enum": list(contract.classes)},
    }
    return {"type": "object", "properties": properties, "required": ["request_id", "label"]}


def _scoring(row: Document) -> Document:
    split = {
        "type": "object",
        "properties": {
            "columns": {"type": "array", "items": {"type": "string"}},
            "data": {"type": "array", "items": {"type": "array", "items": {}}},
        },
        "required": ["columns", "data"],
    }
    return {
        "oneOf": [
            _listed("dataframe_records", row),
            {"type": "object", "properties": {"dataframe_split": split}, "required": ["dataframe_split"]},
            {"type": "object", "properties": {"instances": {"type": "array", "items": {}}}, "required": ["instances"]},
            {"type": "object", "properties": {"inputs": {}}, "required": ["inputs"]},
        ]
    }
