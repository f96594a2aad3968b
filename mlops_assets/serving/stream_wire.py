"""What a stream's worker needs of a broker, whichever it is.

Belongs here: the route of messages, the interface of a connection, and what goes wrong with one. Not here: what brokers
do differently (`stream_brokers.py`), answers (`stream_messages.py`), and the worker (`stream.py`).
"""

from __future__ import annotations

import asyncio
import re
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

from mlops_assets.errors import MlopsError
from mlops_assets.serving.stream_messages import Incoming, Outgoing

CONNECT_SECONDS: Final = 5.0


class StreamError(MlopsError):
    """A stream that cannot be worked on."""


@dataclass(frozen=True)
class Route:
    """Where messages come from and go to.

    Attributes:
        pipeline: Whose champion answers.
        source: Subject, topic, queue or stream of the messages.
        to: The same of the answers.
        dead: The same of the dead letters.
        batch: The most messages in hand.
        redeliver: Seconds until a message that was not acknowledged goes to another worker.
    """

    pipeline: str
    source: str
    to: str
    dead: str
    batch: int
    redeliver: float

    @property
    def group(self) -> str:
        """Name of the durable consumer: workers of one route share its messages."""
        return broker_name(f"mlops-{self.pipeline}-{self.source}-{self.to}")

    def target(self, one: Outgoing) -> str:
        """Where something is published."""
        return self.dead if one.dead else self.to


Settled = Sequence[tuple[Incoming, Outgoing]]
Handle = Callable[[Sequence[Incoming]], Awaitable[None]]


class _Notes:
    """FastStream's logger: what it reports as an error, in one line."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell

    def log(self, level: int, msg: Any, /, *, exc_info: Any = None, extra: Any = None) -> None:  # noqa: ARG002
        if level >= 40:
            self._tell(f"{msg}: {exc_info!r}" if exc_info else str(msg))


class Wire(ABC):
    """A connection to a broker.

    Args:
        url: Of the broker; may have a user and a password, which are never shown.
        route: Where messages come from and go to.
        tell: Is told in a sentence what goes wrong meanwhile.
    """

    broker: Any

    def __init__(self, url: str, route: Route, tell: Callable[[str], None]) -> None:
        self.route, self._tell = route, tell
        self.shown = shown(url)
        self.broker = self._broker(url, {"logger": _Notes(tell), "apply_types": False})

    async def start(self, handle: Handle) -> None:
        """Connect, create what is missing, and hand over messages until `stop`.

        Raises:
            StreamError: The broker does not answer, or refuses.
        """
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await self._open()
        except TimeoutError:
            raise StreamError(f"no broker answers at {self.shown}; start it, or correct --broker") from None
        except OSError as error:
            raise StreamError(
                f"no broker answers at {self.shown} ({error.strerror or error}); start it, or correct --broker"
            ) from None
        except self._errors() as error:
            raise StreamError(f"the broker at {self.shown} refuses: {type(error).__name__}: {error}") from None
        self._subscribe(handle)
        await self.broker.start()

    async def stop(self) -> None:
        """Take no more messages, finish those in hand, and leave."""
        await self.broker.stop()

    @abstractmethod
    async def settle(self, settled: Settled) -> None:
        """Publish answers and then acknowledge what they answer, of one batch or of a part of it."""

    def taking(self) -> Sequence[asyncio.Task[None]]:
        """Tasks of ours that take messages until `stop`; none where FastStream does."""
        return ()

    async def waiting(self) -> int | None:
        """How many messages are not answered yet, or None where the broker does not say."""
        return None

    def _listen(self, subscriber: Any, split: Callable[[Any], Sequence[Incoming]], handle: Handle) -> None:
        """Have a FastStream subscriber hand its messages over undecoded: bad ones are ours to judge."""

        async def undecoded(message: Any) -> Any:
            return message

        async def handler(message: Any) -> None:
            try:
                await handle(split(message))
            except Exception:
                # Back to the broker, and not at once: most often it was the broker that failed. FastStream tells of it
                # by `_Notes`, and takes the next messages.
                await asyncio.sleep(1)
                await message.nack()
                raise

        subscriber(handler, decoder=undecoded)

    @abstractmethod
    def _broker(self, url: str, options: dict[str, Any]) -> Any: ...

    @abstractmethod
    def _errors(self) -> tuple[type[Exception], ...]:
        """What the client raises when the broker refuses."""

    async def _open(self) -> None:
        await self.broker.connect()

    @abstractmethod
    def _subscribe(self, handle: Handle) -> None: ...


def shown(url: str) -> str:
    """A broker's URL without user and password."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def broker_name(subject: str) -> str:
    """A name that brokers accept, from a subject."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", subject)
