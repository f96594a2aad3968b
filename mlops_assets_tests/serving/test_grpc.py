"""The Open Inference Protocol over gRPC: what Triton's client gets, and what everybody else gets for bad requests."""

import asyncio
import random
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc import StatusCode

from mlops_assets.serving import open_inference_pb2 as messages
from mlops_assets.serving.answering import Answering
from mlops_assets.serving.batcher import Batcher
from mlops_assets.serving.config import ServingSpec
from mlops_assets.serving.grpc_v2 import SERVICE, GrpcError, serve_grpc
from mlops_assets.serving.limits import Limits
from mlops_assets.serving.metrics import Metrics
from mlops_assets.serving.prediction_log import PredictionLog, read
from mlops_assets.serving.slots import Slots
from mlops_assets_tests.serving.asking import app_of
from mlops_assets_tests.serving.asking import client_of as http_client_of
from mlops_assets_tests.serving.grpc_servers import Server, calling, client_of, serving, tensor, tensors, triton, typed
from mlops_assets_tests.serving.made import TABLE_SAMPLE, publish_table
from mlops_assets_tests.serving.test_metrics import value


def refusal(ask: Callable[[], Any], code: StatusCode = StatusCode.INVALID_ARGUMENT) -> str:
    """The sentence with which a call is refused."""
    with pytest.raises((grpc.RpcError, triton.InferenceServerException)) as caught:
        ask()
    error: Any = caught.value
    if isinstance(error, grpc.RpcError):
        assert error.code() is code
        return str(error.details())
    assert error.status() == str(code)
    return str(error.message())


@pytest.fixture
def table(table_home: Path) -> Iterator[Server]:
    with serving(table_home) as made:
        yield made


def test_field_numbers_are_those_of_the_published_protocol() -> None:
    from tritonclient.grpc import service_pb2 as published

    ours = messages.DESCRIPTOR.message_types_by_name
    assert len(ours) == 16

    def fields(message: Any) -> Any:
        nested = {one.name: fields(one) for one in message.nested_types}
        shape = {(one.name, one.number, one.type, one.is_repeated) for one in message.fields}
        return shape, nested

    for name, message in ours.items():
        assert fields(message) == fields(published.DESCRIPTOR.message_types_by_name[name]), name


def test_tritons_client_asks_about_server_and_models(table: Server) -> None:
    with client_of(table) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("flowers")
        assert client.is_model_ready("flowers", "1")
        assert not client.is_model_ready("flowers", "2")
        assert not client.is_model_ready("roses")
        assert client.get_server_metadata().name == "mlops_assets"
        told = client.get_model_metadata("flowers")
        assert (told.name, list(told.versions), told.platform) == ("flowers", ["1"], "onnx_onnxv1")
        assert [(one.name, one.datatype, list(one.shape)) for one in told.inputs] == [
            ("length", "FP64", [-1]),
            ("width", "FP64", [-1]),
            ("count", "INT64", [-1]),
            ("colour", "BYTES", [-1]),
        ]
        assert [(one.name, list(one.shape)) for one in told.outputs] == [("probabilities", [-1, 3]), ("label", [-1])]
        table.slots.problems["roses"] = "its model does not load"
        index = client.get_model_repository_index().models
        assert [(one.name, one.version, one.state, one.reason) for one in index] == [
            ("flowers", "1", "READY", ""),
            ("roses", "", "UNAVAILABLE", "its model does not load"),
        ]
        assert "'roses' is not served" not in refusal(lambda: client.get_model_metadata("roses"), StatusCode.NOT_FOUND)


def test_tritons_client_gets_answers_for_rows(table: Server) -> None:
    slot = table.slots["flowers"]
    rows = [{**row, "colour": row["colour"] or "red"} for row in TABLE_SAMPLE]
    wanted = slot.answer(slot.from_records(rows))
    with client_of(table) as client:
        got = client.infer("flowers", tensors(), request_id="mine")
        np.testing.assert_allclose(got.as_numpy("probabilities"), wanted.probabilities, rtol=1e-5)
        assert [text.decode() for text in got.as_numpy("label")] == wanted.labels
        told = got.get_response()
        assert (told.model_name, told.model_version, told.id) == ("flowers", "1", "mine")
        labels = client.infer("flowers", tensors(), outputs=[triton.InferRequestedOutput("label")])
        assert labels.as_numpy("probabilities") is None
        assert labels.get_response().id
    assert value(table.metrics, "mlops_requests_total", pipeline="flowers", protocol="grpc", outcome="ok") == 2
    assert value(table.metrics, "mlops_request_rows_sum") == 6
    assert value(table.metrics, "mlops_requests_in_flight") == 0


