"""Kill -9 at every step of a move and of a rollback, and at random moments; and many who promote at once.

The children come from a server that has MLflow loaded already. The seed is printed; MLOPS_TEST_SEED sets it.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import secrets
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import pytest

from mlops_assets.registry import aliases
from mlops_assets.registry.aliases import RegistryError
from mlops_assets.registry.champion import HEAD_TAG, Champions
from mlops_assets.registry.ledger import Ledger
from mlops_assets.tracking import tags as keys
from mlops_assets.tracking.runs import Tracking
from mlops_assets_tests.mlflow_fixtures import close_stores
from mlops_assets_tests.registry.test_aliases import logged_model

pytestmark = pytest.mark.slow

SEED = int(os.environ.get("MLOPS_TEST_SEED", secrets.randbelow(2**32)))  # here: tests do not see the variables
VERSIONS = 9
LEAST_KILLS, LEAST_MENDED = 20, 2


@pytest.fixture(scope="module")
def start() -> Callable[..., ForkServerProcess]:
    """Starts a function in a process of its own."""
    context: ForkServerContext = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([Champions.__module__, "mlflow.store.model_registry.sqlalchemy_store"])

    def start(function: Callable[..., None], *arguments: Any) -> ForkServerProcess:
        process = context.Process(target=function, args=arguments)
        process.start()
        return process

    return start


@pytest.fixture
def champions(home: Path, tmp_path: Path) -> Iterator[Champions]:
    """Version 1 was champion, and then version 2; more are registered."""
    found = opened(home)
    tracking = Tracking.embedded(home)
    uri = logged_model(tracking, tmp_path)[1]
    for number in range(VERSIONS):
        aliases.register(tracking, name="iris", model_uri=uri, tags={keys.MODEL_DIGEST: str(number)})
    promote(found, 1)
    promote(found, 2)
    yield found
    close_stores()


def opened(home: Path) -> Champions:
    return Champions(Ledger(home / "ledger", "iris"), Tracking.embedded(home), "iris", "champion")


def promote(champions: Champions, version: int) -> None:
    champions.move(version, how="gate", actor="sensor", reason="better")


def standing(home: Path) -> int:
    """The one champion."""
    model = aliases.registered(Tracking.embedded(home), "iris")
    assert model
    assert list(model.aliases) == ["champion"]
    return model.aliases["champion"]


# --- in a child


def dies_at(home: Path, work: str, point: int) -> None:
    """Promote, or roll back, and be killed before, in the middle of, or after the step that the point says."""
    passed = itertools.count()

    def die_here() -> None:
        if next(passed) == point:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(place: Any, name: str, half: Callable[..., None] | None = None) -> None:
        step = getattr(place, name)

        def guarded(*arguments: Any) -> None:
            die_here()
            if half and next(passed) == point:
                half(*arguments)
                os.kill(os.getpid(), signal.SIGKILL)
            step(*arguments)
            die_here()

        setattr(place, name, guarded)

    def half_a_line(ledger: Ledger, data: bytes) -> None:
        with ledger.path.open("ab") as file:
            file.write(data[: len(data) // 2])

    around(Ledger, "_write", half_a_line)
    around(aliases, "point")
    around(aliases, "tag")
    if work == "move":
        promote(opened(home), 3)
    else:
        opened(home).rollback(1, actor="ada", reason="bad Tuesday")


def works(home: Path, seed: str) -> None:
    """Promote, roll back, clear and pin, on and on; it has begun when the alias is about to move for the first time."""
    chance, champions, point = random.Random(seed), opened(home), aliases.point

    def moving(*arguments: Any) -> None:
        (home / "begun").touch()
        point(*arguments)

    aliases.point = moving
    while True:
        version = chance.randint(1, VERSIONS)
        if version in champions.barred():
            champions.clear(version, actor="ada", reason="mended")
        promote(champions, version)
        if chance.random() < 0.5:
            with suppress(RegistryError):  # all others are barred
                champions.rollback(actor="ada", reason="bad")
            champions.pin(version, actor="ada", reason="r")


def promotes(home: Path, version: int, begin: float) -> None:
    """Promote at a moment."""
    champions = opened(home)
    champions.reconcile()
    time.sleep(max(begin - time.time(), 0))
    promote(champions, version)


# --- the tests


@pytest.mark.parametrize("work", ["move", "rollback"])
def test_killed_at_every_step(
    champions: Champions, home: Path, start: Callable[..., ForkServerProcess], work: str
) -> None:
    goal, steps = {"move": (3, 10), "rollback": (1, 13)}[work]
    moved = []
    for point in range(steps + 1):
        process = start(dies_at, home, work, point)
        process.join()
        at = f"point {point}"
        assert process.exitcode == (-signal.SIGKILL if point < steps else 0), at
        number = standing(home)
        assert number in {2, goal}, at
        moved.append(number == goal)
        champions.reconcile()
        assert champions.verify() == [], at
        assert standing(home) == number, at
        assert champions.reconcile() == [], at
        barred = {2} if work == "rollback" and number == goal else set()
        assert set(champions.barred()) == barred, f"{at}: the bar is part of the rollback"
        if number == goal and work == "rollback":
            made = champions.ledger.head
            assert champions.rollback(1, actor="ada", reason="bad Tuesday").facts["version"] == 1, at
            assert champions.ledger.head == made, f"{at}: tried again, it is the same rollback"
        if barred:
            champions.clear(2, actor="ada", reason="again")
        promote(champions, 2)
        assert standing(home) == 2, at
    assert moved == [False] * 4 + [True] * (steps - 3), "the alias moves at one step"


def test_killed_at_random_moments(champions: Champions, home: Path, start: Callable[..., ForkServerProcess]) -> None:
    print(f"MLOPS_TEST_SEED={SEED}")
    chance, anchors = random.Random(SEED), dict[str, str]()
    mended = 0
    for point in itertools.count():
        if point >= LEAST_KILLS and mended >= LEAST_MENDED:
            break
        assert point < 10 * LEAST_KILLS, f"MLOPS_TEST_SEED={SEED}: only {mended} kills hit a move in the middle"
        (home / "begun").unlink(missing_ok=True)
        process = start(works, home, f"{SEED} {point}")
        while not (home / "begun").exists():
            assert process.is_alive()
            time.sleep(0.005)
        time.sleep(chance.uniform(0, chance.choice([0.01, 0.2])))  # in the first move, or sometime later
        process.kill()
        process.join()
        at = f"MLOPS_TEST_SEED={SEED}, point {point}"
        assert process.exitcode == -signal.SIGKILL, at
        number = standing(home)
        mended += bool(champions.reconcile())
        assert champions.verify(anchors) == [], at
        assert standing(home) == number, at
        assert number not in champions.barred(), at
        anchors[f"point {point}"] = champions.ledger.head


@pytest.mark.parametrize("many", [2, 8])
def test_many_promote_at_once(
    champions: Champions, home: Path, start: Callable[..., ForkServerProcess], many: int
) -> None:
    begin = time.time() + 2
    wanted = set(range(2, many + 2)) if many > 2 else {3, 4}
    processes = [start(promotes, home, version, begin) for version in wanted]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    records = champions.ledger.records()
    moves = [record for record in records if record.kind == "moved"]
    assert {record.facts["version"] for record in moves[2:]} >= wanted - {2}
    assert [record.facts["leaves"] for record in moves[1:]] == [record.facts["version"] for record in moves[:-1]]
    assert [record.kind for record in records] == ["intent", "moved"] * len(moves), "nobody came between"
    assert standing(home) == moves[-1].facts["version"]
    assert champions.verify() == []
    model = aliases.registered(Tracking.embedded(home), "iris")
    assert model
    assert model.tags[HEAD_TAG] == champions.ledger.head
