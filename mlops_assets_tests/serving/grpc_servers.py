"""gRPC servers for tests, and requests to them."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import numpy as np
import pytest

from mlops_assets.serving import open_inference_pb2 as messages
from mlops_assets.serving.answering import Answering
from mlops_assets.serving.grpc_v2 import SERVICE, serve_grpc
from mlops_assets.serving.limits import Limits
from mlops_assets.serving.metrics import Metrics
from mlops_assets.serving.slots import Slots
from mlops_assets_tests.processes.conftest import free_ports
from mlops_assets_tests.serving.made import TABLE_SAMPLE

triton = pytest.importorskip("tritonclient.grpc")


class Server(NamedTuple):
    address: str
    slots: Slots
    metrics: Metrics
    on_loop: Callable[[Any], Any]
    grpc: Any


@contextmanager
def serving(home: Path, limits: Limits | None = None, **options: Any) -> Iterator[Server]:
    """A server in an event loop of its own, as a worker has it."""
    metrics = Metrics()
    slots = Slots(home, on_swap=metrics.swapped)
    slots.refresh()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def on_loop(work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, loop).result(120)

    (port,) = free_ports(1)
    answering = Answering(log=options.pop("log", None), batcher=options.pop("batcher", None))
    served = {"limits": limits or Limits(), "answering": answering, "metrics": metrics, **options}
    server = on_loop(serve_grpc(slots, "127.0.0.1", port, **served))
    try:
        yield Server(f"127.0.0.1:{port}", slots, metrics, on_loop, server)
    finally:
        on_loop(server.stop(0))
        on_loop(loop.shutdown_default_executor())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@contextmanager
def client_of(server: Server) -> Iterator[Any]:
    client = triton.InferenceServerClient(server.address)
    try:
        yield client
    finally:
        client.close()


@contextmanager
def calling(server: Server, method: str = "ModelInfer") -> Iterator[Any]:
    """The bare call: bytes, or a message, to bytes."""
    with grpc.insecure_channel(server.address, options=[("grpc.max_send_message_length", -1)]) as channel:
        call = channel.unary_unary(f"/{SERVICE}/{method}")
        yield lambda asked, **more: call(
            asked if isinstance(asked, bytes) else asked.SerializeToString(), timeout=60, **more
        )


def tensors(rows: Any = TABLE_SAMPLE, **changed: Any) -> list[Any]:
    columns = {
        "length": np.array([row["length"] for row in rows]),
        "width": np.array([[row["width"]] for row in rows]),
        "count": np.array([row["count"] for row in rows]),
        "colour": np.array([row["colour"] or "red" for row in rows], dtype=object),
        **changed,
    }
    return [tensor(name, values) for name, values in columns.items()]


def tensor(name: str, values: Any) -> Any:
    from tritonclient.utils import np_to_triton_dtype

    made = triton.InferInput(name, values.shape, np_to_triton_dtype(values.dtype))
    made.set_data_from_numpy(values)
    return made


def typed(**changed: Any) -> messages.ModelInferRequest:
    """A request with typed contents, for one row."""
    asked = messages.ModelInferRequest(model_name="flowers", **changed)
    for name, number in (("length", 5.1), ("width", 3.5)):
        asked.inputs.add(name=name, datatype="FP64", shape=[1]).contents.fp64_contents.append(number)
    asked.inputs.add(name="count", datatype="INT64", shape=[1]).contents.int64_contents.append(3)
    asked.inputs.add(name="colour", datatype="BYTES", shape=[1]).contents.bytes_contents.append(b"red")
    return asked
