"""Looking after the store: what is there, what is damaged, what may go."""

import os
import subprocess
import sys
import time
from pathlib import Path

import fsspec
import pytest

from mlops_assets.fingerprint import Recipe
from mlops_assets.store import Store, StoreError
from mlops_assets.upkeep import Slot, collect, entries, set_aside, verify
from mlops_assets_tests.faults import without_rights_of_root
from mlops_assets_tests.test_store import HOLDER, changed

DAY = 86400.0
NOW = -60.0
"""An age that everything has: what was made just now counts as old."""


def recipe(asset: str = "iris/model", features: str = "data") -> Recipe:
    return Recipe(asset, "code", {"features": features})


def put(store: Store, asset: str = "iris/model", features: str = "data", content: bytes = b"12345") -> str:
    made = recipe(asset, features)
    store.put(made, f"digest of {features}", {}, {"weights": content, "notes": b"{}"})
    return made.key


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store") if request.param == "local" else f"memory://{tmp_path.name}")


@pytest.fixture
def disk(tmp_path: Path) -> Store:
    return Store(str(tmp_path))


def half_written(store: Store, key: str, asset: str = "iris/model") -> None:
    """What a writer leaves that was killed before it was done."""
    store.fs.makedirs(f"{store.url(asset, key)}/attempt", exist_ok=True)
    store.fs.pipe_file(f"{store.url(asset, key)}/attempt/weights", b"123")


def files(store: Store) -> list[str]:
    return sorted(path.removeprefix(f"{store.root}/") for path in store.fs.find(store.root))


def nobody(_: Slot) -> bool:
    return False


def everybody(_: Slot) -> bool:
    return True


def test_an_empty_store_has_nothing(store: Store) -> None:
    assert list(entries(store)) == []
    assert list(verify(store)) == []
    assert collect(store, nobody, older_than=NOW, dry_run=False) == []


def test_what_is_there_is_listed(store: Store) -> None:
    began = time.time()
    model, other, data = put(store), put(store, features="more"), put(store, "iris/dataset", content=bytes(70_000))
    put(store, "iris2/model")
    half_written(store, key := recipe(features="killed").key)
    found = {slot.key: slot for slot in entries(store, "iris")}
    assert set(found) == {model, other, data, key}
    assert [slot.asset for slot in entries(store)] == ["iris/dataset", *["iris/model"] * 3, "iris2/model"]
    assert {slot.key for slot in entries(store, "iris/model/")} == {model, other, key}
    assert list(entries(store, "iris/mod")) == []
    whole = found[data]
    assert whole.entry == store.get("iris/dataset", data)
    assert (whole.flaw, whole.leftovers) == ("", ())
    assert 70_000 < whole.bytes < 71_000
    assert began - 1 < whole.made < time.time() + 1
    assert (found[key].entry, found[key].flaw, found[key].bytes) == (None, "", 3)
    assert [one.url for one in found[key].leftovers] == [f"{found[key].url}/attempt"]


def test_damage_is_found_and_named(store: Store) -> None:
    keys = [put(store, features=str(number)) for number in range(6)]
    whole, flipped, cut, gone, manifest, _ = keys
    urls = {key: store.url("iris/model", key) for key in keys}
    (weights,) = store.fs.glob(f"{urls[flipped]}/*/weights")
    store.fs.pipe_file(weights, b"12346")
    (weights,) = store.fs.glob(f"{urls[cut]}/*/weights")
    store.fs.pipe_file(weights, b"123")
    store.fs.rm(store.fs.glob(f"{urls[gone]}/*/weights"))
    text = store.fs.cat_file(f"{urls[manifest]}/manifest.json")
    store.fs.pipe_file(f"{urls[manifest]}/manifest.json", changed(lambda one: one.update(digest="other"))(text))
    half_written(store, keys[5])

    listed = {slot.key: slot.flaw for slot in entries(store)}
    assert listed[whole] == listed[flipped] == listed[keys[5]] == "", "listing hashes nothing"
    read: list[int] = []
    found = {slot.key: slot.flaw for slot in verify(store, on_read=read.append)}
    assert found == {
        flipped: "weights: its hash is wrong",
        cut: "weights: its size is wrong",
        gone: "weights: it is gone",
        manifest: "manifest.json: it is not as it was written",
    }
    assert sum(read) == 2 * 7 + 5, "two whole entries, and the flipped file"


def test_what_is_replaced_or_removed_while_it_is_verified_is_not_damaged(store: Store) -> None:
    first, second = put(store), put(store, features="more")
    slots = list(entries(store))
    put(store, content=b"anew!")
    store.fs.rm(store.fs.glob(f"{store.url('iris/model', first)}/*/weights"))
    put(store, content=b"again")
    store.fs.rm(store.url("iris/model", second), recursive=True)
    assert list(verify(store, slots)) == []


def test_what_is_set_aside_is_made_again_and_its_files_stay(store: Store) -> None:
    key = put(store)
    (weights,) = store.fs.glob(f"{store.url('iris/model', key)}/*/weights")
    store.fs.pipe_file(weights, b"12346")
    (damaged,) = verify(store)
    assert set_aside(store, damaged)
    assert set_aside(store, damaged), "once more does no harm"
    assert store.find("iris/model", key) is None
    assert store.fs.cat_file(weights) == b"12346"
    put(store)
    assert store.get("iris/model", key).read("weights") == b"12345"
    assert list(verify(store)) == []
    (slot,) = entries(store)
    assert [one.url.rpartition("/")[2] for one in slot.leftovers].count("damaged-manifest.json") == 1
    assert len(collect(store, everybody, older_than=NOW, dry_run=False)) == 2, "the manifest, and the files it named"
    assert store.get("iris/model", key).read("weights") == b"12345"


