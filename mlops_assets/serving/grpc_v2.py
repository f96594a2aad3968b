"""The Open Inference Protocol v2 over gRPC: the published service, so that clients of Triton and KServe work unchanged.

Belongs here: messages to tensors and back, and what an error becomes. Not here: tensors themselves (`v2.py`), the same
protocol over HTTP (`app.py`), the process (`worker.py`). `open_inference.proto` has the messages.

What a client did wrong is INVALID_ARGUMENT, a model or version that does not answer NOT_FOUND, too much at once
RESOURCE_EXHAUSTED, too late DEADLINE_EXCEEDED; a server that is being stopped is UNAVAILABLE. Request id and version
come in the answer and, also with an error, as trailing metadata `x-request-id` and `x-model-version`.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from mlops_assets.errors import MlopsError
from mlops_assets.serving import open_inference_pb2 as messages
from mlops_assets.serving import v2
from mlops_assets.serving.answering import Answering
from mlops_assets.serving.batcher import QueueFull
from mlops_assets.serving.checks import shown
from mlops_assets.serving.http_call import ID, made_id
from mlops_assets.serving.slots import NotServed, Slots

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mlops_assets.serving.limits import Limits
    from mlops_assets.serving.metrics import Metrics, Outcome
    from mlops_assets.serving.slot import Slot

logger = logging.getLogger("mlops_assets")

SERVICE: Final = "inference.GRPCInferenceService"

SPARE: Final = 32
"""Calls beyond the limit on requests that are let in, so that health and metadata are answered under full load."""

INLINE_BYTES: Final = 256 << 10
"""Requests that are smaller are taken apart in the event loop."""

_CONTENTS: Final = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
"""The field that has a datatype's values; FP16 has none, and comes raw."""

_VERSION: Final = importlib.metadata.version("mlops-assets")

_Metadata = tuple[tuple[str, str], ...]
_Asked = TypeVar("_Asked", bound=Message)
_Told = TypeVar("_Told", bound=Message)


class GrpcError(MlopsError):
    """The gRPC server cannot start."""


class _Refused(MlopsError):
    """A call that is not answered: its status, and how it is counted."""

    def __init__(self, code: grpc.StatusCode, sentence: str, outcome: Outcome) -> None:
        super().__init__(sentence)
        self.code, self.outcome = code, outcome


async def serve_grpc(
    slots: Slots,
    host: str,
    port: int,
    *,
    limits: Limits,
    answering: Answering,
    metrics: Metrics | None,
    ready: Callable[[], bool] = lambda: True,
) -> grpc.aio.Server:
    """Serve in the running event loop; `await server.stop(SECONDS)` lets begun calls end, and refuses others.

    Args:
        slots: What answers; somebody else refreshes them.
        host: Address to bind to.
        port: Its port; several processes may share it.
        limits: Of requests.
        answering: The process's, which answers over HTTP too.
        metrics: What is counted; None counts nothing.
        ready: Whether the process should be sent requests.

    Raises:
        GrpcError: The port cannot be bound.
    """
    options = [
        ("grpc.so_reuseport", 1),
        ("grpc.max_receive_message_length", limits.bytes),
        ("grpc.max_send_message_length", -1),
    ]
    server = grpc.aio.server(options=options, maximum_concurrent_rpcs=limits.concurrency + SPARE)
    server.add_generic_rpc_handlers((_Service(slots, answering, limits, metrics, ready).handlers(),))
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        server.add_insecure_port(address)
    except RuntimeError:
        await server.stop(None)
        raise GrpcError(f"gRPC cannot listen on {address}; free it, or set MLOPS_HOST or MLOPS_GRPC_PORT") from None
    await server.start()
    return server


