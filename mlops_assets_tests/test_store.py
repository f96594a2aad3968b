"""The store keeps what a recipe made, whole or not at all, whatever happens to the disk and to those who write."""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest

from mlops_assets import store as store_
from mlops_assets.fingerprint import Recipe
from mlops_assets.store import EntryCorrupt, EntryMissing, Store, StoreError
from mlops_assets.upkeep import entries
from mlops_assets_tests.faults import small_disk, without_rights_of_root

RECIPE = Recipe("iris/model", "code", {"features": "data"})
FILES = {"weights": b"\x00\x01", "notes.json": b'{"a": 1}'}
REMEDY = r"`mlops store verify --repair` sets it aside, and `mlops run iris` makes it again"

PUTTER = """
import resource, sys
from mlops_assets.fingerprint import Recipe
from mlops_assets.store import Store, StoreError

place, most, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
if most:
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
recipe = Recipe("iris/model", "code", {"features": "data"})
try:
    with Store(place).making(recipe):
        Store(place).put(recipe, "digest", {}, {"small": b"1", "weights": bytes(size)})
except StoreError as error:
    print(error)
"""

HOLDER = """
import sys, time
from mlops_assets.fingerprint import Recipe
from mlops_assets.store import Store

with Store(sys.argv[1]).making(Recipe("iris/model", "code", {"features": "data"})):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture(params=["local", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "store") if request.param == "local" else f"memory://{tmp_path.name}"


@pytest.fixture
def held(tmp_path: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """Another process that is making the recipe, until it is killed."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout
    with process.stdout:
        assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.wait()


def test_what_is_put_is_found(url: str) -> None:
    assert Store(url).find("iris/model", RECIPE.key) is None
    made = Store(url).put(RECIPE, "digest", {"rows": 3, "shape": (2, 3), "names": {1: "one"}}, FILES)
    found = Store(url).get("iris/model", RECIPE.key)
    assert found == made
    assert (found.digest, found.inputs, found.info) == (
        "digest",
        {"features": "data"},
        {"rows": 3, "shape": [2, 3], "names": {"1": "one"}},
    )
    assert (found.read("weights"), found.json("notes.json")) == (b"\x00\x01", {"a": 1})


def test_the_second_of_two_writers_wins_whole(url: str) -> None:
    first = Store(url).put(RECIPE, "one", {}, {"weights": b"1"})
    Store(url).put(RECIPE, "two", {}, {"weights": b"2"})
    assert Store(url).get("iris/model", RECIPE.key).read("weights") == b"2"
    assert first.read("weights") == b"1"


def test_an_absent_entry_tells_how_to_make_it(url: str) -> None:
    with pytest.raises(EntryMissing, match="run `mlops run iris`"):
        Store(url).get("iris/model", "nothing")


def test_a_flipped_byte_is_noticed(url: str) -> None:
    entry = Store(url).put(RECIPE, "digest", {}, FILES)
    fs, root = fsspec.core.url_to_fs(url)
    (weights,) = fs.glob(f"{root}/**/weights")
    fs.pipe_file(weights, b"\x00\x02")
    with pytest.raises(EntryCorrupt, match=rf"weights is damaged \(its hash is wrong\); {REMEDY}"):
        entry.read("weights")


def test_a_deleted_file_is_noticed(url: str) -> None:
    entry = Store(url).put(RECIPE, "digest", {}, FILES)
    fs, root = fsspec.core.url_to_fs(url)
    fs.rm(fs.glob(f"{root}/**/weights")[0])
    with pytest.raises(EntryMissing, match=f"weights is gone; {REMEDY}"):
        entry.read("weights")
    with pytest.raises(EntryMissing, match=f"has no file 'plot.png'; {REMEDY}"):
        entry.read("plot.png")


