"""Limits on bytes, rows, requests at once and time."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn

from mlops_assets.serving import limits as limits_module
from mlops_assets.serving.app import ModelServer, create_app
from mlops_assets.serving.http_connections import bounded
from mlops_assets.serving.limits import Limits
from mlops_assets.serving.metrics import Metrics
from mlops_assets.serving.slot import Answer, Slot
from mlops_assets.serving.slots import Slots
from mlops_assets_tests.serving.asking import app_of, ask, client_of
from mlops_assets_tests.serving.made import publish_images, publish_table

PREDICT = "/models/flowers/predict"
ROW = {"length": 5.1, "width": 3.5}
BODY = json.dumps({"rows": [ROW]}).encode()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    publish_table(tmp_path)
    publish_images(tmp_path)
    return tmp_path


async def chunks(*parts: bytes, after: asyncio.Event | None = None) -> AsyncIterator[bytes]:
    """A body whose last part waits."""
    for part in parts[:-1]:
        yield part
    if after is not None:
        await after.wait()
    yield parts[-1]


@pytest.mark.parametrize(
    "path", [PREDICT, "/v2/models/flowers/infer", "/models/flowers/invocations", "/models/scans/images"]
)
def test_larger_body_is_refused_however_it_is_sent(home: Path, path: str) -> None:
    app = app_of(home, Limits(bytes=100))
    headers = {"content-type": "image/png"}
    for content in (b"x" * 101, chunks(b"x" * 60, b"x" * 41)):
        answer = ask(app, "POST", path, content=content, headers=headers)
        assert answer.status_code == 413
    assert ask(app, "POST", PREDICT, content=BODY).status_code == 200


def test_body_of_exactly_the_limit_is_taken(home: Path) -> None:
    app = app_of(home, Limits(bytes=len(BODY)))
    assert ask(app, "POST", PREDICT, content=BODY).status_code == 200
    assert ask(app, "POST", PREDICT, content=chunks(BODY[:9], BODY[9:])).status_code == 200


def test_body_is_not_read_beyond_the_limit(home: Path) -> None:
    taken = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal taken
        while True:
            taken += 1
            yield b"x" * 50

    assert ask(app_of(home, Limits(bytes=100)), "POST", PREDICT, content=endless()).status_code == 413
    assert taken == 3


@pytest.mark.parametrize("path", [PREDICT, "/v2/models/flowers/infer", "/invocations", "/models/flowers/feedback"])
def test_less_json_is_taken_than_of_bytes(table_home: Path, path: str) -> None:
    """`[],[],...` of 32 MiB takes seconds to parse, and a gigabyte."""
    app = app_of(table_home)
    most = Limits().json_bytes
    for content in (b" " * (most + 1), chunks(b" " * most, b" ")):
        answer = ask(app, "POST", path, content=content)
        assert answer.status_code == 413
        assert f"takes {most} bytes of JSON" in answer.json()["error"]
    assert ask(app, "POST", path, content=b" " * most).status_code == 400


def test_binary_tensors_may_be_larger_than_json(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits_module, "JSON_BYTES", 200)
    pixels = np.full((20, 8, 8, 1), 100, np.uint8)
    tensor = {"name": "input", "datatype": "UINT8", "shape": pixels.shape}
    header = json.dumps({"inputs": [{**tensor, "parameters": {"binary_data_size": pixels.nbytes}}]}).encode()
    for space, status in ((0, 200), (200, 413)):
        padded = header + b" " * space
        headers = {"Inference-Header-Content-Length": str(len(padded))}
        path = "/v2/models/scans/infer"
        assert ask(app_of(home), "POST", path, content=padded + pixels.tobytes(), headers=headers).status_code == status


def test_compressed_body_is_refused(home: Path) -> None:
    app = app_of(home)
    for path in (PREDICT, "/models/scans/images"):
        headers = {"content-encoding": "gzip", "content-type": "multipart/form-data; boundary=x"}
        answer = ask(app, "POST", path, content=BODY, headers=headers)
        assert (answer.status_code, answer.json()["field"]) == (415, "content-encoding")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (PREDICT, {"rows": [ROW] * 3}),
        ("/models/flowers/invocations", {"dataframe_records": [ROW] * 3}),
        ("/models/flowers/invocations", {"inputs": {"length": [1, 2, 3], "width": [1, 2, 3]}}),
        (
            "/v2/models/flowers/infer",
            {"inputs": [{"name": name, "datatype": "FP64", "shape": [3], "data": [1, 2, 3]} for name in ROW]},
        ),
    ],
)
def test_more_rows_are_refused(home: Path, path: str, body: dict[str, Any]) -> None:
    answer = ask(app_of(home, Limits(rows=2)), "POST", path, json=body)
    assert answer.status_code == 413
    assert "has 3 rows, and this server takes 2" in answer.json()["error"]
    assert ask(app_of(home, Limits(rows=3)), "POST", path, json=body).status_code == 200


def test_more_requests_at_once_are_shed_but_not_health(home: Path) -> None:
    metrics = Metrics()
    app = app_of(home, Limits(concurrency=2), metrics=metrics)

    async def crowd() -> tuple[httpx.Response, list[httpx.Response]]:
        opened = asyncio.Event()
        async with client_of(app) as client:
            waiting = [
                asyncio.create_task(client.post(path, content=chunks(b"{", b"}", after=opened)))
                for path in (PREDICT, "/models/scans/predict")
            ]
            while app.answering.running < 2:
                await asyncio.sleep(0)
            shed = await client.post(PREDICT, content=BODY)
            calm = [await client.get(path) for path in ("/v2/health/live", "/v2/health/ready", "/health", "/metrics")]
            opened.set()
            await asyncio.gather(*waiting)
            after = await client.post(PREDICT, content=BODY)
        return shed, [*calm, after]

    shed, fine = asyncio.run(crowd())
    assert (shed.status_code, shed.headers["retry-after"]) == (503, "1")
    assert [one.status_code for one in fine] == [200] * 5
    assert 'outcome="shed"' in ask(app, "GET", "/metrics").text


@pytest.mark.parametrize("others", [True, False])
def test_one_pipeline_leaves_room_for_others(tmp_path: Path, others: bool) -> None:
    publish_table(tmp_path)
    if others:
        publish_images(tmp_path)
    app = app_of(tmp_path, Limits(concurrency=4))

    async def crowd() -> tuple[int, int]:
        opened = asyncio.Event()
        async with client_of(app) as client:
            waiting = [
                asyncio.create_task(client.post(PREDICT, content=chunks(b"{", b"}", after=opened))) for _ in range(3)
            ]
            while app.answering.running < 3:
                await asyncio.sleep(0)
            same = await client.post(PREDICT, content=BODY)
            other = await client.post("/v2/models/scans/infer", content=BODY)
            opened.set()
            await asyncio.gather(*waiting)
        return same.status_code, other.status_code

    assert asyncio.run(crowd()) == ((429, 400) if others else (200, 404))


def test_slow_body_is_given_up(home: Path) -> None:
    answer = ask(app_of(home, Limits(seconds=0.05)), "POST", PREDICT, content=chunks(b"{", b"}", after=asyncio.Event()))
    assert (answer.status_code, answer.headers["connection"]) == (408, "close")
    assert "did not come within 0.05 s" in answer.json()["error"]


def test_slow_answer_is_given_up_between_its_passes(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passes, now = 0, 0.0

    def slow(self: Slot, batch: Any) -> Answer:
        nonlocal passes, now
        passes += 1
        now += 0.03
        return Answer(["setosa"] * len(batch), np.zeros((len(batch), 3), np.float32))

    slots = Slots(home)
    slots.refresh()
    slots["flowers"].row_seconds = 0.05  # so that each row is a pass
    app = create_app(slots, limits=Limits(seconds=0.1), log=None, metrics=None)
    monkeypatch.setattr(Slot, "answer", slow)

    async def once() -> httpx.Response:
        # no time passes but in passes: it must not be up before the first, however busy the machine is
        monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now)
        async with client_of(app) as client:
            return await client.post(PREDICT, json={"rows": [ROW] * 50})

    answer = asyncio.run(once())
    assert (answer.status_code, answer.headers["retry-after"]) == (504, "1")
    assert 4 <= passes <= 5  # time is up in the fourth, which is noticed when it has ended or a moment after


def test_client_that_goes_leaves_nothing_behind(home: Path) -> None:
    app = app_of(home, Limits(concurrency=1))

    async def gone() -> dict[str, str]:
        return {"type": "http.disconnect"}

    async def nowhere(message: Any) -> None:
        raise AssertionError(message)

    scope = {"type": "http", "method": "POST", "path": PREDICT, "raw_path": PREDICT.encode(), "query_string": b""}
    asyncio.run(app({**scope, "headers": [], "root_path": ""}, gone, nowhere))
    assert ask(app, "POST", PREDICT, content=BODY).status_code == 200


def test_a_process_that_is_stopped_answers_and_closes(home: Path) -> None:
    app = app_of(home)
    app.condition.draining = True
    answer = ask(app, "POST", PREDICT, content=BODY)
    assert (answer.status_code, answer.headers["connection"]) == (200, "close")


Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Connect = Callable[[bytes], Awaitable[Connection]]

HEALTH = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"
HEAD = f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(BODY)}\r\n\r\n".encode()


def over_sockets(
    app: ModelServer, talk: Callable[[Connect], Awaitable[None]], *, most: int = 100, head_seconds: float = 30
) -> None:
    """Talk to a server with the connections of a worker's."""

    async def run() -> None:
        protocol = bounded(most, head_seconds)
        config = uvicorn.Config(
            app, port=0, http=protocol, ws="none", lifespan="off", log_config=None, timeout_keep_alive=60
        )
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        writers = []

        async def connect(sent: bytes) -> Connection:
            reader, writer = await asyncio.open_connection(*server.servers[0].sockets[0].getsockname())
            writers.append(writer)
            writer.write(sent)
            return reader, writer

        try:
            async with asyncio.timeout(60):
                await talk(connect)
        finally:
            for writer in writers:
                writer.close()
            server.should_exit = True
            await serving

    asyncio.run(run())


