"""The worker of a stream: messages of a broker answered by a pipeline's champion, at least once each.

Belongs here: when the champion is looked at, what happens to a message that kills, progress, and the end. Not here:
brokers (`stream_brokers.py`), and the JSON (`stream_messages.py`).

A message is acknowledged when its answer is published, never before. An answer has the same id whenever the same
message is answered by the same model, so what was answered twice is seen: JetStream and Redis keep one of the two.
"""

from __future__ import annotations

import asyncio
import hashlib
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from mlops_assets.serving.slots import NotServed, Slots
from mlops_assets.serving.stream_messages import Incoming, dead_letter, respond
from mlops_assets.serving.stream_wire import Wire

LOOK_SECONDS: Final = 0.5
"""Between two looks at which version answers."""

TELL_SECONDS: Final = 2.0
ATTEMPTS: Final = 3
"""How often a message may end the process that handles it alone, before it becomes a dead letter."""


class Worker:
    """Answers one pipeline's messages until it is told to stop.

    Args:
        wire: To the broker; not started.
        slots: Of the home; refreshed once already.
        look: Brings the slots up to date; called twice a second, in a thread.
        suspects: A folder to keep note of messages that may kill.
        tell: Is told the progress, in lines.
    """

    def __init__(
        self, wire: Wire, slots: Slots, look: Callable[[], None], suspects: Path, tell: Callable[[str], None]
    ) -> None:
        self._wire, self._slots, self._refresh, self._suspects, self._tell = wire, slots, look, suspects, tell
        self._answered = self._dead = 0

    async def run(self) -> None:
        """Work until SIGTERM or Ctrl-C; then the messages in hand are finished, and no others taken.

        Raises:
            NotServed: The pipeline has no version that answers.
            StreamError: The broker does not answer, or refuses.
            Exception: What ended following the champion or taking messages, so that the worker is started again.
        """
        slot = self._slots[self._wire.route.pipeline]
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for ending in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(ending, stop.set)
        await self._wire.start(self._handle)
        route = self._wire.route
        self._tell(
            f"version {slot.version} of {route.pipeline} answers {route.source} at {self._wire.shown} to {route.to}, "
            f"dead letters to {route.dead}"
        )
        beside = [asyncio.create_task(one) for one in (stop.wait(), self._look(), self._report())]
        try:
            ended, _ = await asyncio.wait([*beside, *self._wire.taking()], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in beside:
                task.cancel()
            await self._wire.stop()
        for task in ended:
            task.result()
        self._tell(f"stopped: {self._said()}")

    async def _handle(self, messages: Sequence[Incoming]) -> None:
        """Answer messages: new ones together; those that a worker had before one by one, since one may kill."""
        new = [one for one in messages if not one.redelivered]
        if new:
            await self._answer(new)
        for one in messages:
            if one.redelivered:
                with self._suspected(one) as deaths:
                    await (self._bury(one) if deaths >= ATTEMPTS else self._answer([one]))

    async def _answer(self, messages: Sequence[Incoming]) -> None:
        slot = self._slots[self._wire.route.pipeline]
        made = await asyncio.to_thread(respond, slot, messages)
        await self._wire.settle(list(zip(messages, made, strict=True)))
        self._answered += sum(not one.dead for one in made)
        self._dead += sum(one.dead for one in made)

    async def _bury(self, message: Incoming) -> None:
        slot = self._slots[self._wire.route.pipeline]
        reason = (
            f"the worker of {slot.pipeline} died {ATTEMPTS} times while it handled this message alone; "
            "look for what its features code or its model does with it"
        )
        await self._wire.settle([(message, dead_letter(message, slot, reason))])
        self._dead += 1

    @contextmanager
    def _suspected(self, message: Incoming) -> Iterator[int]:
        """Keep note of a message while it is handled; a note that is there already tells of a process that died.

        Brokers count deliveries, but those of all messages that were in hand together: this is of one alone.
        """
        note = self._suspects / hashlib.sha256(message.place.encode()).hexdigest()[:32]
        deaths = note.stat().st_size if note.exists() else 0
        note.parent.mkdir(parents=True, exist_ok=True)
        with note.open("ab") as file:
            file.write(b".")
        try:
            yield deaths
        finally:
            note.unlink(missing_ok=True)

    async def _look(self) -> None:
        """Follow the champion: a message is answered by whichever version answers when it is taken.

        While there is none, messages go back to the broker.
        """
        name = self._wire.route.pipeline
        while True:
            before, problem = self._version(), self._slots.problems.get(name)
            await asyncio.to_thread(self._refresh)
            if (now := self._version()) != before:
                self._tell(f"version {now} answers from now on" if now else f"no version of {name} answers any more")
            if (new := self._slots.problems.get(name)) and new != problem:
                self._tell(f"version {now} goes on answering: {new}" if now else new)
            await asyncio.sleep(LOOK_SECONDS)

    def _version(self) -> int:
        """The version that answers now; 0 when there is none."""
        try:
            return self._slots[self._wire.route.pipeline].version
        except NotServed:
            return 0

    async def _report(self) -> None:
        """Tell the progress while there is any."""
        told, since = 0, time.monotonic()
        while True:
            await asyncio.sleep(TELL_SECONDS)
            done, now = self._answered + self._dead, time.monotonic()
            if done != told:
                waiting = None
                with suppress(Exception):  # the broker may be away, which its client tells itself
                    waiting = await self._wire.waiting()
                behind = "" if waiting is None else f", {waiting:,} waiting"
                self._tell(f"{self._said()}{behind}, {(done - told) / (now - since):,.0f} a second")
            told, since = done, now

    def _said(self) -> str:
        return f"{self._answered:,} answered, {self._dead:,} dead letters"
