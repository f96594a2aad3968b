"""One HTTP request and its reply, over plain ASGI.

Belongs here: reading headers and the body, the version that answers, refusals with their status, sending a reply. Not
here: limits (`limits.py`) and what is asked for (`app.py`, `http_about.py`).

Starlette's `Request` and `Response` would do, at four times the cost of all that is here, on a path where a small model
takes less than the framework around it.
"""

from __future__ import annotations

import itertools
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import orjson
from starlette.routing import Route

from mlops_assets.errors import MlopsError
from mlops_assets.serving.batcher import QueueFull
from mlops_assets.serving.checks import InvalidInput, shown
from mlops_assets.serving.slots import NotServed
from mlops_assets.serving.v2 import V2Error

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from mlops_assets.serving.slot import Slot
    from mlops_assets.serving.slots import Slots

log = logging.getLogger("mlops_assets")

KEY: Final = "mlops.call"
"""Under which a scope has its `Call`."""

JSON: Final = b"application/json"
RETRY: Final = ((b"retry-after", b"1"),)

ID: Final = re.compile(r"[!-~]{1,128}")
"""Request ids that are taken from clients."""

_PREFIX: Final = secrets.token_hex(8)
_NUMBERS: Final = itertools.count()


class Refusal(MlopsError):
    """A request that is not answered.

    Args:
        status: HTTP's.
        sentence: What is wrong, and what to do.
        field: What it is about: a column, a tensor, a header.
        row: The row that is wrong, from 0.
        headers: To send with it.
    """

    def __init__(
        self,
        status: int,
        sentence: str,
        *,
        field: str = "",
        row: int | None = None,
        headers: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        super().__init__(sentence)
        self.status, self.field, self.row, self.headers = status, field, row, headers

    def reply(self) -> Reply:
        """As the client gets it."""
        document: dict[str, Any] = {"error": str(self)}
        if self.field:
            document["field"] = self.field
        if self.row is not None:
            document["row"] = self.row
        return Reply(orjson.dumps(document), status=self.status, headers=self.headers)


class Disconnected(Exception):
    """The client has gone; nobody waits for a reply."""


class Reply(NamedTuple):
    """What is sent: body, media type, status, further headers."""

    body: bytes
    media_type: bytes = JSON
    status: int = 200
    headers: tuple[tuple[bytes, bytes], ...] = ()

    async def send(self, send: Send) -> None:
        """Send it all."""
        headers = [
            (b"content-type", self.media_type),
            (b"content-length", str(len(self.body)).encode()),
            *self.headers,
        ]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": self.body})


class Call:
    """A request.

    Args:
        scope: ASGI's.
        receive: ASGI's.
        most_bytes: That the body may have.

    Attributes:
        request_id: The client's `x-request-id` when it is 1 to 128 visible ASCII characters, else one of our own.
        slot: The version that answers, once it is known.
        protocol: In what form predictions are asked for; empty for everything else.
        rows: In the request, once they are counted.
        status: Of the reply; 0 until it begins.
        body_read: Whether the whole body has come.
    """

    __slots__ = (
        "_most_bytes",
        "_receive",
        "body_read",
        "headers",
        "protocol",
        "received",
        "request_id",
        "rows",
        "scope",
        "slot",
        "started",
        "status",
    )

    def __init__(self, scope: Scope, receive: Receive, most_bytes: int) -> None:
        self.scope = scope
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.started, self.received = time.perf_counter(), time.time()
        given = self.headers.get(b"x-request-id", b"").decode("latin-1")
        self.request_id = given if ID.fullmatch(given) else made_id()
        self.slot: Slot | None = None
        self.protocol, self.rows, self.status, self.body_read = "", 0, 0, False
        self._receive, self._most_bytes = receive, most_bytes

    @property
    def media_type(self) -> bytes:
        """Of the body, without its parameters; empty when the client does not say."""
        return self.headers.get(b"content-type", b"").partition(b";")[0].strip().lower()

    async def receive(self) -> dict[str, Any]:
        """ASGI's `receive`, for those who read the body in parts."""
        message: dict[str, Any] = dict(await self._receive())
        if message["type"] == "http.disconnect":
            raise Disconnected
        self._most_bytes -= len(message.get("body", b""))
        if self._most_bytes < 0:
            raise too_large()
        self.body_read = not message.get("more_body", False)
        return message

    async def body(self, most_json: int | None = None) -> bytes:
        """All of the body.

        Args:
            most_json: Bytes that it may have, when it is JSON.

        Raises:
            Refusal: It is larger than allowed (413), or compressed (415).
            Disconnected: The client went before it was complete.
        """
        self.require_plain()
        if most_json is not None:
            require_json(int(self.headers.get(b"content-length", b"0")), most_json)
        parts: list[bytes] = []
        size = 0
        while not self.body_read:
            parts.append((await self.receive()).get("body", b""))
            size += len(parts[-1])
            if most_json is not None:
                require_json(size, most_json)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def take_slot(self, slots: Slots) -> Slot:
        """The one slot of this request, which is used throughout, whatever moves meanwhile.

        Raises:
            Refusal: There is none, or the path names another version, or no pipeline although several are served.
        """
        path: dict[str, str] = self.scope["path_params"]
        name = path.get("name")
        if name is None:
            names = slots.names()
            if len(names) != 1:
                paths = ", ".join(f"/models/{one}{self.scope['path']}" for one in names) or "none yet"
                raise Refusal(404, f"{len(names)} pipelines are served, each at a path of its own: {paths}")
            name = names[0]
        try:
            slot = self.slot = slots[name]
        except NotServed as error:
            raise Refusal(503 if name in slots.problems else 404, str(error)) from None
        version = path.get("version")
        if version is not None and version != str(slot.version):
            raise Refusal(404, f"version {shown(version)} of '{name}' is not served; version {slot.version} is")
        return slot

    def require_plain(self) -> None:
        """Refuse a compressed body: it may be a thousand times larger than what limits see of it.

        Raises:
            Refusal: With 415.
        """
        coding = self.headers.get(b"content-encoding", b"identity")
        if coding not in {b"identity", b""}:
            told = coding[:40].decode("latin-1")
            raise Refusal(415, f"bodies compressed with {told} are not taken; send it plain", field="content-encoding")


class Endpoint:
    """An ASGI application around a handler: sends its reply, or what its error becomes."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler

    async def __call__(self, scope: Scope, _receive: Receive, send: Send) -> None:
        """Answer a request that the limits' middleware has made a `Call` of."""
        call: Call = scope[KEY]
        try:
            reply = await self._handler(call)
        except MlopsError as error:
            reply = _refusal(error, call).reply()
        except Disconnected:
            raise
        except Exception:  # a defect of ours: the client gets an answer, and we the traceback
            log.exception("request %s failed", call.request_id)
            reply = Refusal(500, f"the server failed; its log says more about request {call.request_id}").reply()
        await reply.send(send)


def route(method: str, path: str, handler: Handler) -> Route:
    """A route of Starlette to a handler."""
    return Route(path, Endpoint(handler), methods=[method])


def _refusal(error: MlopsError, call: Call) -> Refusal:
    """What a client gets for an error that has a sentence."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, InvalidInput):
        return Refusal(400 if call.protocol == "v2" else 422, str(error), field=error.field, row=error.row)
    if isinstance(error, V2Error):
        return Refusal(400, str(error), field=error.tensor)
    if isinstance(error, QueueFull):
        return Refusal(429, str(error), headers=RETRY)
    log.error("request %s: %s", call.request_id, error)
    return Refusal(500, str(error))


Handler = Callable[[Call], Awaitable[Reply]]


def made_id() -> str:
    """A request id that no other process and no other request has."""
    return f"{_PREFIX}-{next(_NUMBERS):x}"


def require_json(size: int, most: int) -> None:
    """Refuse JSON of more bytes than a process takes.

    Raises:
        Refusal: With 413.
    """
    if size > most:
        raise Refusal(413, f"this server takes {most} bytes of JSON; send fewer rows at once, or binary tensors")


def too_large() -> Refusal:
    """Of a body over the limit."""
    return Refusal(413, "the body is larger than this server takes; send fewer rows at once")