def changed(change: Callable[[dict], object]) -> Callable[[bytes], bytes]:
    """A manifest with something in it changed."""

    def apply(text: bytes) -> bytes:
        manifest = json.loads(text)
        change(manifest)
        return json.dumps(manifest).encode()

    return apply


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda text: b"", "not JSON: Expecting value"),
        (lambda text: text[: len(text) // 2], "not JSON: "),
        (lambda text: b"\xff" + text, "not JSON: .*codec can't decode"),
        (lambda text: b"[]", "as a whole: Input should be"),
        (lambda text: b"{}", "digest: Field required"),
        (changed(lambda one: one.update(digest=3)), "digest: Input should be a valid string"),
        (changed(lambda one: one.update(files=[])), "files: Input should be"),
        (changed(lambda one: one["files"].update(weights="abc")), "files.weights: Input should be"),
        (changed(lambda one: one["files"]["weights"].update(bytes="2")), "files.weights.bytes: Input should be"),
        (changed(lambda one: one["info"].update(rows=4)), "it is not as it was written"),
        (changed(lambda one: one.update(digest="another")), "it is not as it was written"),
    ],
)
def test_a_damaged_manifest_is_named(url: str, damage: Callable[[bytes], bytes], said: str) -> None:
    Store(url).put(RECIPE, "digest", {"rows": 3}, FILES)
    fs, root = fsspec.core.url_to_fs(url)
    place = f"{root}/iris/model/{RECIPE.key}/manifest.json"
    fs.pipe_file(place, damage(fs.cat_file(place)))
    with pytest.raises(EntryCorrupt, match=rf"manifest\.json is damaged \({said}.*\); {REMEDY}"):
        Store(url).find("iris/model", RECIPE.key)


def test_an_entry_of_the_first_releases_has_no_seal(url: str) -> None:
    Store(url).put(RECIPE, "digest", {"rows": 3}, FILES)
    fs, root = fsspec.core.url_to_fs(url)
    place = f"{root}/iris/model/{RECIPE.key}/manifest.json"
    fs.pipe_file(place, changed(lambda one: one.pop("seal"))(fs.cat_file(place)))
    assert Store(url).get("iris/model", RECIPE.key).read("weights") == b"\x00\x01"


def test_what_cannot_be_a_manifest_leaves_nothing(url: str) -> None:
    with pytest.raises(TypeError, match="not JSON serializable"):
        Store(url).put(RECIPE, "digest", {"when": object()}, FILES)
    assert list(entries(Store(url))) == []


