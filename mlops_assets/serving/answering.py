"""Answering valid rows, whatever protocol they came by.

Belongs here: when work leaves the event loop, when rows of several requests share a pass, and that every answer is
logged. Not here: protocols (`app.py`, `grpc_v2.py`), and what a version does (`slot.py`).

What is small is answered within the event loop, as going to a thread and back takes longer than ONNX Runtime does; what
takes longer goes to a thread, in passes, so that others are answered in between and a request can be cut off.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np

from mlops_assets.serving.slot import Answer, Batch, Slot

if TYPE_CHECKING:
    from mlops_assets.serving.batcher import Batcher
    from mlops_assets.serving.prediction_log import PredictionLog

INLINE_SECONDS: Final = 0.005
"""Work that takes less is done in the event loop."""

PASS_SECONDS: Final = 0.05
"""About how long one pass of larger work takes."""

_T = TypeVar("_T")


class Answering:
    """What answers in a process.

    Args:
        log: Where answers are kept; None keeps none.
        batcher: For versions that it is used for; None answers each request alone.

    Attributes:
        running: Requests that were let in and are not answered yet, by every protocol together; counted where they come
            in, as that is before they are read.
    """

    def __init__(self, *, log: PredictionLog | None = None, batcher: Batcher | None = None) -> None:
        self._log, self._batcher, self.running = log, batcher, 0
        self._threads = ThreadPoolExecutor(len(os.sched_getaffinity(0)), thread_name_prefix="answer")

    async def answer(self, slot: Slot, batch: Batch, *, request_id: str, started: float, received: float) -> Answer:
        """Answer valid rows, and log it.

        Args:
            slot: That answers.
            batch: The rows.
            request_id: Of the request.
            started: When it came, by `time.perf_counter`.
            received: The same in seconds since the epoch.

        Raises:
            InvalidInput: As `slot.answer`.
            QueueFull: As the batcher.
        """
        small = len(batch) * slot.row_seconds <= INLINE_SECONDS
        if self._batcher is not None and self._batcher.used_for(slot):
            x = await self.run(not small, slot.features, batch)
            answer = slot.labelled(await self._batcher.probabilities(slot, x))
        elif small:
            answer = slot.answer(batch)
        else:
            answer = await self._in_passes(slot, batch)
        if self._log is not None:
            seconds = perf_counter() - started
            self._log.record(
                request_id=request_id, slot=slot, batch=batch, answer=answer, seconds=seconds, received=received
            )
        return answer

    async def run(self, aside: bool, work: Callable[..., _T], *arguments: Any) -> _T:
        """Do work here, or in a thread."""
        if not aside:
            return work(*arguments)
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)

    async def _in_passes(self, slot: Slot, batch: Batch) -> Answer:
        step = max(1, int(PASS_SECONDS / slot.row_seconds))
        answers = [
            await self.run(True, slot.answer, batch[first : first + step]) for first in range(0, len(batch), step)
        ]
        labels = [label for answer in answers for label in answer.labels]
        return Answer(labels, np.concatenate([answer.probabilities for answer in answers]))
