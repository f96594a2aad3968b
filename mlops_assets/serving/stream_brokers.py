"""Brokers of a stream, by the scheme of their URL, through FastStream: how messages come, and when they are done with.

Belongs here: what NATS, Redis Streams, Kafka and RabbitMQ do differently: what is created when missing, what a message
is called, and how its answer is published and it is acknowledged. Not here: what they share (`stream_wire.py`), and
answers (`stream_messages.py`).

NATS and Redis are tested against real servers. Kafka and RabbitMQ are built on the same interface and were not run.
"""

from __future__ import annotations

import asyncio
import hashlib
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from mlops_assets.serving.stream_messages import Incoming, Outgoing
from mlops_assets.serving.stream_wire import Handle, Route, Settled, StreamError, Wire, broker_name, shown

if TYPE_CHECKING:
    from redis.asyncio import Redis

PUBLISH_SECONDS: Final = 10.0
"""For an answer to be confirmed; then it is tried again."""

POLL_SECONDS: Final = 0.1
"""How long a batch is waited for that is not full: the most that a lonely message is late."""

FIELD: Final = "data"
"""Of a Redis entry: the message's JSON."""

SETTLE: Final = """
if redis.call('XACK', KEYS[1], ARGV[1], ARGV[2]) == 1 then
    return redis.call('XADD', KEYS[2], '*', 'id', ARGV[3], 'data', ARGV[4])
end
"""
"""Acknowledge an entry and publish its answer, both or neither; nothing where another worker did it before."""


class Nats(Wire):
    """JetStream: a durable pull consumer; an answer's id is its `Nats-Msg-Id`, so JetStream keeps one of each."""

    def _broker(self, url: str, options: dict[str, Any]) -> Any:
        from faststream.nats import NatsBroker

        return NatsBroker(url, max_reconnect_attempts=-1, **options)

    def _errors(self) -> tuple[type[Exception], ...]:
        from nats.errors import Error

        return (Error,)

    async def _open(self) -> None:
        from nats.js.api import ConsumerConfig

        self._jetstream = (await self.broker.connect()).jetstream()
        self._stream = await self._stream_of(self.route.source)
        self._streams = {name: await self._stream_of(name) for name in (self.route.to, self.route.dead)}
        consumer = ConsumerConfig(
            durable_name=self.route.group, filter_subject=self.route.source, ack_wait=self.route.redeliver
        )
        await self._jetstream.add_consumer(self._stream, consumer)
        self._messages = await self._jetstream.pull_subscribe_bind(self.route.group, self._stream)

    async def _stream_of(self, subject: str) -> str:
        from nats.js.errors import NotFoundError

        try:
            return str(await self._jetstream.find_stream_name_by_subject(subject))
        except NotFoundError:
            await self._jetstream.add_stream(name=broker_name(subject), subjects=[subject])
            return broker_name(subject)

    def _subscribe(self, handle: Handle) -> None:
        self._ending = False
        self._pulling = asyncio.create_task(self._pull(handle))

    def taking(self) -> Sequence[asyncio.Task[None]]:
        """The task that pulls."""
        return (self._pulling,)

    async def _pull(self, handle: Handle) -> None:
        """Hand over batches, one after the other.

        FastStream's own subscriber does not: where its client raises Python's TimeoutError, it forgets the part of a
        batch that it has until the broker delivers it again, and keeps one more dead task (FastStream 0.7.8).
        """
        from nats.errors import Error

        while not self._ending:
            try:
                messages = await self._messages.fetch(self.route.batch, timeout=POLL_SECONDS)
            except TimeoutError:
                continue
            except Error as error:  # the client connects again by itself
                self._tell(f"no messages from {self.shown}: {error!r}")
                await asyncio.sleep(1)
                continue
            try:
                await handle([self._incoming(one) for one in messages])
            except Exception as error:  # noqa: BLE001  whatever it was, the messages are not lost
                self._tell(f"{len(messages)} messages go back to {self.shown}: {error!r}")
                await asyncio.sleep(1)
                with suppress(Error):  # one that is acknowledged already, or the connection: they come back anyway
                    for one in messages:
                        await one.nak()

    async def stop(self) -> None:
        """Take no more messages, finish those in hand, and leave."""
        self._ending = True
        try:
            await self._pulling
        finally:
            await self._messages.unsubscribe()
            await super().stop()

    def _incoming(self, message: Any) -> Incoming:
        told = message.metadata
        return Incoming(f"{told.stream}:{told.sequence.stream}", message.data, told.num_delivered > 1, message)

    async def settle(self, settled: Settled) -> None:
        """Publish all together, each confirmed by JetStream, and acknowledge."""
        await asyncio.gather(*(self._publish(one) for _, one in settled))
        for message, _ in settled:
            await message.raw.ack()

    async def _publish(self, one: Outgoing) -> None:
        target = self.route.target(one)
        headers = {"Nats-Msg-Id": one.id, "content-type": "application/json"}
        await self.broker.publish(
            one.body, target, headers=headers, stream=self._streams[target], timeout=PUBLISH_SECONDS
        )

    async def waiting(self) -> int | None:
        """Messages that are waiting, and those in hand."""
        info = await self._jetstream.consumer_info(self._stream, self.route.group)
        return int(info.num_pending or 0) + int(info.num_ack_pending or 0)