def test_an_interrupted_writer_leaves_nothing(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(url)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(store, "move", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.put(RECIPE, "digest", {}, FILES)
    assert store.find("iris/model", RECIPE.key) is None
    assert not [path for path in store.fs.find(store.root) if "weights" in path]


def putter(place: Path, *, most: int = 0, size: int = 2_000_000, **options: object) -> str:
    """What a child process is told that puts an entry of this size, in bytes; no file may be larger than `most`."""
    command = [sys.executable, "-c", PUTTER, str(place), str(most), str(size)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True, **options)
    assert done.stderr == ""
    return done.stdout.strip()


def test_a_limit_on_the_size_of_files(tmp_path: Path) -> None:
    folder = tmp_path / "iris" / "model" / RECIPE.key
    told = putter(tmp_path, most=100_000)
    assert told == (
        f"{folder} cannot be written: File too large; "
        "raise the limit on the size of files (`ulimit -f unlimited`) or set MLOPS_STORE elsewhere"
    )
    assert [path.name for path in folder.iterdir()] == [".lock"], "nothing half-written is left"
    assert putter(tmp_path) == ""
    assert len(Store(str(tmp_path)).get("iris/model", RECIPE.key).read("weights")) == 2_000_000


def test_a_full_disk(tmp_path: Path) -> None:
    other = Recipe("iris/model", "code", {"features": "other"})
    with small_disk(tmp_path / "disk") as disk:
        store = Store(str(disk))
        store.put(other, "digest", {}, {"weights": bytes(1_000_000)})
        told = putter(disk)
        assert told.endswith(
            "cannot be written: No space left on device; "
            "free space (`mlops store gc` removes what is of no more use) or set MLOPS_STORE elsewhere"
        )
        assert store.find("iris/model", RECIPE.key) is None
        assert len(store.get("iris/model", other.key).read("weights")) == 1_000_000
        assert putter(disk, size=500_000) == "", "what the failed writer had taken is free again"


@pytest.mark.skipif(sys.platform != "linux", reason="capabilities are Linux's")
def test_a_store_that_may_not_be_written(tmp_path: Path) -> None:
    place = tmp_path / "store"
    place.mkdir()
    place.chmod(0o555)
    told = putter(place, size=10, preexec_fn=without_rights_of_root)
    folder = place / "iris" / "model" / RECIPE.key
    remedy = "mend its rights, or set MLOPS_STORE elsewhere"
    assert told == f"{folder} cannot be written: Permission denied; {remedy}"
    place.chmod(0o755)
    putter(place, size=10)
    folder.chmod(0o555)
    told = putter(place, size=10, preexec_fn=without_rights_of_root)
    assert told == f"{folder} cannot be written: Permission denied; {remedy}"
    assert Store(str(place)).get("iris/model", RECIPE.key).read("small") == b"1", "what was there stays"


def test_a_file_where_a_folder_must_be(tmp_path: Path) -> None:
    (tmp_path / "iris").write_text("not a folder")
    with pytest.raises(StoreError, match="cannot be written: Not a directory; mend its rights"):
        Store(str(tmp_path)).put(RECIPE, "digest", {}, FILES)
    with pytest.raises(StoreError, match="cannot be written: "), Store(str(tmp_path)).making(RECIPE):
        pass
    with pytest.raises(StoreError, match="cannot be read: Not a directory"):
        Store(str(tmp_path)).find("iris/model", RECIPE.key)


@pytest.mark.slow
def test_an_entry_that_is_deleted_while_it_is_read(tmp_path: Path) -> None:
    store, data = Store(str(tmp_path)), os.urandom(3_000_000)
    ended = threading.Event()

    def churn() -> None:
        while not ended.is_set():
            store.put(RECIPE, "digest", {}, {"weights": data})
            store.fs.rm(f"{tmp_path}/iris", recursive=True)

    thread = threading.Thread(target=churn)
    thread.start()
    outcomes = set()
    try:
        deadline = time.monotonic() + 300
        while outcomes != {"whole", "missing"} and time.monotonic() < deadline:
            try:
                entry = store.get("iris/model", RECIPE.key)
                assert entry.read("weights") == data
                outcomes.add("whole")
            except EntryMissing as error:
                if "weights is gone" in str(error):
                    outcomes.add("missing")
    finally:
        ended.set()
        thread.join()
    assert outcomes == {"whole", "missing"}, "never half of it"


def test_whoever_waits_says_for_what_and_goes_on(
    tmp_path: Path, held: "subprocess.Popen[bytes]", caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_, "TELL_SECONDS", 0.2)
    caplog.set_level(logging.INFO, logger="mlops_assets")

    def kill_when_told() -> None:
        deadline = time.monotonic() + 120
        while not caplog.messages and time.monotonic() < deadline:
            time.sleep(0.05)
        held.kill()

    killing = threading.Thread(target=kill_when_told)
    killing.start()
    with Store(str(tmp_path)).making(RECIPE):
        assert held.wait(120) == -signal.SIGKILL
    killing.join()
    assert caplog.messages == [
        f"iris/model (recipe {RECIPE.key[:8]}) is being made by another process; going on when it is done or gone"
    ]


def test_the_lock_of_a_killed_process_stops_nobody(
    tmp_path: Path, held: "subprocess.Popen[bytes]", caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="mlops_assets")
    store = Store(str(tmp_path))
    with store.unless_made("iris/model", RECIPE.key) as free:
        assert not free
    held.kill()
    held.wait()
    assert (tmp_path / "iris" / "model" / RECIPE.key / ".lock").exists()
    with store.making(RECIPE):
        store.put(RECIPE, "digest", {}, FILES)
    assert caplog.messages == []
    with store.unless_made("iris/model", RECIPE.key) as free:
        assert free


def test_a_folder_that_is_cleared_away_while_somebody_waits_for_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_, "TELL_SECONDS", 0.05)
    caplog.set_level(logging.INFO, logger="mlops_assets")
    store, entered = Store(str(tmp_path)), threading.Event()

    def enter() -> None:
        with store.making(RECIPE):
            store.put(RECIPE, "digest", {}, FILES)
        entered.set()

    with store.making(RECIPE):
        waiting = threading.Thread(target=enter)
        waiting.start()
        while not caplog.messages:  # it says that it waits
            time.sleep(0.01)
        # At once: whoever waits opens its lock again and again, which a removal file by file might fall over.
        (tmp_path / "iris").rename(tmp_path / "away")
        store.fs.rm(f"{tmp_path}/away", recursive=True)
    waiting.join(120)
    assert entered.is_set()
    assert store.get("iris/model", RECIPE.key).read("weights") == b"\x00\x01"
