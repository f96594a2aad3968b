"""The model server's HTTP side: predictions, and all of it as one application.

Belongs here: which path predicts in which form. Not here: the forms themselves (`http_v2.py`, `http_json.py`),
answering (`answering.py`), what else there is to ask (`http_about.py`), limits (`limits.py`), the process
(`worker.py`).

Endpoints are plain ASGI, and the two that are asked most are reached past FastAPI's own layers: for a small model these
take a sixth of all the time.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import orjson
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route

from mlops_assets.serving import http_json, http_v2, v2
from mlops_assets.serving.answering import Answering
from mlops_assets.serving.http_about import About
from mlops_assets.serving.http_call import RETRY, Call, Refusal, Reply, require_json, route
from mlops_assets.serving.limits import Condition, Limits, LimitsMiddleware
from mlops_assets.serving.slot import Answer, Batch, Slot
from mlops_assets.serving.slots import Slots

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from mlops_assets.serving.batcher import Batcher
    from mlops_assets.serving.metrics import Metrics
    from mlops_assets.serving.prediction_log import PredictionLog

INLINE_BYTES: Final = 256 << 10
"""Bodies that are smaller are read in the event loop."""

INLINE_NUMBERS: Final = 20_000
"""Answers with fewer probabilities are written in the event loop."""


class _Predictions:
    """The handlers.

    Args:
        slots: The versions.
        limits: Of rows.
        prediction_log: Where labels are kept that come later.
        answering: What answers.
    """

    def __init__(
        self, slots: Slots, limits: Limits, prediction_log: PredictionLog | None, answering: Answering
    ) -> None:
        self._slots, self._limits, self._log, self._answering = slots, limits, prediction_log, answering

    def routes(self) -> list[Route]:
        """The routes to them, in front those that are asked most."""
        return [
            route("POST", "/v2/models/{name}/infer", self.infer),
            route("POST", "/models/{name}/predict", self.predict),
            route("POST", "/v2/models/{name}/versions/{version}/infer", self.infer),
            route("POST", "/models/{name}/images", self.images),
            route("POST", "/models/{name}/invocations", self.invocations),
            route("POST", "/invocations", self.invocations),
            route("POST", "/models/{name}/feedback", self.feedback),
        ]

    async def infer(self, call: Call) -> Reply:
        """The Open Inference Protocol v2."""
        slot = self._slot(call, "v2")
        length = call.headers.get(b"inference-header-content-length")
        body = await call.body(self._limits.json_bytes if length is None else None)
        request, batch = await self._answering.run(len(body) > INLINE_BYTES, self._read_v2, slot, body, length)
        call.request_id = request.id or call.request_id
        answer = await self._answer(call, slot, batch)
        large = answer.probabilities.size > INLINE_NUMBERS
        encoded, json_length = await self._answering.run(
            large, _write_v2, slot, answer, call.request_id, request.wanted
        )
        if json_length is None:
            return Reply(encoded)
        headers = ((b"inference-header-content-length", str(json_length).encode()),)
        return Reply(encoded, b"application/octet-stream", headers=headers)

    async def predict(self, call: Call) -> Reply:
        """Rows by column name."""
        slot = self._slot(call, "json")
        body = await call.body(self._limits.json_bytes)
        batch = await self._answering.run(len(body) > INLINE_BYTES, http_json.records, slot, body, self._limits)
        return await self._described_answer(call, slot, batch)

    async def images(self, call: Call) -> Reply:
        """Image files."""
        slot = self._slot(call, "images")
        files = await http_json.image_files(call, self._limits)
        self._limits.require_rows(len(files))
        batch = await self._answering.run(True, slot.from_files, files)
        return await self._described_answer(call, slot, batch)

    async def invocations(self, call: Call) -> Reply:
        """MLflow's scoring protocol."""
        slot = self._slot(call, "invocations")
        if call.media_type == b"text/csv":
            raise Refusal(415, "tables as text/csv are not taken here; send JSON, such as 'dataframe_split'")
        body = await call.body(self._limits.json_bytes)
        batch = await self._answering.run(len(body) > INLINE_BYTES, http_json.scoring, slot, body, self._limits)
        answer = await self._answer(call, slot, batch)
        return Reply(orjson.dumps({"predictions": answer.labels}))

    async def feedback(self, call: Call) -> Reply:
        """A label that came later."""
        slot = call.take_slot(self._slots)
        given = http_json.feedback(slot, await call.body(self._limits.json_bytes))
        if self._log is None:
            raise Refusal(404, "this server keeps no prediction log, so it takes no labels either")
        if not self._log.feedback(
            pipeline=slot.pipeline, request_id=given.request_id, row=given.row, label=given.label
        ):
            raise Refusal(503, "the prediction log has no room for labels now; try again", headers=RETRY)
        return Reply(b'{"accepted":true}')

    def _slot(self, call: Call, protocol: str) -> Slot:
        call.protocol = protocol
        return call.take_slot(self._slots)

    def _read_v2(self, slot: Slot, body: bytes, length: bytes | None) -> tuple[http_v2.Request, Batch]:
        if length is not None and not (length.isdigit() and len(length) < 12):
            raise Refusal(
                400, "Inference-Header-Content-Length must be a whole number", field="inference-header-content-length"
            )
        if length is not None:
            require_json(int(length), self._limits.json_bytes)
        request = http_v2.parse(body, None if length is None else int(length))
        for tensor in request.tensors.values():
            self._limits.require_rows(tensor.shape[0])
        return request, v2.to_batch(slot, request.tensors)

    async def _answer(self, call: Call, slot: Slot, batch: Batch) -> Answer:
        call.rows = len(batch)
        return await self._answering.answer(
            slot, batch, request_id=call.request_id, started=call.started, received=call.received
        )

    async def _described_answer(self, call: Call, slot: Slot, batch: Batch) -> Reply:
        answer = await self._answer(call, slot, batch)
        large = answer.probabilities.size > INLINE_NUMBERS
        return Reply(await self._answering.run(large, http_json.described, slot, answer, call.request_id))


