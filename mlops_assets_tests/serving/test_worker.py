"""A worker process: what it loads, how it follows the pointers, how it ends."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from mlops_assets.serving.prediction_log import read
from mlops_assets_tests.serving.made import TABLE_FEATURES, loaded, publish_table

BODY = {"rows": [{"length": 5.1, "width": 3.5}]}
PREDICT = "/models/flowers/predict"
PROGRAM = ("-m", "mlops_assets.serving.worker")
PATIENT = ("-c", "from mlops_assets.serving import worker; worker.LEAVE_SECONDS = 5; worker.main()")
"""On a busy machine, a worker may stand still for longer than it takes to leave."""

pytestmark = pytest.mark.slow


class Worker:
    """A worker with its socket."""

    def __init__(self, home: Path, program: tuple[str, str], **variables: str) -> None:
        self.socket = socket.socket()
        self.socket.bind(("127.0.0.1", 0))
        self.socket.listen()
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        fd = self.socket.fileno()
        self.process = subprocess.Popen(
            [sys.executable, *program, "--fd", str(fd)],
            pass_fds=[fd],
            env={**os.environ, "MLOPS_HOME": str(home), **variables},
        )


@contextmanager
def working(home: Path, program: tuple[str, str] = PROGRAM, **variables: str) -> Iterator[Worker]:
    """A worker that answers."""
    worker = Worker(home, program, **variables)
    try:
        with asking(worker.url) as client:
            assert client.get("/v2/health/live").status_code == 200
        yield worker
    finally:
        worker.process.kill()
        worker.process.wait()
        worker.socket.close()


def asking(url: str) -> httpx.Client:
    return httpx.Client(base_url=url, trust_env=False, timeout=60)


def until(true: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_worker_loads_nothing_heavy(table_home: Path) -> None:
    script = """
import json, sys
from pathlib import Path
from mlops_assets.serving import worker, app, grpc_v2, batcher, prediction_log, slots
known = slots.Slots(Path(sys.argv[1]))
known.refresh()
known["flowers"].answer(known["flowers"].from_records([{"length": 5.1, "width": 3.5}]))
print(json.dumps([name for name in sys.modules if "." not in name]))
"""
    made = subprocess.run([sys.executable, "-c", script, str(table_home)], capture_output=True, text=True, check=True)
    heavy = {"torch", "mlflow", "dagster", "pandas", "pandera", "gradio", "sklearn", "scipy", "pyarrow", "matplotlib"}
    assert heavy & set(json.loads(made.stdout)) == set()


def test_worker_answers_with_what_the_pointer_says(table_home: Path) -> None:
    with working(table_home) as worker, asking(worker.url) as client:
        assert client.post(PREDICT, json=BODY).headers["x-model-version"] == "1"
        publish_table(table_home, 2)
        until(lambda: client.post(PREDICT, json=BODY).headers["x-model-version"] == "2")
        publish_table(table_home, 3, unservable="its features need other rows")
        until(lambda: "its features need other rows" in client.get("/health").text)
        assert client.post(PREDICT, json=BODY).headers["x-model-version"] == "2"
        assert "mlops_model_load_failures_total" in client.get("/metrics").text


def test_code_that_panics_when_it_is_imported_leaves_the_version_before(table_home: Path) -> None:
    pointer = publish_table(table_home)
    sources = loaded(table_home, pointer).contract.sources
    panic = 'import polars as pl\npl.select(pl.from_epoch(pl.lit(2147483647), "d").dt.month_end())\n'
    with working(table_home) as worker, asking(worker.url) as client:
        publish_table(table_home, 2, sources={**sources, "flowers/features.py": panic + TABLE_FEATURES})
        until(lambda: "PanicException" in client.get("/health").text)
        assert client.post(PREDICT, json=BODY).headers["x-model-version"] == "1"
        publish_table(table_home, 3)
        until(lambda: client.post(PREDICT, json=BODY).headers["x-model-version"] == "3")


def test_worker_that_follows_no_longer_ends_so_that_it_is_started_again(table_home: Path) -> None:
    pointer = publish_table(table_home)
    sources = loaded(table_home, pointer).contract.sources
    ending = "import asyncio\nraise asyncio.CancelledError\n"
    with working(table_home) as worker:
        publish_table(table_home, 2, sources={**sources, "flowers/features.py": ending + TABLE_FEATURES})
        assert worker.process.wait(60) == 1


def test_worker_that_is_stopped_loses_no_request(table_home: Path) -> None:
    """Requests go on through the end of one worker and the beginning of the next, on the same socket."""
    failed: list[str] = []
    answered = 0
    ended = threading.Event()

    def ask(url: str) -> None:
        nonlocal answered
        with asking(url) as client:
            while not ended.is_set():
                try:
                    answer = client.post(PREDICT, json=BODY)
                    answered += 1
                    if answer.status_code != 200:
                        failed.append(answer.text)
                except httpx.HTTPError as error:
                    failed.append(repr(error))

    with working(table_home, PATIENT, MLOPS_SERVE_DRAIN_SECONDS="0.2") as worker:
        clients = [threading.Thread(target=ask, args=(worker.url,)) for _ in range(4)]
        for one in clients:
            one.start()
        try:
            until(lambda: answered > 50)
            worker.process.send_signal(signal.SIGTERM)
            assert worker.process.wait(60) == 0
            before = answered
            fd = worker.socket.fileno()
            worker.process = subprocess.Popen(
                [sys.executable, *PROGRAM, "--fd", str(fd), "--number", "1"],
                pass_fds=[fd],
                env={**os.environ, "MLOPS_HOME": str(table_home)},
            )
            until(lambda: answered > before + 50)
        finally:
            ended.set()
            for one in clients:
                one.join()
    assert failed == []
    assert read(table_home, "flowers").collect().height >= before


def test_worker_that_is_stopped_finishes_what_it_began(table_home: Path) -> None:
    with working(table_home) as worker:
        address = ("127.0.0.1", int(worker.url.rpartition(":")[2]))
        body = json.dumps(BODY).encode()
        with socket.create_connection(address, timeout=60) as client, asking(worker.url) as other:
            head = f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
            client.sendall(head.encode() + body[:5])
            until(lambda: "mlops_requests_in_flight 1.0\n" in other.get("/metrics").text)  # it has begun
            worker.process.send_signal(signal.SIGTERM)
            time.sleep(0.7)
            assert worker.process.poll() is None
            client.sendall(body[5:])
            answer = b"".join(iter(lambda: client.recv(65536), b""))
        assert answer.startswith(b"HTTP/1.1 200 OK")
        assert b"connection: close" in answer.lower()
        assert worker.process.wait(60) == 0
