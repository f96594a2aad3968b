"""The worker of a stream: its answers, and as a process of its own against real brokers."""

import base64
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from mlops_assets.serving import stream, stream_wire
from mlops_assets.serving.slots import NotServed, Slots
from mlops_assets.serving.stream import Worker
from mlops_assets.serving.stream_brokers import connection
from mlops_assets.serving.stream_messages import MOST_ROWS, Incoming, respond
from mlops_assets.serving.stream_wire import Route, StreamError, shown
from mlops_assets_tests.serving.brokers import Broker, nats_server, redis_server
from mlops_assets_tests.serving.made import (
    IMAGE_CLASSES,
    TABLE_CLASSES,
    TABLE_FEATURES,
    TABLE_SAMPLE,
    publish_table,
)
from mlops_assets_tests.waiting import wait_for

ROW = TABLE_SAMPLE[0]
MAIN = """
import typer
from mlops_assets.cli.stream import stream
from mlops_assets.serving import stream_wire
stream_wire.CONNECT_SECONDS = 60  # the broker is there, and the client takes seconds to import on a busy machine
typer.run(stream)
"""


@pytest.fixture(params=["nats", "redis"])
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Broker]:
    server = {"nats": nats_server, "redis": redis_server}[request.param]
    with server(tmp_path / "broker") as running:
        yield running


class Running:
    """A worker's process."""

    def __init__(self, home: Path, broker: Broker, *options: str) -> None:
        self.output = home / f"worker-{time.monotonic_ns()}.log"
        route = ["--from", "flowers.in", "--to", "flowers.out", "--redeliver", "1", *options]
        with self.output.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", MAIN, "flowers", "--broker", broker.url, *route],
                env=os.environ | {"MLOPS_HOME": str(home)},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@pytest.fixture
def workers() -> Iterator[list[Running]]:
    started: list[Running] = []
    yield started
    for one in started:
        one.process.kill()
        one.process.wait()


def messages(count: int, first: int = 0) -> list[bytes]:
    rows = [{"id": f"m{first + index}", "row": {**ROW, "count": index}} for index in range(count)]
    return [json.dumps(row).encode() for row in rows]


def incoming(*bodies: bytes) -> list[Incoming]:
    return [Incoming(f"rows:{index}", body, redelivered=False, raw=None) for index, body in enumerate(bodies)]


def slot_of(home: Path, name: str) -> Any:
    slots = Slots(home)
    slots.refresh()
    return slots[name]


def answers(home: Path, bodies: Sequence[bytes], name: str = "flowers") -> list[dict[str, Any]]:
    return [json.loads(one.body) for one in respond(slot_of(home, name), incoming(*bodies))]