def test_tritons_client_gets_answers_for_images(image_home: Path) -> None:
    with serving(image_home) as server, client_of(server) as client:
        slot = server.slots["scans"]
        images = slot.contract.sample_rows()
        got = client.infer("scans", [tensor("input", images)])
        np.testing.assert_allclose(got.as_numpy("probabilities"), slot.contract.answers, rtol=1e-4)


def test_typed_contents_and_metadata(table: Server) -> None:
    with calling(table) as call:
        told = messages.ModelInferResponse.FromString(call(typed(id="abc")))
        slot = table.slots["flowers"]
        wanted = slot.answer(slot.from_records(TABLE_SAMPLE[:1]))
        np.testing.assert_allclose(
            np.frombuffer(told.raw_output_contents[0], "<f4"), wanted.probabilities[0], rtol=1e-5
        )
    with grpc.insecure_channel(table.address) as channel:
        infer = channel.unary_unary(f"/{SERVICE}/ModelInfer")

        def metadata(asked: Any, given: tuple[tuple[str, str], ...] = ()) -> dict[str, str]:
            done = infer.future(asked.SerializeToString(), metadata=given)
            done.exception()
            return {key: text for key, text in done.trailing_metadata() if key.startswith("x-")}

        assert metadata(typed(id="abc")) == {"x-request-id": "abc", "x-model-version": "1"}
        assert metadata(typed(), (("x-request-id", "mine"),)) == {"x-request-id": "mine", "x-model-version": "1"}
        bad = typed(id="abc")
        bad.inputs[0].shape[0] = 2
        assert metadata(bad) == {"x-request-id": "abc", "x-model-version": "1"}


def test_what_is_wrong_is_said_and_where(table: Server) -> None:
    with client_of(table) as client, calling(table) as call:

        def told(change: Callable[[Any], Any], code: StatusCode = StatusCode.INVALID_ARGUMENT) -> str:
            asked = typed()
            change(asked)
            return refusal(lambda: call(asked), code)

        assert "'roses' is not served" in refusal(lambda: client.infer("roses", tensors()), StatusCode.NOT_FOUND)
        assert "version '7' of 'flowers' is not served; version 1 is" in told(
            lambda one: setattr(one, "model_version", "7"), StatusCode.NOT_FOUND
        )
        assert "'width'" in refusal(lambda: client.infer("flowers", tensors()[:1]))
        assert "row 1" in refusal(lambda: client.infer("flowers", tensors(length=np.array([1.0, -1.0, 2.0]))))
        assert "'height'" in refusal(lambda: client.infer("flowers", tensors(height=np.ones(3))))
        assert "'id' must be" in told(lambda one: setattr(one, "id", "two words"))
        assert "tensor 'length'" in told(lambda one: setattr(one.inputs[0], "datatype", "FP7"))
        assert "tensor 'length' has 1 values" in told(lambda one: one.inputs[0].shape.append(2))
        assert "tensor 'length'" in told(lambda one: one.inputs[0].shape.append(-1))
        assert "tensor 'length' is there twice" in told(lambda one: one.inputs.append(one.inputs[0]))
        assert "'raw_input_contents' has 1 parts for 4" in told(lambda one: one.raw_input_contents.append(b"1"))
        assert "both 'contents' and raw" in told(lambda one: one.raw_input_contents.extend([b"12345678"] * 4))
        assert "output 'logits' is none" in told(lambda one: one.outputs.add(name="logits"))
        assert "asked for twice" in told(lambda one: [one.outputs.add(name="label") for _ in range(2)])
        assert "'classification'" in told(
            lambda one: one.outputs.add(name="label").parameters["classification"].SetInParent()
        )
        assert "the request is no ModelInferRequest" in refusal(lambda: call(b"\xff"))
    assert value(table.metrics, "mlops_requests_total", outcome="invalid") >= 10
    assert value(table.metrics, "mlops_requests_total", outcome="not_served") == 2
    assert value(table.metrics, "mlops_requests_in_flight") == 0


