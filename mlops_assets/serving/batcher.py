"""Micro-batching: requests that wait for the same version are answered in one pass.

Belongs here: who waits, for how long, and whose rows are whose. Not here: the pass itself (`slot.py`), and what is
counted (`metrics.py`).

It pays where a pass of many rows costs little more than one of a single row, as on a GPU. ONNX Runtime on a CPU takes
time by the row, and a pass alone is then sooner over than the wait for company.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from mlops_assets.errors import MlopsError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mlops_assets.serving.metrics import Metrics
    from mlops_assets.serving.slot import Slot

MOST_WAITING: Final = 4096
"""Rows that may wait for all versions together."""


class QueueFull(MlopsError):
    """More rows wait than may."""


class _Waiting(NamedTuple):
    x: NDArray[Any]
    answered: asyncio.Future[NDArray[np.float32]]


class _Lane:
    """The requests for one version."""

    def __init__(self) -> None:
        self.waiting: deque[_Waiting] = deque()
        self.rows = 0
        self.full = asyncio.Event()
        self.task: asyncio.Task[None] | None = None


class Batcher:
    """Joins waiting requests into passes; for one event loop.

    While a pass runs, those that come wait for the next one, which takes them all at once; so the wait below is only
    that of a request which finds nobody else.

    Args:
        max_rows: Of a pass, unless a single request has more.
        wait_seconds: How long the first request waits for others.
        most_waiting: Rows that may wait.
        metrics: What is told of passes and of rows that wait.
    """

    def __init__(
        self,
        max_rows: int = 32,
        wait_seconds: float = 0.002,
        *,
        most_waiting: int = MOST_WAITING,
        metrics: Metrics | None = None,
    ) -> None:
        self._max_rows, self._wait_seconds, self._most_waiting = max_rows, wait_seconds, most_waiting
        self._metrics = metrics
        self._lanes: dict[Slot, _Lane] = {}
        self._rows = 0

    @staticmethod
    def used_for(slot: Slot) -> bool:
        """Whether a version's requests are to be joined, as its pipeline says; `auto` joins them on a GPU."""
        wanted = slot.serving.batching
        return wanted == "on" or (wanted == "auto" and slot.accelerated)

    async def probabilities(self, slot: Slot, x: NDArray[Any]) -> NDArray[np.float32]:
        """What `slot.probabilities` gives, perhaps from a pass with the rows of others for the same slot.

        Args:
            slot: That answers.
            x: What its model takes, (rows, *shape).

        Raises:
            QueueFull: Too many rows wait.
            InvalidInput: As `slot.probabilities`; never for what another request has sent.
        """
        if self._rows and self._rows + len(x) > self._most_waiting:
            raise QueueFull(f"{self._rows} rows wait for an answer already; try again in a second")
        lane = self._lanes.setdefault(slot, _Lane())
        one = _Waiting(x, asyncio.get_running_loop().create_future())
        lane.waiting.append(one)
        lane.rows += len(x)
        self._count(len(x))
        if lane.rows >= self._max_rows:
            lane.full.set()
        if lane.task is None:
            lane.task = asyncio.create_task(self._serve(slot, lane))
        return await one.answered

    async def _serve(self, slot: Slot, lane: _Lane) -> None:
        """Answer a slot's requests until none waits."""
        try:
            async with asyncio.timeout(self._wait_seconds):
                await lane.full.wait()
        except TimeoutError:
            pass
        try:
            while lane.waiting:
                await self._pass(slot, self._taken(lane))
        finally:
            del self._lanes[slot]
            for one in lane.waiting:
                one.answered.cancel()
            self._count(-lane.rows)

    def _taken(self, lane: _Lane) -> list[_Waiting]:
        """The next requests in their order, without those that nobody waits for any more."""
        taken: list[_Waiting] = []
        rows = 0
        while lane.waiting and (not rows or rows + len(lane.waiting[0].x) <= self._max_rows):
            one = lane.waiting.popleft()
            lane.rows -= len(one.x)
            self._count(-len(one.x))
            if not one.answered.done():
                taken.append(one)
                rows += len(one.x)
        return taken

    async def _pass(self, slot: Slot, taken: list[_Waiting]) -> None:
        if not taken:
            return
        x = np.concatenate([one.x for one in taken]) if len(taken) > 1 else taken[0].x
        try:
            made = await asyncio.to_thread(slot.probabilities, x)
        except asyncio.CancelledError:
            for one in taken:
                one.answered.cancel()
            raise
        except Exception as error:  # noqa: BLE001  whatever it is belongs to those who asked
            if len(taken) == 1:
                if not taken[0].answered.done():
                    taken[0].answered.set_exception(error)
                return
            for one in taken:  # each alone: nobody fails for the rows of another
                await self._pass(slot, [one])
            return
        if self._metrics is not None:
            self._metrics.batch_rows.observe(len(x))
        first = 0
        for one in taken:
            if not one.answered.done():
                one.answered.set_result(made[first : first + len(one.x)])
            first += len(one.x)

    def _count(self, rows: int) -> None:
        self._rows += rows
        if self._metrics is not None:
            self._metrics.queued_rows.set(self._rows)
