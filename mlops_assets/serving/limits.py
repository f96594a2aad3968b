"""What one request, one pipeline and all requests together may take of a process.

Belongs here: the limits, and the middleware that holds requests to them: bytes while they come, requests at once, time;
and what every answer carries. Not here: the limit on rows, which is applied where rows are known (`app.py`).

Only POST is work, and shed: health, metrics and descriptions are answered however busy the process is.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Final

from mlops_assets.serving.http_call import KEY, RETRY, Call, Disconnected, Refusal, Reply, too_large

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from mlops_assets.serving.answering import Answering
    from mlops_assets.serving.metrics import Metrics, Outcome
    from mlops_assets.serving.slots import Slots

CLOSE: Final = (b"connection", b"close")

JSON_BYTES: Final = 4 << 20
"""Of JSON in a request: parsed, it takes up to 30 times as much memory, and everybody waits for it, in whatever thread
that is. It is enough for the most rows of 400 bytes."""

SHARE: Final = 0.75
"""Of the requests at once that one pipeline may have when there are others, which the rest is kept for."""

_OUTCOMES: Final[dict[int, Outcome]] = {
    0: "failed",
    404: "not_served",
    408: "timeout",
    429: "shed",
    500: "failed",
    503: "not_served",
    504: "timeout",
}
"""How a request ended that was not shed, by its status; 0 when its connection broke off."""


@dataclass(frozen=True)
class Limits:
    """Of one process.

    Attributes:
        bytes: In the body of a request, with files and binary tensors.
        rows: In a request.
        concurrency: Requests at once.
        seconds: From a request's beginning to its answer.
    """

    bytes: int = 32 << 20
    rows: int = 10_000
    concurrency: int = 64
    seconds: float = 30.0

    @property
    def json_bytes(self) -> int:
        """Of JSON in the body of a request."""
        return min(self.bytes, JSON_BYTES)

    def require_rows(self, count: int) -> None:
        """Refuse more rows than a request may have.

        Raises:
            Refusal: With 413.
        """
        if count > self.rows:
            raise Refusal(
                413, f"the request has {count} rows, and this server takes {self.rows}; send several requests"
            )


@dataclass
class Condition:
    """What a process says of itself.

    Attributes:
        draining: Whether it is about to stop: it answers what still comes, says that it is not ready, and closes each
            connection after the answer, so that clients go elsewhere and no request meets a closed door.
    """

    draining: bool = False


class LimitsMiddleware:
    """ASGI middleware: sheds and times requests, counts them, and gives answers their headers.

    Args:
        app: What answers.
        limits: To hold requests to.
        slots: The pipelines that share the process.
        answering: Where the process counts its requests.
        condition: Of the process.
        metrics: To count in.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        limits: Limits,
        slots: Slots,
        answering: Answering,
        condition: Condition,
        metrics: Metrics | None,
    ) -> None:
        self._app, self._limits, self._slots, self._answering = app, limits, slots, answering
        self._condition, self._metrics = condition, metrics
        self._by_pipeline: Counter[str] = Counter()
        self._share = max(1, int(limits.concurrency * SHARE))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        call = Call(scope, receive, self._limits.bytes)
        scope[KEY] = call

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                call.status = message["status"]
                headers: list[tuple[bytes, bytes]] = message["headers"]
                headers.append((b"x-request-id", call.request_id.encode()))
                if call.slot is not None:
                    headers.append((b"x-model-name", call.slot.pipeline.encode()))
                    headers.append((b"x-model-version", str(call.slot.version).encode()))
                if self._condition.draining:
                    headers.append(CLOSE)
            await send(message)

        if scope["method"] != "POST":
            await self._app(scope, receive, answer)
            return
        name = _pipeline(scope["path"])
        refusal = self._refusal(call, name)
        if refusal is not None:
            await refusal.reply().send(answer)
            if refusal.status != 413:
                self._observe(call, name, "shed")
            return
        self._answering.running += 1
        self._by_pipeline[name] += 1
        if self._metrics is not None:
            self._metrics.in_flight.inc()
        try:
            await self._timed(call, answer)
        finally:
            self._answering.running -= 1
            self._by_pipeline[name] -= 1
            if not self._by_pipeline[name]:
                del self._by_pipeline[name]
            if self._metrics is not None:
                self._metrics.in_flight.dec()
            self._count(call, name)

    def _refusal(self, call: Call, name: str) -> Refusal | None:
        length = call.headers.get(b"content-length")
        if length is not None and int(length) > self._limits.bytes:  # the server has refused what is no number
            return too_large()
        if self._answering.running >= self._limits.concurrency:
            return Refusal(503, "the server has as many requests as it can take; try again", headers=RETRY)
        if self._by_pipeline[name] >= self._share and len(self._slots.names()) > 1:
            return Refusal(429, f"'{name}' has its share of this server's requests; try again", headers=RETRY)
        return None

    async def _timed(self, call: Call, answer: Send) -> None:
        """Call the application, and cut it off when time is up."""
        task = asyncio.current_task()
        assert task is not None
        late = False

        def cut_off() -> None:
            nonlocal late
            late = True
            task.cancel()

        # asyncio.timeout() does the same at five times the cost
        timer = asyncio.get_running_loop().call_later(self._limits.seconds, cut_off)
        try:
            await self._app(call.scope, call.receive, answer)
        except asyncio.CancelledError:
            if not late or task.uncancel() > 0:
                raise
            if not call.status:
                await self._late(call).send(answer)
        except Disconnected:
            pass
        finally:
            timer.cancel()

    def _late(self, call: Call) -> Reply:
        seconds = f"{self._limits.seconds:g} s"
        if call.body_read:
            return Refusal(504, f"no answer within {seconds}; send fewer rows at once", headers=RETRY).reply()
        return Refusal(408, f"the body did not come within {seconds}", headers=(CLOSE,)).reply()

    def _count(self, call: Call, name: str) -> None:
        if call.protocol:
            self._observe(call, name, _OUTCOMES.get(call.status) or ("ok" if 200 <= call.status < 300 else "invalid"))

    def _observe(self, call: Call, name: str, outcome: Outcome) -> None:
        if self._metrics is None:
            return
        self._metrics.observe(
            pipeline=call.slot.pipeline if call.slot is not None else name,
            version=call.slot.version if call.slot is not None else 0,
            protocol=call.protocol or "http",
            outcome=outcome,
            rows=call.rows,
            seconds=perf_counter() - call.started,
        )


def _pipeline(path: str) -> str:
    """The pipeline that a path names; empty where it names none."""
    parts = path.split("/", 4)
    if len(parts) > 3 and parts[1] == "models":
        return parts[2]
    if len(parts) > 4 and parts[1] == "v2" and parts[2] == "models":
        return parts[3]
    return ""