def test_messages_are_answered_together_and_bad_ones_say_why(table_home: Path) -> None:
    rows = [{**ROW, "length": 1 + index / 7} for index in range(5)]
    good = [json.dumps({"row": row}).encode() for row in rows[:3]] + [json.dumps({"rows": rows[3:]}).encode()]
    bad = [
        (b"\xff\xfe", "", "not JSON"),
        (b"[1]", "row", "either 'row' or 'rows'"),
        (json.dumps({"row": ROW, "rows": [ROW]}).encode(), "row", "either"),
        (json.dumps({"id": 1.5, "row": ROW}).encode(), "id", "'id'"),
        (json.dumps({"rows": []}).encode(), "rows", f"1 to {MOST_ROWS:,}"),
        (json.dumps({"row": {**ROW, "length": "long"}}).encode(), "length", "is not Float64"),
        (json.dumps({"rows": [ROW, {**ROW, "colour": "green"}]}).encode(), "colour", "row 1"),
        (json.dumps({"row": {**ROW, "height": 3}}).encode(), "height", "no column 'height'"),
        (json.dumps({"row": 7}).encode(), "", "not an object"),
    ]
    mixed = [good[0], *(body for body, _, _ in bad[:5]), good[1], *(body for body, _, _ in bad[5:]), *good[2:]]
    said = answers(table_home, mixed)
    alone = [answers(table_home, [body])[0]["predictions"] for body in good]
    given = [one["predictions"] for one in said if "predictions" in one]
    assert [[two["label"] for two in one] for one in given] == [[two["label"] for two in one] for one in alone]
    assert [len(one) for one in given] == [1, 1, 1, 2]
    assert list(given[0][0]["probabilities"]) == list(TABLE_CLASSES)
    assert sum(given[0][0]["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    for letter, (body, field, reason) in zip([one for one in said if "reason" in one], bad, strict=True):
        assert base64.b64decode(letter["original"]) == body
        assert letter["field"] == field
        assert reason in letter["reason"]
    assert len({one["id"] for one in said}) == len(said)
    assert {one["version"] for one in said} == {1}


def test_an_answer_is_called_after_its_message_and_its_model(table_home: Path) -> None:
    body = json.dumps({"id": "ä\n7", "row": ROW}).encode()
    (first,), (again,) = answers(table_home, [body]), answers(table_home, [body])
    assert first == again
    assert first["request_id"] == "ä\n7"
    (unnamed,) = answers(table_home, [json.dumps({"row": ROW}).encode()])
    assert unnamed["request_id"] == "rows:0"
    publish_table(table_home, 2)
    (other,) = answers(table_home, [body])
    assert other["version"] == 2
    assert other["id"] != first["id"]


def test_what_the_features_code_raises_is_a_dead_letter_of_its_message_alone(table_home: Path) -> None:
    failing = TABLE_FEATURES.replace(
        "    return frame.select(", '    if (frame["length"] == 13).any():\n        1 / 0\n    return frame.select('
    )
    sources = {**slot_of(table_home, "flowers").contract.sources, "flowers/features.py": failing}
    publish_table(table_home, 2, sources=sources)
    lengths = [13.0 if index == 5 else 1.0 + index for index in range(9)]
    said = answers(table_home, [json.dumps({"row": {**ROW, "length": length}}).encode() for length in lengths])
    assert [("reason" in one) for one in said] == [length == 13 for length in lengths]
    assert "ZeroDivisionError" in said[5]["reason"]


def test_images_come_as_files(image_home: Path) -> None:
    import io

    import numpy as np
    from PIL import Image

    pixels = np.random.default_rng(3).integers(0, 256, (8, 8), dtype=np.uint8)
    written = io.BytesIO()
    Image.fromarray(pixels).save(written, "png")
    file = {"row": {"file": base64.b64encode(written.getvalue()).decode()}}
    said = answers(image_home, [json.dumps(file).encode(), b'{"row": {"file": "%%"}}'], "scans")
    assert said[0]["predictions"][0]["label"] in IMAGE_CLASSES
    assert "base64" in said[1]["reason"]


@pytest.mark.parametrize(
    ("url", "options", "sentence"),
    [
        ("http://localhost", {}, "must begin with one of nats://"),
        ("nats://localhost", {"to": "in"}, "three different places"),
    ],
)
def test_a_route_that_cannot_work_is_refused(url: str, options: dict[str, str], sentence: str) -> None:
    route = Route(
        **{"pipeline": "flowers", "source": "in", "to": "out", "dead": "dead", **options}, batch=8, redeliver=1
    )
    with pytest.raises(StreamError, match=sentence):
        connection(url, route, print)


@pytest.mark.parametrize("scheme", [pytest.param("nats", marks=pytest.mark.slow), "redis", "amqp"])
def test_a_broker_that_is_not_there_is_one_sentence_without_the_password(table_home: Path, scheme: str) -> None:
    import asyncio

    url = f"{scheme}://me:secret@127.0.0.1:1"
    route = Route("flowers", "in", "out", "dead", batch=8, redeliver=1)
    slots = Slots(table_home)
    with pytest.raises(NotServed, match="'flowers' is not served"):
        asyncio.run(Worker(connection(url, route, print), slots, slots.refresh, table_home, print).run())
    slots.refresh()
    with pytest.raises(StreamError, match="start it, or correct --broker") as failed:
        asyncio.run(Worker(connection(url, route, print), slots, slots.refresh, table_home, print).run())
    assert "secret" not in str(failed.value)
    assert "secret" not in shown(url)


def test_a_champion_that_is_away_is_waited_for(table_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio

    monkeypatch.setattr(stream, "LOOK_SECONDS", 0.01)
    told: list[str] = []
    wire = connection("amqp://localhost", Route("flowers", "in", "out", "dead", batch=8, redeliver=1), told.append)
    slots = Slots(table_home)
    slots.refresh()
    worker = Worker(wire, slots, slots.refresh, table_home, told.append)

    async def run() -> None:
        looking = asyncio.create_task(worker._look())
        (table_home / "serving" / "flowers" / "current.json").unlink()
        for expected in ("no version of flowers answers any more", "version 2 answers from now on"):
            async with asyncio.timeout(60):
                while expected not in told:
                    assert not looking.done()
                    await asyncio.sleep(0.01)
            publish_table(table_home, 2)
        looking.cancel()

    asyncio.run(run())


def test_a_worker_that_follows_no_longer_ends(table_home: Path) -> None:
    import asyncio

    from faststream.rabbit import TestRabbitBroker

    def look() -> None:
        raise OSError("the disk is gone")

    slots = Slots(table_home)
    slots.refresh()
    wire = connection("amqp://localhost", Route("flowers", "in", "out", "dead", batch=8, redeliver=1), print)

    async def run() -> None:
        async with asyncio.timeout(60), TestRabbitBroker(wire.broker):
            await Worker(wire, slots, look, table_home, print).run()

    with pytest.raises(OSError, match="the disk is gone"):
        asyncio.run(run())


@pytest.mark.slow
def test_a_worker_that_takes_messages_no_longer_ends(
    table_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import asyncio

    monkeypatch.setattr(stream_wire, "CONNECT_SECONDS", 60)
    slots = Slots(table_home)
    slots.refresh()

    async def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a defect of the client")

    async def run(url: str) -> None:
        wire: Any = connection(url, Route("flowers", "in", "out", "dead", batch=8, redeliver=1), print)
        working = asyncio.create_task(Worker(wire, slots, slots.refresh, table_home, print).run())
        async with asyncio.timeout(60):
            while not hasattr(wire, "_pulling"):
                await asyncio.sleep(0.05)
        wire._messages.fetch = broken
        ended, _ = await asyncio.wait({working}, timeout=60)
        assert ended
        await working

    with nats_server(tmp_path / "broker") as broker, pytest.raises(RuntimeError, match="a defect of the client"):
        asyncio.run(run(broker.url))


@pytest.mark.parametrize("scheme", ["kafka", "amqp"])
def test_kafka_and_rabbitmq_in_memory(table_home: Path, scheme: str) -> None:
    """FastStream's stand-ins, since no server of either runs here: what we ask for is accepted and comes out."""
    import asyncio

    from faststream.kafka import TestKafkaBroker
    from faststream.rabbit import TestRabbitBroker

    slots = Slots(table_home)
    slots.refresh()
    wire = connection(f"{scheme}://localhost", Route("flowers", "in", "out", "dead", batch=8, redeliver=1), print)
    wire._subscribe(Worker(wire, slots, slots.refresh, table_home, print)._handle)
    said: list[tuple[str, Any]] = []

    async def taken(message: Any) -> None:
        raw = message.raw_message
        said.append((getattr(raw, "topic", "") or raw.routing_key, json.loads(message.body)))

    async def undecoded(message: Any) -> Any:
        return message

    async def run() -> None:
        for subject in ("out", "dead"):
            wire.broker.subscriber(subject)(taken, decoder=undecoded)
        async with (TestKafkaBroker if scheme == "kafka" else TestRabbitBroker)(wire.broker) as running:
            for body in (messages(1)[0], b"\xff"):
                await (running.publish_batch(body, topic="in") if scheme == "kafka" else running.publish(body, "in"))

    asyncio.run(run())
    assert [subject for subject, _ in said] == ["out", "dead"]
    assert said[0][1]["request_id"] == "m0"
    assert base64.b64decode(said[1][1]["original"]) == b"\xff"


@pytest.mark.slow
def test_killed_in_the_middle_nothing_is_lost_and_nothing_twice(
    table_home: Path, broker: Broker, workers: list[Running]
) -> None:
    count = killed = 0
    while killed < 2:  # in the middle: where all was answered before this looked, there is another try
        broker.put(messages(1000, first=count))
        count += 1000
        workers.append(Running(table_home, broker, "--batch", "16"))
        wait_for(lambda: broker.count() >= count - 800, "answers")  # noqa: B023
        workers[-1].process.kill()
        workers[-1].process.wait()
        killed += broker.count() < count
    workers.append(Running(table_home, broker, "--batch", "16"))
    wait_for(lambda: broker.count() >= count, "all answers")
    assert workers[-1].end() == 0
    said = broker.taken()
    assert sorted(one["request_id"] for one in said) == sorted(f"m{index}" for index in range(count))
    assert len({one["id"] for one in said}) == count
    assert broker.count("flowers.out-dead") == 0
    assert "stopped: " in workers[-1].output.read_text()


@pytest.mark.slow
def test_bad_messages_go_aside_and_a_swap_goes_unnoticed(
    table_home: Path, broker: Broker, workers: list[Running]
) -> None:
    broker.put([b"{", *messages(50), b"\xff\x00"])
    workers.append(Running(table_home, broker, "--redeliver", "60"))  # what takes a second is not answered twice
    wait_for(lambda: broker.count() == 50, "the first answers")
    wait_for(lambda: broker.count("flowers.out-dead") == 2, "the dead letters")
    publish_table(table_home, 2)
    wait_for(lambda: "version 2 answers from now on" in workers[0].output.read_text(), "the swap")
    broker.put(messages(50, first=50))
    wait_for(lambda: broker.count() == 100, "the answers of version 2")
    versions = {one["request_id"]: one["version"] for one in broker.taken()}
    assert versions == {f"m{index}": 1 if index < 50 else 2 for index in range(100)}
    letters = broker.taken("flowers.out-dead")
    assert [base64.b64decode(one["original"]) for one in letters] == [b"{", b"\xff\x00"]
    wait_for(lambda: "100 answered, 2 dead letters, 0 waiting" in workers[0].output.read_text(), "the progress")
    assert workers[0].end() == 0
    told = workers[0].output.read_text()
    assert not [word for word in ("Error", "exception", "go back") if word in told], told


@pytest.mark.slow
def test_a_message_that_kills_ends_as_a_dead_letter_and_its_neighbours_do_not(
    table_home: Path, broker: Broker, workers: list[Running]
) -> None:
    killing = TABLE_FEATURES.replace(
        "    return frame.select(",
        '    if (frame["length"] == 13).any():\n        import os\n\n        os.kill(os.getpid(), 9)\n'
        "    return frame.select(",
    )
    sources = {**slot_of(table_home, "flowers").contract.sources, "flowers/features.py": killing}
    publish_table(table_home, 2, sources=sources)
    killer = json.dumps({"id": "killer", "row": {**ROW, "length": 13}}).encode()
    broker.put([*messages(5), killer, *messages(5, first=5)])
    deaths = 0
    # the first one takes it among the others, and not alone as what was delivered before, however slow it is
    workers.append(Running(table_home, broker, "--redeliver", "60"))
    while not broker.count("flowers.out-dead"):
        if workers[-1].process.poll() is not None:
            deaths += 1
            assert deaths < 10
            workers.append(Running(table_home, broker))
        time.sleep(0.1)
    wait_for(lambda: broker.count() == 10, "the answers")
    assert deaths == 4
    (letter,) = broker.taken("flowers.out-dead")
    assert letter["request_id"] == "killer"
    assert "died 3 times" in letter["reason"]
    assert {one["request_id"] for one in broker.taken()} == {f"m{index}" for index in range(10)}
    assert workers[-1].end() == 0


@pytest.mark.slow
def test_two_workers_share_the_messages(table_home: Path, broker: Broker, workers: list[Running]) -> None:
    # what takes a second is not answered twice
    workers.extend(Running(table_home, broker, "--batch", "4", "--redeliver", "60") for _ in range(2))
    wait_for(lambda: all("answers flowers.in" in one.output.read_text() for one in workers), "both workers")
    count = 0
    while count < 400 or not all(" a second" in one.output.read_text() for one in workers):  # each tells its progress
        broker.put(messages(100, first=count))
        count += 100
        wait_for(lambda: broker.count() == count, "the answers")  # noqa: B023
    assert [one.end() for one in workers] == [0, 0]
    told = [one.output.read_text().rpartition("stopped: ")[2].partition(" answered")[0] for one in workers]
    assert sum(int(one.replace(",", "")) for one in told) == count
    assert "0" not in told
    assert len({one["id"] for one in broker.taken()}) == count
