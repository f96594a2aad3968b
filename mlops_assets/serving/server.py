"""The model server: one process that follows the champion aliases, and the workers that answer.

Belongs here: their socket, their life and death, and how often aliases are looked at. Not here: answering
(`worker.py`), and what a look finds (`watcher.py`). Workers share one listening socket, so a connection that waits
while one dies is taken by another.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing, suppress
from typing import Final

from mlops_assets.errors import MlopsError
from mlops_assets.services import Service, ServiceError, answers, ended, require_free_port, started
from mlops_assets.serving.contract import ContractError
from mlops_assets.serving.metrics import wipe
from mlops_assets.serving.pointer import POINTER, Pointer, read_pointer, serving_folder
from mlops_assets.serving.registry import registry_of
from mlops_assets.serving.watcher import Watcher
from mlops_assets.settings import Settings

EMBEDDED_SECONDS: Final = 0.1
SERVER_SECONDS: Final = 0.3
"""Between two looks at the aliases: in the embedded database, where one costs a millisecond, and at a server."""

POKE_SECONDS: Final = 0.05
"""How often the file is looked at that a webhook touches."""

BACKLOG: Final = 2048
MOST_RESTARTS: Final = 5
RESTART_SECONDS: Final = 60.0
"""Time within which more than `MOST_RESTARTS` ends of workers are a fault that starting again does not mend."""


class AlreadyServing(MlopsError):
    """Another model server has this home."""


class ModelServer:
    """The server of a home.

    Args:
        here: The settings.
        tell: Takes lines for whoever started it.
    """

    def __init__(self, here: Settings, tell: Callable[[str], None]) -> None:
        self._here, self._tell = here, tell
        self._watcher = Watcher(here.home, registry_of(here))
        self._looked = self._poked = 0.0

    def run(self) -> None:
        """Serve until a signal comes.

        Raises:
            AlreadyServing: Another one has this home.
            ServiceError: A port is taken, or workers end again and again.
            KeyboardInterrupt: The signal, when everything has stopped.
        """
        from filelock import FileLock, Timeout

        here = self._here
        serving_folder(here.home).mkdir(parents=True, exist_ok=True)
        lock = FileLock(here.home / "serve.lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise AlreadyServing(f"another model server runs with {here.home}; stop it, or set MLOPS_HOME") from None
        with lock, closing(self._listen()) as listening:
            require_free_port(here.host, here.grpc_port, "MLOPS_GRPC_PORT")
            wipe(here.home / "metrics")
            self._watcher.look()
            self._supervise([self._worker(number, listening.fileno()) for number in range(here.serve_workers)])

    def _listen(self) -> socket.socket:
        here = self._here
        require_free_port(here.host, here.serve_port, "MLOPS_SERVE_PORT")
        listening = socket.socket(socket.AF_INET6 if ":" in here.host else socket.AF_INET)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((here.host, here.serve_port))
        listening.listen(BACKLOG)
        return listening

    def _worker(self, number: int, listening: int) -> Service:
        here = self._here
        command = [sys.executable, "-m", "mlops_assets.serving.worker", "--fd", str(listening)]
        command += ["--number", str(number), "--grpc-port", str(here.grpc_port)]
        return Service(
            f"worker {number} of the model server",
            command,
            here.home / "logs" / f"serve-{number}.log",
            files=(listening,),
        )

    def _supervise(self, services: Sequence[Service]) -> None:
        ends: list[float] = []
        with ExitStack() as all_workers:
            workers: dict[str, tuple[ExitStack, dict[str, subprocess.Popen[bytes]]]] = {}
            all_workers.callback(_stop, workers)
            for service in services:
                workers[service.name] = _start(service)
            self._await_answer(services, workers)
            self._introduce()
            while True:
                self._follow()
                for service in services:
                    stack, processes = workers[service.name]
                    if not (error := ended([service], processes)):
                        continue
                    now = time.monotonic()
                    ends = [when for when in ends if when > now - RESTART_SECONDS] + [now]
                    if len(ends) > MOST_RESTARTS:
                        raise error
                    self._tell(f"{error}; starting it again")
                    stack.close()
                    workers[service.name] = _start(service)
                time.sleep(POKE_SECONDS)

    def _await_answer(
        self,
        services: Sequence[Service],
        workers: dict[str, tuple[ExitStack, dict[str, subprocess.Popen[bytes]]]],
        seconds: float = 60.0,
    ) -> None:
        deadline = time.monotonic() + seconds
        while not answers(f"{self._here.serve_url}/v2/health/live"):
            for service in services:
                if error := ended([service], workers[service.name][1]):
                    raise error
            if time.monotonic() > deadline:
                raise ServiceError(f"the model server does not answer; its logs are in {self._here.home / 'logs'}")
            time.sleep(0.05)

    def _follow(self) -> None:
        """Look at the aliases when it is time, or when a webhook or a move of ours says so."""
        now, poke = time.monotonic(), self._here.registry_poke
        poked = poke.stat().st_mtime if poke.exists() else 0.0
        pause = SERVER_SECONDS if self._here.mlflow_tracking_uri else EMBEDDED_SECONDS
        if poked != self._poked or now - self._looked >= pause:
            self._poked = poked
            self._watcher.look()
            self._looked = time.monotonic()

    def _introduce(self) -> None:
        here = self._here
        self._tell(f"Model server  {here.serve_url}   (try {here.serve_url}/docs; gRPC on port {here.grpc_port})")
        pointers = list(answering(here))
        for one in pointers:
            accuracy = one.accuracy
            told = (
                f", accuracy {accuracy.estimate:.3f} [{accuracy.lower:.3f}, {accuracy.upper:.3f}]" if accuracy else ""
            )
            self._tell(f"  {one.pipeline}: " + (one.problem or f"version {one.version}{told}"))
        if not pointers:
            self._tell("  no pipeline has a champion yet; `mlops run NAME` trains one, and it is served at once")


def answering(here: Settings) -> list[Pointer]:
    """The pointers of all pipelines, by name."""
    found = []
    for path in sorted(serving_folder(here.home).glob(f"*/{POINTER}")):
        with suppress(ContractError):  # the watcher writes a damaged one anew, and workers tell of it
            found.append(read_pointer(path))
    return [one for one in found if one is not None]


def _start(service: Service) -> tuple[ExitStack, dict[str, subprocess.Popen[bytes]]]:
    stack = ExitStack()
    return stack, stack.enter_context(started([service]))


def _stop(workers: dict[str, tuple[ExitStack, dict[str, subprocess.Popen[bytes]]]]) -> None:
    """Stop all at once: each may take a while to finish what it is at."""
    for _, processes in workers.values():
        for process in processes.values():
            process.terminate()
    for stack, _ in workers.values():
        stack.close()