class RedisStreams(Wire):
    """Redis Streams: a consumer group; an entry is acknowledged and its answer added in one step, so there is one."""

    def _broker(self, url: str, options: dict[str, Any]) -> Any:
        from faststream.redis import RedisBroker

        return RedisBroker(url, **options)

    def _errors(self) -> tuple[type[Exception], ...]:
        from redis.exceptions import RedisError

        return (RedisError,)

    async def _open(self) -> None:
        from redis.exceptions import ConnectionError as Unreachable
        from redis.exceptions import ResponseError

        self._redis: Redis = await self.broker.connect()
        try:
            # From the first entry on: FastStream's own group would begin with what comes after it.
            await self._redis.xgroup_create(self.route.source, self.route.group, id="0", mkstream=True)
        except Unreachable as error:
            raise OSError(str(error)) from None
        except ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise
        self._settle = self._redis.register_script(SETTLE)

    def _subscribe(self, handle: Handle) -> None:
        from faststream import AckPolicy
        from faststream.redis import StreamSub

        source, group, consumer = self.route.source, self.route.group, socket.gethostname()
        new = StreamSub(
            source,
            group=group,
            consumer=consumer,
            batch=True,
            max_records=self.route.batch,
            polling_interval=int(POLL_SECONDS * 1000),
        )
        abandoned = StreamSub(
            source,
            group=group,
            consumer=consumer,
            batch=True,
            min_idle_time=int(self.route.redeliver * 1000),
            polling_interval=1000,
        )
        for stream in (new, abandoned):
            subscriber = self.broker.subscriber(stream=stream, parser=_unparsed, ack_policy=AckPolicy.MANUAL)
            self._listen(subscriber, self._splitter(redelivered=stream is abandoned), handle)

    def _splitter(self, *, redelivered: bool) -> Callable[[Any], list[Incoming]]:
        def split(message: Any) -> list[Incoming]:
            raw = message.raw_message
            return [
                Incoming(f"{self.route.source}:{name.decode()}", _body(fields), redelivered, name)
                for name, fields in zip(raw["message_ids"], raw["data"], strict=True)
            ]

        return split

    async def settle(self, settled: Settled) -> None:
        """Acknowledge each entry and add its answer in one step of the server."""
        pipeline = self._redis.pipeline(transaction=False)
        for message, one in settled:
            keys = [self.route.source, self.route.target(one)]
            await self._settle(keys, [self.route.group, message.raw, one.id, one.body], client=pipeline)
        await pipeline.execute()

    async def waiting(self) -> int | None:
        """Entries that are waiting, and those in hand; None when Redis has lost count."""
        for group in await self._redis.xinfo_groups(self.route.source):
            if group["name"].decode() == self.route.group and group.get("lag") is not None:
                return int(group["lag"]) + int(group["pending"])
        return None


class Kafka(Wire):
    """Kafka: a consumer group; offsets are committed after the answers. Built on the same interface, not run."""

    def _broker(self, url: str, options: dict[str, Any]) -> Any:
        from faststream.kafka import KafkaBroker

        return KafkaBroker(urlsplit(url).netloc.split(","), acks="all", enable_idempotence=True, **options)

    def _errors(self) -> tuple[type[Exception], ...]:
        from aiokafka.errors import KafkaError  # type: ignore[import-untyped]

        return (KafkaError,)

    async def _open(self) -> None:
        from aiokafka.errors import KafkaConnectionError

        try:
            await self.broker.connect()
        except KafkaConnectionError as error:
            raise OSError(str(error)) from None

    def _subscribe(self, handle: Handle) -> None:
        from faststream import AckPolicy

        def split(message: Any) -> list[Incoming]:
            return [
                # Kafka does not say whether a message was delivered before.
                Incoming(f"{one.topic}:{one.partition}:{one.offset}", one.value or b"", redelivered=False, raw=message)
                for one in message.raw_message
            ]

        subscriber = self.broker.subscriber(
            self.route.source,
            group_id=self.route.group,
            batch=True,
            max_records=self.route.batch,
            auto_offset_reset="earliest",
            ack_policy=AckPolicy.MANUAL,
        )
        self._listen(subscriber, split, handle)

    async def settle(self, settled: Settled) -> None:
        """Publish all together, and commit the offsets of the batch, which is settled as a whole."""
        for dead, target in ((False, self.route.to), (True, self.route.dead)):
            bodies = [one.body for _, one in settled if one.dead == dead]
            if bodies:
                await self.broker.publish_batch(*bodies, topic=target)
        await settled[0][0].raw.ack()