def test_limits_on_rows_bytes_and_requests(table_home: Path) -> None:
    limits = Limits(bytes=100_000, rows=2, concurrency=0)
    with serving(table_home, limits) as server, calling(server) as call:
        exhausted = StatusCode.RESOURCE_EXHAUSTED
        assert "as many requests as it can take" in refusal(lambda: call(typed()), exhausted)
        assert "larger than max" in refusal(lambda: call(b"\0" * 200_000), exhausted)
        packed = {"compression": grpc.Compression.Gzip}
        assert "larger than max" in refusal(lambda: call(b"\0" * 50_000_000, **packed), exhausted)
        with client_of(server) as client:
            assert client.is_server_live()
        assert value(server.metrics, "mlops_requests_total", outcome="shed") == 1
    with serving(table_home, Limits(rows=2)) as server, client_of(server) as client:
        assert "3 rows" in refusal(lambda: client.infer("flowers", tensors()))


def test_requests_over_http_are_counted_with_those_over_grpc(table_home: Path) -> None:
    limits = Limits(concurrency=1)
    app = app_of(table_home, limits)
    with serving(table_home, limits, answering=app.answering) as server, calling(server) as call:

        async def hold() -> tuple[asyncio.Event, asyncio.Task[Any]]:
            begun, go = asyncio.Event(), asyncio.Event()

            async def body() -> Any:
                begun.set()
                await go.wait()
                yield b"{}"

            async def ask() -> None:
                async with http_client_of(app) as client:
                    await client.post("/models/flowers/predict", content=body())

            asking = asyncio.create_task(ask())
            await begun.wait()
            return go, asking

        async def end(go: asyncio.Event, asking: asyncio.Task[Any]) -> None:
            go.set()
            await asking

        held = server.on_loop(hold())
        refusal(lambda: call(typed()), StatusCode.RESOURCE_EXHAUSTED)
        server.on_loop(end(*held))
        call(typed())


