"""Connections of the HTTP server that no request comes over: how long, and how many there may be.

Belongs here: what uvicorn leaves open for ever, since it times a connection only from an answer to the next byte. Not
here: requests themselves, which are limited once their head is complete (`limits.py`).
"""

from __future__ import annotations

import asyncio
import resource
from typing import Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_SECONDS: Final = 10.0
"""From a connection's beginning, or from a later request's first byte, until the request's head is complete."""

MOST_CONNECTIONS: Final = 4096
SPARE_FILES: Final = 256
"""Files that a process may open beside its connections: models, logs, gRPC."""


def most_connections() -> int:
    """How many connections a process may have open, so that its files suffice."""
    return max(1, min(MOST_CONNECTIONS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - SPARE_FILES))


def bounded(most: int, head_seconds: float = HEAD_SECONDS) -> type[HttpToolsProtocol]:
    """The protocol of one server.

    When another connection comes than there may be, the one is closed over which no request has come for longest: who
    opens many and says nothing loses those, and who asks at once is answered.

    Args:
        most: Connections that may be open.
        head_seconds: For a request's head to be complete.
    """
    idle: dict[HttpToolsProtocol, None] = {}

    class Bounded(HttpToolsProtocol):
        _late: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            idle[self] = None
            if len(self.connections) > most:
                longest = next(iter(idle))
                del idle[longest]
                longest.transport.abort()
            self._await_head()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.cycle is None or self.cycle.response_complete:
                self._await_head()  # or what is left of a body that was not waited for
                return
            idle.pop(self, None)
            if self._late is not None:
                self._late.cancel()
                self._late = None

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if not self.pipeline and not self.transport.is_closing():
                idle[self] = None

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            idle.pop(self, None)
            if self._late is not None:
                self._late.cancel()

        def _await_head(self) -> None:
            if self._late is None:
                self._late = self.loop.call_later(head_seconds, self.transport.close)

    return Bounded