async def answered(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    await reader.readexactly(length)
    return head[:15]


def test_connections_that_begin_a_request_and_do_not_end_its_head_are_closed(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def talk(connect: Connect) -> None:
        slow, slow_writer = await connect(HEAD + BODY[:5])
        half = [await connect(sent) for sent in (b"", b"G", HEALTH[:-2])]
        # after an answer: the next head, and a byte of a body that nobody waits for
        for asked in (HEALTH, HEALTH.replace(b"Host", b"Content-Length: 9\r\nHost")):
            reader, writer = await connect(asked)
            await answered(reader)
            writer.write(b"G")
            half.append((reader, writer))
        calm, calm_writer = await connect(HEALTH)
        await answered(calm)
        loop = asyncio.get_running_loop()
        now = loop.time
        monkeypatch.setattr(loop, "time", lambda: now() + 10)  # a pause before would close the others too
        for reader, _ in half:
            await reader.read()  # until the server closes
        slow_writer.write(BODY[5:])
        assert await answered(slow) == b"HTTP/1.1 200 OK"
        calm_writer.write(HEALTH)
        assert await answered(calm) == b"HTTP/1.1 200 OK"

    over_sockets(app_of(home), talk, head_seconds=10)


def test_of_too_many_connections_the_one_that_was_idle_for_longest_is_closed(home: Path) -> None:
    app = app_of(home)

    async def talk(connect: Connect) -> None:
        busy, busy_writer = await connect(HEAD + BODY[:5])
        while not app.answering.running:
            await asyncio.sleep(0.01)
        idle = [await connect(b"") for _ in range(2)]
        for _ in range(4):
            reader, _writer = await connect(HEALTH)
            assert await answered(reader) == b"HTTP/1.1 200 OK"
        for reader, _ in idle:
            with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                await reader.readexactly(1)
        busy_writer.write(BODY[5:])
        assert await answered(busy) == b"HTTP/1.1 200 OK"

    over_sockets(app, talk, most=3)