def test_a_slow_answer_is_cut_off_and_others_go_on(table_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go, limits = threading.Event(), Limits(seconds=1.0, concurrency=1)
    with serving(table_home, limits) as server, calling(server) as call:
        slot = server.slots["flowers"]
        answer = slot.answer
        monkeypatch.setattr(slot, "answer", lambda batch: (go.wait(60), answer(batch))[1])
        monkeypatch.setattr(slot, "row_seconds", 1.0)
        with client_of(server) as client:
            slow = threading.Thread(target=lambda: refusal(lambda: call(typed()), StatusCode.DEADLINE_EXCEEDED))
            slow.start()
            assert client.is_server_live()
            slow.join()
        go.set()
        object.__setattr__(limits, "seconds", 60.0)  # the second one is not to be cut off, however busy the machine is
        call(typed())
        assert value(server.metrics, "mlops_requests_total", outcome="timeout") == 1


def test_a_defect_of_ours_is_internal_and_tells_nothing_of_it(
    table: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(batch: Any) -> None:
        raise RuntimeError("the secret of the house")

    monkeypatch.setattr(table.slots["flowers"], "answer", broken)
    with calling(table) as call:
        told = refusal(lambda: call(typed(id="abc")), StatusCode.INTERNAL)
    assert told == "the server failed; its log says more about request abc"
    assert "the secret of the house" in caplog.text
    assert value(table.metrics, "mlops_requests_total", outcome="failed") == 1


def test_it_says_when_it_is_not_ready_and_a_stopped_one_is_unavailable(table_home: Path) -> None:
    ready = [False]
    with serving(table_home, ready=lambda: ready[0]) as server, client_of(server) as client:
        assert not client.is_server_ready()
        ready[0] = True
        assert client.is_server_ready()
        server.on_loop(server.grpc.stop(1))
        refusal(lambda: client.infer("flowers", tensors()), StatusCode.UNAVAILABLE)


def test_a_begun_request_ends_before_the_server_does(table_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go = threading.Event(), threading.Event()
    with serving(table_home) as server, calling(server) as call:
        slot = server.slots["flowers"]
        answer = slot.answer

        def slow(batch: Any) -> Any:
            begun.set()
            go.wait(60)
            return answer(batch)

        monkeypatch.setattr(slot, "answer", slow)
        monkeypatch.setattr(slot, "row_seconds", 1.0)
        got: list[bytes] = []
        asking = threading.Thread(target=lambda: got.append(call(typed())))
        asking.start()
        assert begun.wait(60)
        stopping = threading.Thread(target=lambda: server.on_loop(server.grpc.stop(60)))
        stopping.start()
        go.set()
        asking.join()
        stopping.join()
    assert messages.ModelInferResponse.FromString(got[0]).model_version == "1"


def test_answers_are_logged_and_name_the_version_that_gave_them(table_home: Path) -> None:
    log = PredictionLog(table_home, 0, Metrics())
    with serving(table_home, log=log) as server, client_of(server) as client:
        client.infer("flowers", tensors(), request_id="first")
        publish_table(table_home, 2)
        server.slots.refresh()
        assert client.infer("flowers", tensors(), request_id="second").get_response().model_version == "2"
    log.close()
    kept = read(table_home, "flowers").collect()
    assert kept["request_id"].to_list() == ["first"] * 3 + ["second"] * 3
    assert kept["version"].to_list() == [1] * 3 + [2] * 3
    assert kept["seconds"].min() > 0


def test_requests_are_joined_where_that_is_wanted(table_home: Path) -> None:
    publish_table(table_home, 2, serving=ServingSpec(batching="on"))
    metrics = Metrics()
    batcher = Batcher(wait_seconds=0.001, metrics=metrics)
    with serving(table_home, batcher=batcher) as server, client_of(server) as client:
        got = client.infer("flowers", tensors())
        assert got.as_numpy("probabilities").shape == (3, 3)
    assert value(metrics, "mlops_batch_rows_sum") == 3


def test_no_bytes_crash_it(image_home: Path) -> None:
    publish_table(image_home)
    chance = random.Random(5)
    image = messages.ModelInferRequest(model_name="scans", raw_input_contents=[bytes(range(64)) * 2])
    image.inputs.add(name="input", datatype="UINT8", shape=[2, 8, 8, 1])
    good = [typed().SerializeToString(), image.SerializeToString()]
    methods = ["ModelInfer"] * 6 + ["ModelReady", "ModelMetadata", "RepositoryIndex", "ServerLive"]
    answered, refused = 0, set[Any]()
    with serving(image_home) as server, grpc.insecure_channel(server.address) as channel:
        calls = {name: channel.unary_unary(f"/{SERVICE}/{name}") for name in methods}
        for turn in range(600):
            asked = bytearray(good[turn % 2])
            for _ in range(chance.randint(1, 4)):
                place = chance.randrange(len(asked) or 1)
                match chance.randrange(4):
                    case 0:
                        asked[place : place + 1] = chance.randbytes(1)
                    case 1:
                        del asked[place : place + chance.randint(1, 8)]
                    case 2:
                        asked[place:place] = chance.randbytes(chance.randint(1, 8))
                    case 3:
                        asked = bytearray(chance.randbytes(chance.randint(1, 60)))
            try:
                calls[chance.choice(methods)](bytes(asked), timeout=60)
                answered += 1
            except grpc.RpcError as error:
                refused.add(error.code())  # type: ignore[attr-defined]
        calls["ModelInfer"](good[0], timeout=60)
    assert refused == {StatusCode.INVALID_ARGUMENT, StatusCode.NOT_FOUND}
    assert 0 < answered < 600


def test_workers_share_a_port(table: Server) -> None:
    async def serve() -> grpc.aio.Server:
        port = int(table.address.rpartition(":")[2])
        return await serve_grpc(table.slots, "127.0.0.1", port, limits=Limits(), answering=Answering(), metrics=None)

    second = table.on_loop(serve())
    table.on_loop(table.grpc.stop(0))
    with client_of(table) as client:
        assert client.is_model_ready("flowers")
    table.on_loop(second.stop(0))


def test_a_port_that_is_taken_is_said(table_home: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]

        async def serve() -> None:
            await serve_grpc(Slots(table_home), "127.0.0.1", port, limits=Limits(), answering=Answering(), metrics=None)

        with pytest.raises(GrpcError, match=f"cannot listen on 127.0.0.1:{port}"):
            asyncio.run(serve())