class ModelServer(FastAPI):
    """The application.

    Attributes:
        condition: Of the process, for who starts and stops it.
        answering: Of the process, for its other protocols.
    """

    def __init__(
        self,
        predictions: _Predictions,
        about: About,
        *,
        condition: Condition,
        answering: Answering,
        limited: Callable[[ASGIApp], ASGIApp],
    ) -> None:
        routes = predictions.routes()
        super().__init__(
            title="Model server",
            version=about.version,
            openapi_url=None,
            routes=[*routes, *about.routes()],
            exception_handlers={HTTPException: _http_error},
            redirect_slashes=False,
            telemetry={"tracing": False, "metrics": False, "logs": False},  # else the environment is read each time
        )
        self.condition, self.answering = condition, answering
        self._about, self._most_asked = about, routes[:2]
        self._limited = limited(self._dispatch)

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document of the versions that answer now."""
        return self._about.document()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, within limits."""
        await self._limited(scope, receive, send)

    async def _dispatch(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            for one in self._most_asked:
                match, found = one.matches(scope)
                if match is Match.FULL:
                    scope.update(found)
                    await one.app(scope, receive, send)
                    return
        await super().__call__(scope, receive, send)


def create_app(
    slots: Slots,
    *,
    limits: Limits,
    log: PredictionLog | None,
    metrics: Metrics | None,
    batcher: Batcher | None = None,
) -> ModelServer:
    """The model server as an ASGI application.

    Args:
        slots: What answers; somebody else refreshes them.
        limits: Of requests.
        log: Where answers are kept; None keeps none.
        metrics: What is counted; None counts nothing.
        batcher: What answers for several requests at once; None answers each alone.
    """
    condition, answering = Condition(), Answering(log=log, batcher=batcher)
    return ModelServer(
        _Predictions(slots, limits, log, answering),
        About(slots, limits, metrics, condition),
        condition=condition,
        answering=answering,
        limited=partial(
            LimitsMiddleware, limits=limits, slots=slots, answering=answering, condition=condition, metrics=metrics
        ),
    )


def _write_v2(slot: Slot, answer: Answer, request_id: str, wanted: dict[str, bool]) -> tuple[bytes, int | None]:
    made = v2.outputs(slot, answer, wanted)
    return http_v2.encode(slot.pipeline, slot.version, request_id, made, wanted)


async def _http_error(request: Request, error: HTTPException) -> Response:
    """What Starlette's routing refuses: no such path, no such method."""
    path = request.url.path
    sentence = {
        404: f"there is nothing at {path}; / says what is served",
        405: f"{path} does not take {request.method}",
    }.get(error.status_code, error.detail)
    reply = Refusal(error.status_code, sentence).reply()
    return Response(reply.body, error.status_code, headers=dict(error.headers or {}), media_type="application/json")
