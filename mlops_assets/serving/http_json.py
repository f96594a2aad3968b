"""Predictions in plain forms: JSON by column names, image files, MLflow's scoring protocol, and labels that come later.

Belongs here: requests from bytes to valid rows, answers to bytes. Not here: the Open Inference Protocol (`http_v2.py`)
and routes (`app.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import orjson

from mlops_assets.serving.checks import shown
from mlops_assets.serving.http_call import Call, Refusal
from mlops_assets.serving.v2 import IMAGES

if TYPE_CHECKING:
    from mlops_assets.serving.limits import Limits
    from mlops_assets.serving.slot import Answer, Batch, Slot

SCORING: Final = ("dataframe_split", "dataframe_records", "instances", "inputs")
"""The forms of MLflow's scoring protocol, of which a request has one."""

FILES: Final = "files"
"""The field of a form that has image files."""


class Feedback(NamedTuple):
    """The true label of a row that was answered."""

    request_id: str
    row: int
    label: str


def records(slot: Slot, body: bytes, limits: Limits) -> Batch:
    """Valid rows of `{"rows": [{column: value}]}`.

    Raises:
        Refusal: The body is not of that form, or has too many rows.
        InvalidInput: A row is refused.
    """
    rows = _document(body).get("rows")
    if not isinstance(rows, list):
        raise Refusal(422, "'rows' must be a list with one object for each row, values by column name", field="rows")
    limits.require_rows(len(rows))
    return slot.from_records(rows)


def scoring(slot: Slot, body: bytes, limits: Limits) -> Batch:
    """Valid rows of a request in MLflow's scoring protocol.

    https://mlflow.org/docs/latest/ml/deployment/deploy-model-locally/ says what it takes.

    Raises:
        Refusal: The body is not of that form, or has too many rows.
        InvalidInput: A row is refused.
    """
    document = _document(body)
    given = [form for form in SCORING if form in document]
    if len(given) != 1:
        raise Refusal(
            422, f"the request must have one of {', '.join(SCORING)} (it has {' and '.join(given) or 'none'})"
        )
    form, values = given[0], document[given[0]]
    if form == "inputs" and isinstance(values, dict):
        for column in values.values():
            limits.require_rows(len(column) if isinstance(column, list) else 0)
        return slot.from_columns(values)
    if form == "dataframe_split":
        values = _split(values)
    if not isinstance(values, list):
        raise Refusal(422, f"'{form}' must be a list of rows", field=form)
    limits.require_rows(len(values))
    if form in {"instances", "inputs"} and values and not isinstance(values[0], dict):
        if slot.contract.kind == "images":
            return slot.from_columns({IMAGES: values})
        raise Refusal(422, f"each row of '{form}' must be an object, values by column name", field=form, row=0)
    return slot.from_records(values)


async def image_files(call: Call, limits: Limits) -> list[bytes]:
    """The image files of a request: those of a form's field `files`, or the body.

    Raises:
        Refusal: The body is neither (415), the form is damaged or has other fields, or there are too many files.
    """
    media_type = call.media_type
    if media_type.startswith(b"image/"):
        return [await call.body()]
    if media_type != b"multipart/form-data":
        told = media_type.decode("latin-1") or "no media type"
        raise Refusal(415, f"send image files as a form with '{FILES}', or one as image/png or the like (got {told})")

    from starlette.exceptions import HTTPException
    from starlette.requests import Request

    call.require_plain()
    try:
        async with Request(call.scope, call.receive).form(max_files=limits.rows, max_fields=limits.rows) as form:
            files = []
            for name, one in form.multi_items():
                if name != FILES or isinstance(one, str):
                    raise Refusal(422, f"the form must have files in '{FILES}' and nothing else", field=name)
                files.append(await one.read())
            return files
    except HTTPException as error:
        raise Refusal(400, f"the form cannot be read: {error.detail}") from None


def feedback(slot: Slot, body: bytes) -> Feedback:
    """The label in `{"request_id", "row", "label"}`; `row` is 0 when it is not there.

    Raises:
        Refusal: The body is not of that form, or the label is no class.
    """
    document = _document(body)
    request_id, row, label = document.get("request_id"), document.get("row", 0), document.get("label")
    if not isinstance(request_id, str) or not 0 < len(request_id) <= 128:
        raise Refusal(422, "'request_id' must be the id that the answer had", field="request_id")
    if type(row) is not int or row < 0:
        raise Refusal(422, f"'row' must be the row's number in the request, from 0 (got {shown(row)})", field="row")
    if label not in slot.contract.classes:
        classes = ", ".join(slot.contract.classes[:20])
        raise Refusal(422, f"'label' must be one of the classes: {classes} (got {shown(label)})", field="label")
    return Feedback(request_id, row, label)


def described(slot: Slot, answer: Answer, request_id: str) -> bytes:
    """An answer with each row's label, its probability, and those of all classes by name."""
    classes = slot.contract.classes
    predictions = [
        {"label": label, "probability": row.max(), "probabilities": dict(zip(classes, row, strict=True))}
        for label, row in zip(answer.labels, answer.probabilities, strict=True)
    ]
    return orjson.dumps(
        {
            "model_name": slot.pipeline,
            "model_version": str(slot.version),
            "request_id": request_id,
            "predictions": predictions,
        },
        option=orjson.OPT_SERIALIZE_NUMPY,
    )


def _document(body: bytes) -> dict[str, Any]:
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Refusal(400, f"the request is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise Refusal(422, f"the request must be a JSON object (got {shown(document)})")
    return document


def _split(values: object) -> list[dict[str, Any]]:
    """Rows by column name of `{"columns": [...], "data": [[...]]}`."""
    columns, data = (values.get("columns"), values.get("data")) if isinstance(values, Mapping) else (None, None)
    if not isinstance(data, list) or not isinstance(columns, list) or not all(isinstance(one, str) for one in columns):
        raise Refusal(422, "'dataframe_split' must have 'columns', a list of names, and 'data', a list of rows")
    if len(set(columns)) != len(columns):
        raise Refusal(422, "'columns' has a name twice", field="columns")
    for row, one in enumerate(data):
        if not isinstance(one, list) or len(one) != len(columns):
            raise Refusal(422, f"row {row} of 'data' must have {len(columns)} values", field="data", row=row)
    return [dict(zip(columns, one, strict=True)) for one in data]
