"""What the model server says of itself: health, readiness, what is served, metrics, documentation.

Belongs here: answers to GET, which are given however busy the process is, and the repository's index. Not here:
predictions (`app.py`).
"""

from __future__ import annotations

import asyncio
import importlib.metadata
from typing import TYPE_CHECKING, Any

import orjson
from starlette.routing import BaseRoute, Mount
from starlette.staticfiles import StaticFiles

from mlops_assets.serving import v2
from mlops_assets.serving.http_call import Call, Refusal, Reply, route
from mlops_assets.serving.http_openapi import docs_page, openapi, swagger_folder

if TYPE_CHECKING:
    from mlops_assets.serving.limits import Condition, Limits
    from mlops_assets.serving.metrics import Metrics
    from mlops_assets.serving.slot import Slot
    from mlops_assets.serving.slots import Slots


class About:
    """The handlers.

    Args:
        slots: What is served.
        limits: As the description says them.
        metrics: What `/metrics` shows.
        condition: Of the process.
    """

    def __init__(self, slots: Slots, limits: Limits, metrics: Metrics | None, condition: Condition) -> None:
        self._slots, self._limits, self._metrics, self._condition = slots, limits, metrics, condition
        self._described: tuple[tuple[Slot, ...], bytes] = ((), b"")
        self.version = importlib.metadata.version("mlops-assets")

    def routes(self) -> list[BaseRoute]:
        """The routes to them."""
        model = "/v2/models/{name}"
        return [
            route("GET", "/v2/health/live", self.live),
            route("GET", "/v2/health/ready", self.ready),
            route("GET", "/v2", self.server_metadata),
            route("GET", model, self.model_metadata),
            route("GET", f"{model}/ready", self.model_ready),
            route("GET", f"{model}/versions/{{version}}", self.model_metadata),
            route("GET", f"{model}/versions/{{version}}/ready", self.model_ready),
            route("POST", "/v2/repository/index", self.index),
            route("GET", "/health", self.health),
            route("GET", "/metrics", self.page_of_metrics),
            route("GET", "/", self.root),
            route("GET", "/openapi.json", self.openapi),
            route("GET", "/docs", self.docs),
            Mount("/docs", StaticFiles(directory=swagger_folder())),
        ]

    async def live(self, _call: Call) -> Reply:
        """Whether the process answers."""
        return Reply(b'{"live":true}')

    async def ready(self, _call: Call) -> Reply:
        """Whether the process should be sent requests."""
        why = self._not_ready()
        return _json({"ready": not why, **({"error": why} if why else {})}, 503 if why else 200)

    async def server_metadata(self, _call: Call) -> Reply:
        """What the server is."""
        return _json(v2.server_metadata(self.version))

    async def model_metadata(self, call: Call) -> Reply:
        """What a model takes and gives."""
        return _json(v2.model_metadata(call.take_slot(self._slots)))

    async def model_ready(self, call: Call) -> Reply:
        """Whether a model answers."""
        return _json({"name": call.take_slot(self._slots).pipeline, "ready": True})

    async def index(self, call: Call) -> Reply:
        """What is served, and what is not although it should be."""
        await call.body()
        served = {
            slot.pipeline: {"name": slot.pipeline, "version": str(slot.version), "state": "READY", "reason": ""}
            for slot in self._slots
        }
        missing = {
            name: {"name": name, "version": "", "state": "UNAVAILABLE", "reason": why}
            for name, why in dict(self._slots.problems).items()
        }
        return _json(list({**missing, **served}.values()))

    async def health(self, _call: Call) -> Reply:
        """What is served and what is wrong, for people."""
        problems, why = dict(self._slots.problems), self._not_ready()
        pipelines: dict[str, dict[str, Any]] = {name: {"version": None} for name in problems}
        for slot in self._slots:
            pipelines[slot.pipeline] = {"version": slot.version, "run_id": slot.run_id, "accuracy": slot.accuracy}
        for name, problem in problems.items():
            pipelines[name]["problem"] = problem
        return _json({"ready": not why, "reason": why, "pipelines": pipelines}, 503 if why else 200)

    async def page_of_metrics(self, _call: Call) -> Reply:
        """What Prometheus reads."""
        if self._metrics is None:
            raise Refusal(404, "this server keeps no metrics")
        body, media_type = await asyncio.to_thread(self._metrics.render)
        return Reply(body, media_type.encode())

    async def root(self, _call: Call) -> Reply:
        """What is served, and where more is said."""
        pipelines = {
            slot.pipeline: {"version": slot.version, "metadata": f"/v2/models/{slot.pipeline}"} for slot in self._slots
        }
        links = {"docs": "/docs", "openapi": "/openapi.json", "health": "/health", "metrics": "/metrics"}
        return _json({"name": "mlops_assets", "version": self.version, "pipelines": pipelines, "links": links})

    async def openapi(self, _call: Call) -> Reply:
        """The OpenAPI document."""
        return Reply(self._openapi())

    async def docs(self, _call: Call) -> Reply:
        """The OpenAPI document for people."""
        return Reply(docs_page(), b"text/html; charset=utf-8")

    def document(self) -> dict[str, Any]:
        """The OpenAPI document, as FastAPI's own users know it."""
        document: dict[str, Any] = orjson.loads(self._openapi())
        return document

    def _openapi(self) -> bytes:
        """The document of the versions that answer now, made once for them."""
        slots = tuple(self._slots)
        if self._described[0] != slots or not self._described[1]:
            self._described = slots, orjson.dumps(openapi(slots, self._limits, self.version))
        return self._described[1]

    def _not_ready(self) -> str:
        """Why the process should not be sent requests; empty when it should."""
        if self._condition.draining:
            return "the server is being stopped"
        served = self._slots.names()
        for name, problem in dict(self._slots.problems).items():
            if name not in served:
                return f"{name} has a champion that does not answer: {problem}"
        return "" if served else "no pipeline has a champion yet: `mlops run NAME` makes the first"


def _json(document: object, status: int = 200) -> Reply:
    return Reply(orjson.dumps(document), status=status)