class _Service:
    """The calls."""

    def __init__(
        self,
        slots: Slots,
        answering: Answering,
        limits: Limits,
        metrics: Metrics | None,
        ready: Callable[[], bool],
    ) -> None:
        self._slots, self._answering, self._limits, self._metrics = slots, answering, limits, metrics
        self._ready = ready

    def handlers(self) -> grpc.GenericRpcHandler:
        """What gRPC calls, by the published names.

        Requests stay bytes until they are here: what gRPC itself cannot take apart it calls a fault of the server.
        """
        simple = {
            "ServerLive": _answering(messages.ServerLiveRequest, self._server_live),
            "ServerReady": _answering(messages.ServerReadyRequest, self._server_ready),
            "ModelReady": _answering(messages.ModelReadyRequest, self._model_ready),
            "ServerMetadata": _answering(messages.ServerMetadataRequest, self._server_metadata),
            "ModelMetadata": _answering(messages.ModelMetadataRequest, self._model_metadata),
            "RepositoryIndex": _answering(messages.RepositoryIndexRequest, self._index),
        }
        calls = {**simple, "ModelInfer": self._model_infer}
        handlers = {name: grpc.unary_unary_rpc_method_handler(call) for name, call in calls.items()}
        return grpc.method_handlers_generic_handler(SERVICE, handlers)

    def _server_live(self, _asked: messages.ServerLiveRequest) -> messages.ServerLiveResponse:
        return messages.ServerLiveResponse(live=True)

    def _server_ready(self, _asked: messages.ServerReadyRequest) -> messages.ServerReadyResponse:
        return messages.ServerReadyResponse(ready=self._ready())

    def _model_ready(self, asked: messages.ModelReadyRequest) -> messages.ModelReadyResponse:
        try:
            self._slot(asked.name, asked.version)
        except (NotServed, _Refused):
            return messages.ModelReadyResponse(ready=False)
        return messages.ModelReadyResponse(ready=True)

    def _server_metadata(self, _asked: messages.ServerMetadataRequest) -> messages.ServerMetadataResponse:
        return messages.ServerMetadataResponse(name="mlops_assets", version=_VERSION, extensions=["model_repository"])

    def _model_metadata(self, asked: messages.ModelMetadataRequest) -> messages.ModelMetadataResponse:
        told = v2.model_metadata(self._slot(asked.name, asked.version))

        def tensors(kind: str) -> list[messages.ModelMetadataResponse.TensorMetadata]:
            return [
                messages.ModelMetadataResponse.TensorMetadata(
                    name=one["name"], datatype=one["datatype"], shape=one["shape"]
                )
                for one in told[kind]
            ]

        return messages.ModelMetadataResponse(
            name=told["name"],
            versions=told["versions"],
            platform=told["platform"],
            inputs=tensors("inputs"),
            outputs=tensors("outputs"),
        )

    def _index(self, asked: messages.RepositoryIndexRequest) -> messages.RepositoryIndexResponse:
        entry = messages.RepositoryIndexResponse.ModelIndex
        models = [entry(name=slot.pipeline, version=str(slot.version), state="READY") for slot in self._slots]
        served = {one.name for one in models}
        problems = {} if asked.ready else dict(self._slots.problems)
        missing = [
            entry(name=name, state="UNAVAILABLE", reason=why) for name, why in problems.items() if name not in served
        ]
        return messages.RepositoryIndexResponse(models=[*models, *missing])

    async def _model_infer(self, data: bytes, context: grpc.aio.ServicerContext) -> bytes:
        call = _Call(context)
        if self._answering.running >= self._limits.concurrency:
            refusal = _Refused(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                "the server has as many requests as it can take; try again",
                "shed",
            )
            await self._end(call, refusal)
        try:
            with self._counted():  # no more once the caller knows the outcome: it may ask again at once
                async with asyncio.timeout(self._limits.seconds):
                    told = await self._infer(call, data)
        except Exception as error:
            await self._end(call, error)
            raise
        context.set_trailing_metadata(call.metadata())
        self._count(call, "ok")
        return told

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self._answering.running += 1
        if self._metrics is not None:
            self._metrics.in_flight.inc()
        try:
            yield
        finally:
            self._answering.running -= 1
            if self._metrics is not None:
                self._metrics.in_flight.dec()

    async def _infer(self, call: _Call, data: bytes) -> bytes:
        asked = _parsed(messages.ModelInferRequest, data)
        if asked.id:
            if not ID.fullmatch(asked.id):
                raise v2.V2Error("'id' must be a text of 1 to 128 visible ASCII characters, without spaces")
            call.request_id = asked.id
        call.name = asked.model_name
        slot = call.slot = self._slot(asked.model_name, asked.model_version)
        wanted = _wanted(asked)
        batch = await self._answering.run(len(data) > INLINE_BYTES, self._batch, slot, asked)
        call.rows = len(batch)
        answer = await self._answering.answer(
            slot, batch, request_id=call.request_id, started=call.started, received=call.received
        )
        told = messages.ModelInferResponse(
            model_name=slot.pipeline, model_version=str(slot.version), id=call.request_id
        )
        for name, tensor in v2.outputs(slot, answer, wanted).items():
            datatype = "BYTES" if tensor.dtype == object else "FP32"
            told.outputs.add(name=name, datatype=datatype, shape=tensor.shape)
            told.raw_output_contents.append(v2.to_raw(tensor))
        encoded: bytes = told.SerializeToString()
        return encoded

    def _batch(self, slot: Slot, asked: messages.ModelInferRequest) -> Any:
        tensors = _tensors(asked)
        for tensor in tensors.values():
            self._limits.require_rows(len(tensor))
        return v2.to_batch(slot, tensors)

    def _slot(self, name: str, version: str) -> Slot:
        """The slot that a call names.

        Raises:
            NotServed: There is none.
            _Refused: It is another version.
        """
        slot = self._slots[name]
        if version and version != str(slot.version):
            sentence = f"version {shown(version)} of '{name}' is not served; version {slot.version} is"
            raise _Refused(grpc.StatusCode.NOT_FOUND, sentence, "not_served")
        return slot

    async def _end(self, call: _Call, error: Exception) -> None:
        """End a call with the status of an error.

        Raises:
            grpc.aio.AbortError: Always.
        """
        refused = _refused(error, self._limits.seconds, call.request_id)
        self._count(call, refused.outcome)
        await call.context.abort(refused.code, str(refused), trailing_metadata=call.metadata())

    def _count(self, call: _Call, outcome: Outcome) -> None:
        if self._metrics is not None:
            self._metrics.observe(
                pipeline=call.name,
                version=call.slot.version if call.slot is not None else 0,
                protocol="grpc",
                outcome=outcome,
                rows=call.rows,
                seconds=time.perf_counter() - call.started,
            )


