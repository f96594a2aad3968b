"""Requests that share a pass."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mlops_assets.serving.batcher import Batcher, QueueFull
from mlops_assets.serving.checks import InvalidInput
from mlops_assets.serving.config import ServingSpec
from mlops_assets.serving.metrics import Metrics
from mlops_assets.serving.slot import Slot
from mlops_assets_tests.serving.made import loaded, publish_table
from mlops_assets_tests.serving.test_metrics import value


class Passes:
    """The passes of a slot: their rows are noted, and they can be held up."""

    def __init__(self, slot: Slot, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows: list[int] = []
        self.go = threading.Event()
        self.go.set()
        alone = slot.probabilities

        def noted(x: NDArray[Any]) -> NDArray[np.float32]:
            self.go.wait(60)
            self.rows.append(len(x))
            return alone(x)

        monkeypatch.setattr(slot, "probabilities", noted)


@pytest.fixture
def slot(table_home: Path) -> Slot:
    return loaded(table_home, publish_table(table_home))


def features(rows: int, seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(rows, 4)).astype(np.float32)


def test_requests_are_joined_and_each_gets_its_own_rows(slot: Slot, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = [slot.probabilities(features(1 + seed % 3, seed)) for seed in range(12)]
    passes, metrics = Passes(slot, monkeypatch), Metrics()

    async def ask() -> list[NDArray[np.float32]]:
        batcher = Batcher(max_rows=8, wait_seconds=1.0, metrics=metrics)
        return await asyncio.gather(*(batcher.probabilities(slot, features(1 + seed % 3, seed)) for seed in range(12)))

    for got, alone in zip(asyncio.run(ask()), wanted, strict=True):
        np.testing.assert_allclose(got, alone, rtol=1e-5)
    assert passes.rows == [7, 8, 6, 3]  # of requests with 1, 2, 3, 1, 2, 3, ... rows, as many as fit in 8
    assert value(metrics, "mlops_batch_rows_sum") == 24
    assert value(metrics, "mlops_batch_queued_rows") == 0


def test_one_that_finds_nobody_waits_no_longer_than_it_should(slot: Slot, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = Passes(slot, monkeypatch)
    asyncio.run(Batcher(wait_seconds=0.001).probabilities(slot, features(1, 0)))
    assert passes.rows == [1]


def test_two_versions_never_share_a_pass(table_home: Path, slot: Slot, monkeypatch: pytest.MonkeyPatch) -> None:
    other = loaded(table_home, publish_table(table_home, 2))
    x = features(1, 0)
    wanted = [slot.probabilities(x), other.probabilities(x)]
    passes = [Passes(one, monkeypatch) for one in (slot, other)]

    async def ask() -> list[NDArray[np.float32]]:
        batcher = Batcher(wait_seconds=0.01)
        return await asyncio.gather(*(batcher.probabilities((slot, other)[turn % 2], x) for turn in range(10)))

    for turn, got in enumerate(asyncio.run(ask())):
        np.testing.assert_allclose(got, wanted[turn % 2], rtol=1e-5)
    assert [one.rows for one in passes] == [[5], [5]]


def test_bad_rows_fail_their_own_request_alone(slot: Slot) -> None:
    bad = np.full((1, 4), np.nan, np.float32)

    async def ask() -> list[Any]:
        batcher = Batcher(wait_seconds=0.05)
        asked = [batcher.probabilities(slot, x) for x in (features(2, 1), bad, features(1, 2))]
        return await asyncio.gather(*asked, return_exceptions=True)

    first, failed, last = asyncio.run(ask())
    assert isinstance(failed, InvalidInput)
    np.testing.assert_allclose(first, slot.probabilities(features(2, 1)), rtol=1e-5)
    np.testing.assert_allclose(last, slot.probabilities(features(1, 2)), rtol=1e-5)


def test_who_gives_up_takes_nothing_from_the_others(slot: Slot, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = Passes(slot, monkeypatch)
    passes.go.clear()

    async def ask() -> list[Any]:
        batcher = Batcher(max_rows=4, wait_seconds=0.0)
        running = asyncio.create_task(batcher.probabilities(slot, features(4, 0)))
        await asyncio.sleep(0.05)
        waiting = [asyncio.create_task(batcher.probabilities(slot, features(1, seed))) for seed in range(3)]
        await asyncio.sleep(0)
        waiting[1].cancel()
        running.cancel()
        passes.go.set()
        return await asyncio.gather(running, *waiting, return_exceptions=True)

    running, first, cancelled, last = asyncio.run(ask())
    assert isinstance(running, asyncio.CancelledError)
    assert isinstance(cancelled, asyncio.CancelledError)
    assert (first.shape, last.shape) == ((1, 3), (1, 3))
    assert passes.rows == [4, 2]


def test_the_queue_is_bounded(slot: Slot, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = Passes(slot, monkeypatch)
    passes.go.clear()

    async def ask() -> None:
        batcher = Batcher(max_rows=2, wait_seconds=0.0, most_waiting=3)
        asked = [asyncio.create_task(batcher.probabilities(slot, features(2, 0)))]
        await asyncio.sleep(0.05)
        asked += [asyncio.create_task(batcher.probabilities(slot, features(2, 0)))]
        await asyncio.sleep(0)
        with pytest.raises(QueueFull, match="2 rows wait"):
            await batcher.probabilities(slot, features(2, 0))
        passes.go.set()
        await asyncio.gather(*asked)
        await batcher.probabilities(slot, features(9, 0))  # larger than the queue, but nobody else waits

    asyncio.run(ask())
    assert passes.rows == [2, 2, 9]


@pytest.mark.parametrize(
    ("wanted", "accelerated", "used"),
    [("auto", False, False), ("auto", True, True), ("on", False, True), ("off", True, False)],
)
def test_it_is_used_where_it_pays(slot: Slot, wanted: Any, accelerated: bool, used: bool) -> None:
    slot.serving, slot.accelerated = ServingSpec(batching=wanted), accelerated
    assert Batcher.used_for(slot) is used
