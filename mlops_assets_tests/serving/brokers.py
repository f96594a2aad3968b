"""Real brokers on free ports, and what the tests put in and take out."""

import json
import shutil
import signal
import socket
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from mlops_assets_tests.processes.conftest import free_ports
from mlops_assets_tests.waiting import wait_for

SECONDS = 60
"""For what is only waited for in vain when something fails."""


class Broker(ABC):
    """A server process of this test, and a client of it."""

    def __init__(self, url: str) -> None:
        self.url = url

    @abstractmethod
    def put(self, bodies: Sequence[bytes], subject: str = "flowers.in") -> None: ...

    @abstractmethod
    def count(self, subject: str = "flowers.out") -> int: ...

    @abstractmethod
    def bodies(self, subject: str = "flowers.out") -> list[bytes]: ...

    def taken(self, subject: str = "flowers.out") -> list[dict[str, Any]]:
        return [json.loads(body) for body in self.bodies(subject)]


class NatsServer(Broker):
    def put(self, bodies: Sequence[bytes], subject: str = "flowers.in") -> None:
        from nats.js.errors import BadRequestError

        async def work(jetstream: Any) -> None:
            import asyncio

            with suppress(BadRequestError):
                await jetstream.add_stream(name=subject.replace(".", "_"), subjects=[subject])
            await asyncio.gather(*(jetstream.publish(subject, body) for body in bodies))

        self._with(work)

    def count(self, subject: str = "flowers.out") -> int:
        from nats.js.errors import NotFoundError

        async def work(jetstream: Any) -> int:
            try:
                return int((await jetstream.stream_info(subject.replace(".", "_"))).state.messages)
            except NotFoundError:
                return 0

        return int(self._with(work))

    def bodies(self, subject: str = "flowers.out") -> list[bytes]:
        from nats.js.api import AckPolicy, ConsumerConfig

        wanted = self.count(subject)

        async def work(jetstream: Any) -> list[bytes]:
            unacknowledged = ConsumerConfig(ack_policy=AckPolicy.NONE)
            reader = await jetstream.pull_subscribe(subject, stream=subject.replace(".", "_"), config=unacknowledged)
            found: list[bytes] = []
            while len(found) < wanted:
                found += [one.data for one in await reader.fetch(min(500, wanted - len(found)), timeout=SECONDS)]
            await reader.unsubscribe()
            return found

        return self._with(work) if wanted else []

    def _with(self, work: Callable[[Any], Any]) -> Any:
        import asyncio

        import nats

        async def run() -> Any:
            client = await nats.connect(self.url)
            try:
                return await work(client.jetstream(timeout=SECONDS))
            finally:
                await client.close()

        return asyncio.run(run())


class RedisServer(Broker):
    def put(self, bodies: Sequence[bytes], subject: str = "flowers.in") -> None:
        with self._client() as client:
            pipeline = client.pipeline(transaction=False)
            for body in bodies:
                pipeline.xadd(subject, {"data": body})
            pipeline.execute()

    def count(self, subject: str = "flowers.out") -> int:
        with self._client() as client:
            return int(client.xlen(subject))

    def bodies(self, subject: str = "flowers.out") -> list[bytes]:
        with self._client() as client:
            return [fields[b"data"] for _, fields in client.xrange(subject)]

    def _client(self) -> Any:
        from redis import Redis

        return Redis.from_url(self.url)


@contextmanager
def nats_server(folder: Path) -> Iterator[NatsServer]:
    (port,) = free_ports(1)
    command = ["nats-server", "-js", "-a", "127.0.0.1", "-p", str(port), "-sd", str(folder)]
    with _running(command, port):
        yield NatsServer(f"nats://127.0.0.1:{port}")


@contextmanager
def redis_server(folder: Path) -> Iterator[RedisServer]:
    folder.mkdir()
    (port,) = free_ports(1)
    command = ["redis-server", "--bind", "127.0.0.1", "--port", str(port), "--save", "", "--dir", str(folder)]
    with _running(command, port):
        yield RedisServer(f"redis://127.0.0.1:{port}")


@contextmanager
def _running(command: list[str], port: int) -> Iterator[None]:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: _answers(port), f"{command[0]} on port {port}")
        yield
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def _answers(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0