def test_what_nobody_needs_goes(store: Store) -> None:
    kept, old = put(store), put(store, features="old")
    half_written(store, killed := recipe(features="killed").key)
    half_written(store, kept)
    before = files(store)

    def keep(slot: Slot) -> bool:
        return slot.key == kept

    told = collect(store, keep, older_than=NOW, dry_run=True)
    assert {(one.key, one.kind) for one in told} == {(kept, "leftover"), (old, "entry"), (killed, "leftover")}
    assert {one.bytes for one in told if one.kind == "leftover"} == {3}
    assert files(store) == before
    assert collect(store, keep, older_than=DAY, dry_run=False) == [], "all of it is young"
    assert files(store) == before
    assert collect(store, keep, older_than=NOW, dry_run=False) == told
    assert [slot.key for slot in entries(store)] == [kept]
    assert list(verify(store)) == []
    assert {path.split("/")[-1] for path in files(store)} <= {"weights", "notes", "manifest.json", ".lock"}
    assert collect(store, keep, older_than=NOW, dry_run=False) == []
    assert store.find("iris/model", old) is None
    put(store, features="old")
    assert store.get("iris/model", old).read("weights") == b"12345", "and comes back when it is made again"


def test_only_the_given_slots_are_looked_at(store: Store) -> None:
    put(store)
    other = put(store, "digits/model")
    collect(store, nobody, older_than=NOW, dry_run=False, slots=entries(store, "iris"))
    assert [slot.key for slot in entries(store)] == [other]


def test_an_entry_with_something_young_beside_it_stays(disk: Store) -> None:
    key = put(disk)
    age(disk, key, DAY * 2)
    half_written(disk, key)
    assert collect(disk, nobody, older_than=DAY, dry_run=False) == [], "somebody may be writing there"
    age(disk, key, DAY * 2)
    assert [one.kind for one in collect(disk, nobody, older_than=DAY, dry_run=False)] == ["entry"]


def test_lock_files_alone_go(disk: Store) -> None:
    with disk.making(recipe()):
        pass
    key = recipe().key
    assert collect(disk, everybody, older_than=DAY, dry_run=False) == []
    age(disk, key, DAY * 2)
    assert [one.kind for one in collect(disk, everybody, older_than=DAY, dry_run=False)] == ["lock"]
    assert list(entries(disk)) == []


def test_what_is_being_made_is_left_alone(disk: Store) -> None:
    half_written(disk, recipe().key)
    key = put(disk, features="damaged")
    (damaged,) = [slot for slot in entries(disk) if slot.key == key]
    process = subprocess.Popen([sys.executable, "-c", HOLDER, disk.root], stdout=subprocess.PIPE)
    try:
        assert process.stdout
        with process.stdout:
            assert process.stdout.readline() == b"held\n"
        assert collect(disk, everybody, older_than=NOW, dry_run=False) == []
        with disk.making(recipe(features="damaged")):
            assert not set_aside(disk, damaged)
    finally:
        process.kill()
        process.wait()
    assert [one.kind for one in collect(disk, everybody, older_than=NOW, dry_run=False)] == ["leftover"]
    assert set_aside(disk, damaged)


CLEARER = """
import sys
from mlops_assets.store import Store, StoreError
from mlops_assets.upkeep import collect, entries, set_aside

store = Store(sys.argv[1])
(slot,) = entries(store)
for attempt in (lambda: collect(store, lambda _: False, older_than=-60, dry_run=False), lambda: set_aside(store, slot)):
    try:
        attempt()
    except StoreError as error:
        print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="capabilities are Linux's")
def test_what_may_not_be_removed_is_one_sentence(disk: Store) -> None:
    key = put(disk)
    folder = Path(disk.url("iris/model", key))
    (folder / ".lock").touch()
    folder.chmod(0o555)
    done = subprocess.run(
        [sys.executable, "-c", CLEARER, disk.root],
        capture_output=True,
        text=True,
        check=True,
        timeout=180,
        preexec_fn=without_rights_of_root,
    )
    folder.chmod(0o755)
    assert done.stdout.splitlines() == [
        f"{folder} cannot be removed: Permission denied; mend its rights",
        f"{folder} cannot be written: Permission denied; mend its rights, or set MLOPS_STORE elsewhere",
    ]
    assert disk.get("iris/model", key).read("weights") == b"12345"


def test_a_store_that_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file")
    with pytest.raises(StoreError, match="cannot be read: Not a directory"):
        list(entries(Store(str(tmp_path / "store" / "below"))))


def age(store: Store, key: str, seconds: float, asset: str = "iris/model") -> None:
    """Let everything in a slot look as if it had been written a while ago."""
    fs, _ = fsspec.core.url_to_fs(store.root)
    folder = store.url(asset, key)
    for path in [*fs.find(folder, withdirs=True), folder]:
        os.utime(path, (time.time() - seconds,) * 2)