class RabbitMq(Wire):
    """RabbitMQ: durable queues, answers confirmed by the broker. Built on the same interface, not run."""

    def _broker(self, url: str, options: dict[str, Any]) -> Any:
        from faststream.rabbit import Channel, RabbitBroker

        channel = Channel(prefetch_count=self.route.batch, on_return_raises=True)
        return RabbitBroker(url, default_channel=channel, **options)

    def _errors(self) -> tuple[type[Exception], ...]:
        from aiormq.exceptions import AMQPError

        return (AMQPError,)

    async def _open(self) -> None:
        from faststream.rabbit import RabbitQueue

        await self.broker.connect()
        for name in (self.route.to, self.route.dead):
            await self.broker.declare_queue(RabbitQueue(name, durable=True))

    def _subscribe(self, handle: Handle) -> None:
        from faststream import AckPolicy
        from faststream.rabbit import RabbitQueue

        def split(message: Any) -> list[Incoming]:
            raw = message.raw_message
            place = raw.message_id or hashlib.sha256(raw.body).hexdigest()[:32]
            return [Incoming(place, raw.body, bool(raw.redelivered), message)]

        queue = RabbitQueue(self.route.source, durable=True)
        self._listen(self.broker.subscriber(queue, ack_policy=AckPolicy.MANUAL), split, handle)

    async def settle(self, settled: Settled) -> None:
        """Publish, confirmed by the broker, and acknowledge."""
        for message, one in settled:
            await self.broker.publish(
                one.body,
                self.route.target(one),
                persist=True,
                message_id=one.id,
                content_type="application/json",
                timeout=PUBLISH_SECONDS,
            )
            await message.raw.ack()


WIRES: Final[dict[str, type[Wire]]] = {
    "nats": Nats,
    "tls": Nats,
    "redis": RedisStreams,
    "rediss": RedisStreams,
    "kafka": Kafka,
    "amqp": RabbitMq,
    "amqps": RabbitMq,
}
"""By the scheme of the broker's URL."""


def connection(url: str, route: Route, tell: Callable[[str], None]) -> Wire:
    """The connection for a broker's URL; nothing is connected yet.

    Raises:
        StreamError: The scheme is none of those, the client is not installed, or the route runs in a circle.
    """
    kind = WIRES.get(url.partition("://")[0])
    if kind is None:
        raise StreamError(f"--broker {shown(url)} must begin with one of {', '.join(f'{one}://' for one in WIRES)}")
    if len({route.source, route.to, route.dead}) < 3:
        raise StreamError(
            f"messages ({route.source}), answers ({route.to}) and dead letters ({route.dead}) must be in "
            "three different places; a worker that reads what it writes never ends"
        )
    try:
        return kind(url, route, tell)
    except ImportError as error:
        raise StreamError(
            f"the client for {url.partition('://')[0]} is not installed ({error}); "
            "`pip install 'mlops-assets[stream]'` brings it"
        ) from None


async def _unparsed(message: Any, original: Any) -> Any:  # noqa: ARG001
    """A batch of Redis entries as it came: FastStream's own parser fails on what is no UTF-8."""
    from faststream.redis.message import FAKE_CONSUMER, RedisBatchStreamMessage

    return RedisBatchStreamMessage(raw_message=message, body=b"", consumer=FAKE_CONSUMER, group=None)


def _body(fields: dict[bytes, bytes]) -> bytes:
    """The message in a Redis entry: its field `data`, or what FastStream publishes."""
    from faststream.redis.message import bDATA_KEY
    from faststream.redis.parser import BinaryMessageFormatV1

    if bDATA_KEY in fields:
        return BinaryMessageFormatV1.parse(fields[bDATA_KEY])[0]
    return fields.get(FIELD.encode(), b"")