class _Call:
    """A prediction that is asked for; `request_id` is the client's, from the message or `x-request-id`, or ours."""

    def __init__(self, context: grpc.aio.ServicerContext) -> None:
        self.context = context
        self.started, self.received = time.perf_counter(), time.time()
        given = next((value for key, value in context.invocation_metadata() if key == "x-request-id"), "")
        self.request_id = given if isinstance(given, str) and ID.fullmatch(given) else made_id()
        self.name, self.rows = "", 0
        self.slot: Slot | None = None

    def metadata(self) -> _Metadata:
        """What goes with the answer, or with the error."""
        version = (("x-model-version", str(self.slot.version)),) if self.slot is not None else ()
        return (("x-request-id", self.request_id), *version)


def _answering(
    kind: type[_Asked], call: Callable[[_Asked], _Told]
) -> Callable[[bytes, grpc.aio.ServicerContext], Awaitable[bytes]]:
    """A call that takes a parsed message and needs no time."""

    async def answer(data: bytes, context: grpc.aio.ServicerContext) -> bytes:
        try:
            told: bytes = call(_parsed(kind, data)).SerializeToString()
        except MlopsError as error:
            refused = _refused(error, 0.0, "")
            await context.abort(refused.code, str(refused))
        return told

    return answer


def _parsed(kind: type[_Asked], data: bytes) -> _Asked:
    try:
        parsed: _Asked = kind.FromString(data)
    except DecodeError as error:
        raise v2.V2Error(f"the request is no {kind.DESCRIPTOR.name}: {error}") from None
    return parsed


def _tensors(asked: messages.ModelInferRequest) -> dict[str, NDArray[Any]]:
    """The inputs by name.

    Raises:
        V2Error: One is not of the protocol.
    """
    raw = asked.raw_input_contents
    if raw and len(raw) != len(asked.inputs):
        raise v2.V2Error(f"'raw_input_contents' has {len(raw)} parts for {len(asked.inputs)} inputs; each takes one")
    tensors: dict[str, NDArray[Any]] = {}
    for index, one in enumerate(asked.inputs):
        name, shape = one.name, list(one.shape)
        if name in tensors:
            raise v2.V2Error(f"tensor '{name}' is there twice", name)
        if raw:
            if one.HasField("contents"):
                raise v2.V2Error(f"tensor '{name}' has both 'contents' and raw contents; send one of them", name)
            tensors[name] = v2.tensor_from_raw(name, one.datatype, shape, raw[index])
        else:
            field = _CONTENTS.get(one.datatype)
            values = list(getattr(one.contents, field)) if field else []
            tensors[name] = v2.tensor_from_values(name, one.datatype, shape, values)
    return tensors


def _wanted(asked: messages.ModelInferRequest) -> list[str]:
    names = [one.name for one in asked.outputs]
    for one in asked.outputs:
        if "classification" in one.parameters:
            raise v2.V2Error(
                f"output '{one.name}' cannot be had as 'classification'; ask for '{v2.LABEL}' instead", one.name
            )
        if names.count(one.name) > 1:
            raise v2.V2Error(f"output '{one.name}' is asked for twice", one.name)
        if one.name not in v2.OUTPUTS:
            raise v2.unknown_output(one.name)
    return names or list(v2.OUTPUTS)


def _refused(error: Exception, seconds: float, request_id: str) -> _Refused:
    """What an error becomes."""
    code = grpc.StatusCode
    match error:
        case _Refused():
            return error
        case NotServed():
            return _Refused(code.NOT_FOUND, str(error), "not_served")
        case QueueFull():
            return _Refused(code.RESOURCE_EXHAUSTED, str(error), "shed")
        case MlopsError():
            return _Refused(code.INVALID_ARGUMENT, str(error), "invalid")
        case TimeoutError():
            told = f"no answer within {seconds:g} s; send fewer rows at once"
            return _Refused(code.DEADLINE_EXCEEDED, told, "timeout")
    logger.error("request %s failed", request_id, exc_info=error)
    return _Refused(code.INTERNAL, f"the server failed; its log says more about request {request_id or 'it'}", "failed")
