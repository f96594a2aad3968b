"""Asking the model server: in this process, and over a socket as clients do."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from mlops_assets.serving.app import ModelServer, create_app
from mlops_assets.serving.limits import Limits
from mlops_assets.serving.slots import Slots


def app_of(home: Path, limits: Limits | None = None, **others: Any) -> ModelServer:
    """The application over what a home serves."""
    slots = Slots(home)
    slots.refresh()
    return create_app(slots, **{"limits": limits or Limits(), "log": None, "metrics": None, **others})


def ask(app: ModelServer, method: str, path: str, **request: Any) -> httpx.Response:
    """One request without a socket."""

    async def once() -> httpx.Response:
        async with client_of(app) as client:
            return await client.request(method, path, **request)

    return asyncio.run(once())


def client_of(app: ModelServer) -> httpx.AsyncClient:
    """A client without a socket."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server")


@contextmanager
def listening(app: ModelServer) -> Iterator[str]:
    """The application at HOST:PORT."""
    config = uvicorn.Config(app, host="127.0.0.1", port=0, http="httptools", ws="none", log_config=None)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            thread.join(0.01)
        yield "{}:{}".format(*server.servers[0].sockets[0].getsockname())
    finally:
        server.should_exit = True
        thread.join()
