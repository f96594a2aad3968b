"""A process that answers: `python -m mlops_assets.serving.worker --fd N --number I [--grpc-port P]`.

Belongs here: the process from its start to its end, and following the pointers. Not here: what it answers (`app.py`,
`grpc_v2.py`), and who starts it again (`server.py`).

The listening socket is the parent's, so that whatever waits in it while a worker ends is taken by another. On SIGTERM
or SIGINT the worker says that it is not ready, goes on answering for MLOPS_SERVE_DRAIN_SECONDS, takes no connections
then, answers what is under way, writes the prediction log, and ends with 0. When it follows the pointers no longer, it
ends too, and with an error: one that is started again does.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import logging
import math
import signal
import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from mlops_assets.errors import MlopsError
from mlops_assets.settings import Settings, settings

if TYPE_CHECKING:
    from mlops_assets.serving.app import ModelServer
    from mlops_assets.serving.metrics import Metrics
    from mlops_assets.serving.slots import Slots

log = logging.getLogger("mlops_assets")

REFRESH_SECONDS: Final = 0.05
"""Between two looks at the pointers."""

RETRY_SECONDS: Final = 1.0
"""Before another look when one has failed, so that the log has a line a second and not twenty."""

KEEP_SECONDS: Final = 75
"""For which a connection may be idle: longer than proxies keep theirs by default, so that it is they who close."""

LEAVE_SECONDS: Final = 0.3
"""For which a worker that takes no more connections answers those that it has: each answer closes its connection, and
what a client sends meanwhile is not lost."""


class WorkerError(MlopsError):
    """A worker that cannot go on."""


def main() -> None:
    """Serve until a signal comes."""
    parser = argparse.ArgumentParser(prog="python -m mlops_assets.serving.worker")
    parser.add_argument("--fd", type=int, required=True, help="the listening socket's file descriptor")
    parser.add_argument("--number", type=int, default=0, help="of this worker; no other that lives has it")
    parser.add_argument("--grpc-port", type=int, default=0, help="port for gRPC, which workers share; 0 serves none")
    given = parser.parse_args()
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    import uvloop

    uvloop.run(_serve(settings(), socket.socket(fileno=given.fd), given.number, given.grpc_port))


async def _serve(here: Settings, listening: socket.socket, number: int, grpc_port: int) -> None:
    from mlops_assets.serving.app import create_app
    from mlops_assets.serving.batcher import Batcher
    from mlops_assets.serving.grpc_v2 import serve_grpc
    from mlops_assets.serving.limits import Limits
    from mlops_assets.serving.metrics import Metrics
    from mlops_assets.serving.prediction_log import PredictionLog
    from mlops_assets.serving.slots import Slots

    limits = Limits(
        bytes=here.serve_max_bytes,
        rows=here.serve_max_rows,
        concurrency=here.serve_concurrency,
        seconds=here.serve_timeout_seconds,
    )
    metrics = Metrics(here.home / "metrics", number)
    predictions = PredictionLog(here.home, number, metrics) if here.serve_log else None
    batcher = Batcher(metrics=metrics)
    slots = Slots(here.home, threads=here.serve_threads, on_swap=metrics.swapped)
    slots.refresh()
    app = create_app(slots, limits=limits, log=predictions, metrics=metrics, batcher=batcher)
    gc.collect()
    gc.freeze()  # what is loaded once is not looked through again and again: that takes 20 ms each time
    server = _uvicorn(app, limits.seconds)
    following = asyncio.create_task(_follow(slots, metrics))
    following.add_done_callback(lambda _: setattr(server, "should_exit", True))
    grpc_server = None
    if grpc_port:
        grpc_server = await serve_grpc(
            slots,
            here.host,
            grpc_port,
            limits=limits,
            metrics=metrics,
            answering=app.answering,
            ready=lambda: not app.condition.draining and bool(slots.names()),
        )
    leaving = asyncio.create_task(_leave(server, app, here.serve_drain_seconds))
    lost = False
    try:
        await server.serve(sockets=[listening])
        lost = following.done()
    finally:
        if grpc_server is not None:
            await grpc_server.stop(limits.seconds)
        for task in (following, leaving):
            task.cancel()
        why, _ = await asyncio.gather(following, leaving, return_exceptions=True)
        if predictions is not None:
            predictions.close()
        metrics.close()
    if lost:
        raise WorkerError("the worker followed the pointers no longer, so it ended; it is to be started again") from why


def _uvicorn(app: ModelServer, seconds: float) -> Any:
    """The HTTP server as a worker needs it: signals are ours, and nothing is written for each request."""
    import uvicorn

    from mlops_assets.serving.http_connections import bounded, most_connections

    class Server(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            for one in self.servers:
                one.close()
            await asyncio.sleep(LEAVE_SECONDS)
            await super().shutdown(sockets)

    config = uvicorn.Config(
        app,
        loop="none",
        http=bounded(most_connections()),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_SECONDS,
        timeout_graceful_shutdown=math.ceil(seconds) + 1,
    )
    return Server(config)


async def _leave(server: Any, app: ModelServer, drain_seconds: float) -> None:
    """Wait for a signal, then for those who look whether this process is ready, then end the server."""
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.set)
    await told.wait()
    app.condition.draining = True
    await asyncio.sleep(drain_seconds)
    server.should_exit = True


async def _follow(slots: Slots, metrics: Metrics) -> None:
    """Load what the pointers say, for ever."""
    while True:
        known = dict(slots.problems)
        try:
            await asyncio.to_thread(slots.refresh)
        except Exception:  # a worker that no longer followed would answer with old versions for ever
            log.exception("the pointers could not be followed; trying again")
            await asyncio.sleep(RETRY_SECONDS)
        for name, problem in slots.problems.items():
            if known.get(name) != problem:
                metrics.load_failed(name)
        await asyncio.sleep(REFRESH_SECONDS)


if __name__ == "__main__":
    main()
