"""A storm of kill -9 over the store's writer: at whatever moment, what is visible is whole, and the next one goes on.

The seed is printed; MLOPS_TEST_SEED sets it.
"""

import hashlib
import itertools
import logging
import os
import random
import secrets
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mlops_assets.fingerprint import Recipe
from mlops_assets.store import Store
from mlops_assets.upkeep import collect, entries, verify

pytestmark = pytest.mark.slow

SEED = int(os.environ.get("MLOPS_TEST_SEED", secrets.randbelow(2**32)))  # here: tests do not see the variables
SIZES = (100, 50_000, 6_000_000)
MOMENTS = ((b"put\n", 0.12), (b"large\n", 0.003))
"""When a writer is killed: so many seconds at most after it has put an entry, or has begun to write a large file."""

MOST_POINTS = 300

WRITER = """
import hashlib, itertools, os, sys
from mlops_assets.fingerprint import Recipe
from mlops_assets.store import Store
from mlops_assets.upkeep import collect, entries, set_aside

write = Store._write
def telling(store, path, data):
    if len(data) > 1_000_000:
        print("large", flush=True)
    write(store, path, data)
Store._write = telling

store, clear = Store(sys.argv[1]), sys.argv[2] == "clearing"
for number in itertools.count():
    for size in map(int, sys.argv[3:]):
        recipe = Recipe("iris/model", "code", {"size": str(size)})
        data = os.urandom(size)
        with store.making(recipe):
            store.put(recipe, hashlib.sha256(data).hexdigest(), {"rows": size}, {"first": data, "second": data[::-1]})
        if number == 0:
            print("put", flush=True)
    if clear:
        set_aside(store, next(entries(store)))
        collect(store, lambda slot: slot.key < "8", older_than=-60, dry_run=False)
"""


@pytest.mark.parametrize(("work", "points", "in_the_middle"), [("writing", 30, 4), ("clearing", 15, 0)])
def test_whatever_the_moment_what_is_visible_is_whole(
    work: str, points: int, in_the_middle: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """At least `points` kills, and as many more as it takes until some hit a writer in the middle of its files."""
    print(f"MLOPS_TEST_SEED={SEED}")
    caplog.set_level(logging.INFO, logger="mlops_assets")
    chance, store = random.Random(f"{SEED} {work}"), Store(str(tmp_path))
    recipes = [Recipe("iris/model", "code", {"size": str(size)}) for size in SIZES]
    torn = 0
    for point in itertools.count():
        if point >= points and torn >= in_the_middle:
            break
        assert point < MOST_POINTS, f"{SEED}: only {torn} kills of {point} hit a writer in the middle"
        said, latest = chance.choice(MOMENTS)
        delay = chance.uniform(0, latest)
        at = f"MLOPS_TEST_SEED={SEED}, point {point}, {delay:.4f} s after {said!r}"
        kill_writer(tmp_path, work, said, delay)
        assert list(verify(store)) == [], at
        torn += any(is_torn(Path(one.url)) for slot in entries(store) for one in slot.leftovers)
        for recipe in recipes:
            entry = store.find(recipe.asset, recipe.key)
            if entry:
                first, second = entry.read("first"), entry.read("second")
                assert entry.digest == hashlib.sha256(first).hexdigest(), f"{at}: files of two writers"
                assert second == first[::-1], f"{at}: files of two writers"
            with store.unless_made(recipe.asset, recipe.key) as free:
                assert free or not Path(store.url(recipe.asset, recipe.key)).exists(), f"{at}: the lock is still held"
        recipe, data = chance.choice(recipes), chance.randbytes(10)
        with store.making(recipe):
            store.put(recipe, hashlib.sha256(data).hexdigest(), {}, {"first": data, "second": data[::-1]})
        assert store.get(recipe.asset, recipe.key).read("first") == data, at
        collect(store, lambda _: True, older_than=-60, dry_run=False)
        assert not any(slot.leftovers for slot in entries(store)), at
        assert list(verify(store)) == [], at
    assert caplog.messages == [], "nobody had to wait for a dead process"


def is_torn(attempt: Path) -> bool:
    """Whether a leftover is of a writer that was killed in the middle, and not of one that somebody else replaced."""
    if not attempt.is_dir():
        return False
    sizes = {path.name: path.stat().st_size for path in attempt.iterdir()}
    return set(sizes) != {"first", "second"} or sizes["first"] != sizes["second"]


def kill_writer(place: Path, work: str, said: bytes, delay: float) -> None:
    """Start a writer, and kill it some time after it has said that for the first time."""
    command = [sys.executable, "-c", WRITER, str(place), work, *map(str, SIZES)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert process.stdout
        with process.stdout:
            assert said in iter(process.stdout.readline, b"")
            time.sleep(delay)
    finally:
        process.kill()
        assert process.wait() == -9
