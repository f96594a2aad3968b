"""What a worker answers with while pointers move, break and go."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mlops_assets.serving import slots as slots_module
from mlops_assets.serving.config import LogSpec, ServingSpec
from mlops_assets.serving.contract import ContractError
from mlops_assets.serving.pointer import (
    KEPT_FOLDERS,
    LEFTOVER_SECONDS,
    Pointer,
    damage,
    pointer_file,
    read_pointer,
    tidy,
    unpack,
    write_pointer,
)
from mlops_assets.serving.slot import Slot
from mlops_assets.serving.slots import NotServed, Slots
from mlops_assets_tests.serving.made import TABLE_SAMPLE, publish_images, publish_table, table_contract
from mlops_assets_tests.waiting import wait_for

Swaps = list[tuple[int | None, int]]


def followed(home: Path) -> tuple[Slots, Swaps]:
    swaps: Swaps = []
    slots = Slots(home, on_swap=lambda old, new: swaps.append((old.version if old else None, new.version)))
    slots.refresh()
    return slots, swaps


def refused(slots: Slots, name: str) -> str:
    with pytest.raises(NotServed) as error:
        slots[name]
    assert "\n" not in str(error.value)
    return str(error.value)


def test_pointers_are_followed(tmp_path: Path) -> None:
    slots, swaps = followed(tmp_path)
    assert slots.names() == []
    assert "served: none yet" in refused(slots, "flowers")
    publish_table(tmp_path)
    publish_images(tmp_path)
    slots.refresh()
    assert slots.names() == ["flowers", "scans"]
    assert {one.pipeline for one in slots} == {"flowers", "scans"}
    assert "'iris' is not served (served: flowers, scans)" in refused(slots, "iris")
    first = slots["flowers"]
    slots.refresh()
    assert slots["flowers"] is first
    publish_table(tmp_path, 2)
    slots.refresh()
    assert slots["flowers"].version == 2
    assert first.answer(first.from_records(TABLE_SAMPLE)).labels
    publish_table(tmp_path)
    slots.refresh()
    assert swaps == [(None, 1), (None, 1), (1, 2), (2, 1)]
    pointer_file(tmp_path, "flowers").unlink()
    slots.refresh()
    assert slots.names() == ["scans"]
    assert refused(slots, "flowers")
    publish_table(tmp_path)
    slots.refresh()
    assert slots["flowers"].version == 1


def test_options_of_the_server_reach_the_slot(tmp_path: Path) -> None:
    publish_table(tmp_path)
    slots, swaps = followed(tmp_path)
    publish_table(tmp_path, serving=ServingSpec(log=LogSpec(inputs="none")))
    slots.refresh()
    assert slots["flowers"].serving.log.inputs == "none"
    assert swaps == [(None, 1), (1, 1)]


def no_model(home: Path, pointer: Pointer) -> None:
    (home / "serving" / "flowers" / pointer.key / "model.onnx").unlink()


def no_folder(home: Path, pointer: Pointer) -> None:
    shutil.rmtree(home / "serving" / "flowers" / pointer.key)


def other_model(home: Path, pointer: Pointer) -> None:
    (home / "serving" / "flowers" / pointer.key / "model.onnx").write_bytes(b"damaged")


def torn_pointer(home: Path, pointer: Pointer) -> None:
    file = pointer_file(home, pointer.pipeline)
    file.write_bytes(file.read_bytes()[:50])


def empty_pointer(home: Path, pointer: Pointer) -> None:
    pointer_file(home, pointer.pipeline).write_bytes(b"")


def pointer_that_is_a_folder(home: Path, pointer: Pointer) -> None:
    pointer_file(home, pointer.pipeline).unlink()
    pointer_file(home, pointer.pipeline).mkdir()


@pytest.mark.parametrize(
    "break_it", [no_model, no_folder, other_model, torn_pointer, empty_pointer, pointer_that_is_a_folder]
)
def test_the_last_good_version_answers_on(break_it: Callable[[Path, Pointer], None], tmp_path: Path) -> None:
    publish_table(tmp_path)
    slots, swaps = followed(tmp_path)
    break_it(tmp_path, publish_table(tmp_path, 2))
    slots.refresh()
    assert slots["flowers"].version == 1
    assert slots["flowers"].answer(slots["flowers"].from_records(TABLE_SAMPLE)).labels
    said = slots.problems["flowers"]
    assert "\n" not in said
    assert str(tmp_path) in said
    fresh, _ = followed(tmp_path)
    assert f"flowers is not served: {said}" in refused(fresh, "flowers")
    if pointer_file(tmp_path, "flowers").is_dir():
        pointer_file(tmp_path, "flowers").rmdir()
    for path in (tmp_path / "serving" / "flowers").iterdir():
        if path.is_dir() and damage(path, path.name):
            shutil.rmtree(path)
    publish_table(tmp_path, 3)
    slots.refresh()
    assert (slots["flowers"].version, slots.problems) == (3, {})
    assert swaps[-1] == (1, 3)


def test_a_version_that_did_not_load_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish_table(tmp_path)
    slots, _ = followed(tmp_path)
    pointer = publish_table(tmp_path, 2)
    folder = tmp_path / "serving" / "flowers" / pointer.key
    hidden = folder.rename(tmp_path / "hidden")
    monkeypatch.setattr(slots_module, "AGAIN_SECONDS", 0.05)
    slots.refresh()
    assert slots["flowers"].version == 1
    hidden.rename(folder)
    time.sleep(0.06)
    slots.refresh()
    assert (slots["flowers"].version, slots.problems) == (2, {})


def test_a_remark_in_the_pointer_is_told_and_loads_nothing(tmp_path: Path) -> None:
    pointer = publish_table(tmp_path)
    slots, swaps = followed(tmp_path)
    slot = slots["flowers"]
    for problem in ("version 2 has no contract", ""):
        write_pointer(tmp_path, pointer.model_copy(update={"problem": problem}))
        slots.refresh()
        assert slots["flowers"] is slot
        assert slots.problems == ({"flowers": problem} if problem else {})
    write_pointer(tmp_path, pointer.model_copy(update={"problem": "it is gone", "key": "", "pipeline": "iris"}))
    slots.refresh()
    assert refused(slots, "iris") == "iris is not served: it is gone"
    assert swaps == [(None, 1)]


def test_moves_within_a_moment_are_all_seen(tmp_path: Path) -> None:
    pointers = [publish_table(tmp_path, version) for version in (1, 2)]
    slots, _ = followed(tmp_path)
    for count in range(60):
        write_pointer(tmp_path, pointers[count % 2])
        slots.refresh()
        assert slots["flowers"].version == count % 2 + 1


def test_every_answer_is_of_one_version_while_pointers_move(tmp_path: Path) -> None:
    pointers = [publish_table(tmp_path, version) for version in (1, 2)]
    slots, swaps = followed(tmp_path)
    expected = {}
    for version in (1, 2):
        contract, _ = table_contract(version)
        best = np.argmax(contract.answers, axis=1)
        expected[version] = (np.array(contract.answers), [contract.classes[place] for place in best])
    assert not np.allclose(expected[1][0], expected[2][0])
    over, wrong, answered = threading.Event(), list[str](), [0] * 4

    def ask(number: int) -> None:
        while not over.is_set():
            slot = slots["flowers"]
            answer = slot.answer(slot.from_records(TABLE_SAMPLE))
            probabilities, labels = expected[slot.version]
            if answer.labels != labels or not np.allclose(answer.probabilities, probabilities, atol=1e-5):
                wrong.append(f"{slot.version}: {answer}")
            answered[number] += 1

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for one in threads:
        one.start()
    try:
        wait_for(lambda: min(answered) > 0, "an answer in each thread")  # before the pointers move
        for count in range(30):
            before = sum(answered)
            write_pointer(tmp_path, pointers[(count + 1) % 2])
            slots.refresh()
            wait_for(lambda: sum(answered) > before, "an answer meanwhile")  # noqa: B023
    finally:
        over.set()
        for one in threads:
            one.join()
    assert wrong == []
    assert len(swaps) > 20


def test_a_pointer_is_whole_or_not_there(tmp_path: Path) -> None:
    pointers = [publish_table(tmp_path, version) for version in (1, 2)]
    path, over, seen = pointer_file(tmp_path, "flowers"), threading.Event(), set[int]()

    def read() -> None:
        while not over.is_set():
            pointer = read_pointer(path)
            seen.add(pointer.version if pointer else 0)

    reader = threading.Thread(target=read)
    reader.start()
    for count in range(300):
        write_pointer(tmp_path, pointers[count % 2])
    over.set()
    reader.join()
    assert seen <= {1, 2}
    assert [one.name for one in path.parent.iterdir() if one.name.endswith(".tmp")] == []


def test_what_does_not_belong_together_is_not_unpacked(tmp_path: Path) -> None:
    contract, model = table_contract()
    with pytest.raises(ContractError, match="is not the one that its contract names"):
        unpack(tmp_path, "flowers", contract.to_bytes(), model[:-1])
    with pytest.raises(ContractError, match="no serving contract of this release"):
        unpack(tmp_path, "flowers", b"{}", model)
    assert not (tmp_path / "serving").exists()
    folder = unpack(tmp_path, "flowers", contract.to_bytes(), model)
    stamp = (folder / "model.onnx").stat().st_ino
    assert unpack(tmp_path, "flowers", contract.to_bytes(), model) == folder
    assert (folder / "model.onnx").stat().st_ino == stamp
    (folder / "source" / "flowers" / "helpers.py").write_text("")
    assert damage(unpack(tmp_path, "flowers", contract.to_bytes(), model), folder.name) == ""


def test_old_versions_and_what_was_left_behind_are_removed(tmp_path: Path) -> None:
    keys = []
    for version in range(1, 8):
        keys.append(publish_table(tmp_path, version).key)
        os.utime(tmp_path / "serving" / "flowers" / keys[-1], (version * 1000, version * 1000))
    place = tmp_path / "serving" / "flowers"
    ages = {".new.tmp": 0, ".old.tmp": LEFTOVER_SECONDS + 60}
    for name, age in ages.items():
        (place / name).mkdir()
        (place / f".file{name}").write_text("")
        for path in (place / name, place / f".file{name}"):
            os.utime(path, (time.time() - age, time.time() - age))
    tidy(tmp_path, "flowers", keys[1])
    kept = {keys[1], *keys[-(KEPT_FOLDERS - 1) :], "current.json", ".new.tmp", ".file.new.tmp"}
    assert {path.name for path in place.iterdir()} == kept


KILLED = """
import os, sys
from pathlib import Path
from mlops_assets.serving.pointer import unpack
from mlops_assets_tests.serving.made import table_contract

at, calls = int(sys.argv[2]), 0

def seen(event, arguments):
    global calls
    if event in {"open", "os.mkdir", "os.rename"} and "serving" in str(arguments[0]):
        calls += 1
        if calls == at:
            os.kill(os.getpid(), 9)

contract, model = table_contract()
sys.addaudithook(seen)
unpack(Path(sys.argv[1]), "flowers", contract.to_bytes(), model)
"""


@pytest.mark.slow
def test_killed_while_unpacking_nothing_is_taken_for_whole(tmp_path: Path) -> None:
    contract, model = table_contract()
    killed = 0
    for at in range(1, 40, 3):
        home = tmp_path / str(at)
        done = subprocess.run([sys.executable, "-c", KILLED, str(home), str(at)], capture_output=True, check=False)
        assert done.returncode in {0, -signal.SIGKILL}, done.stderr
        killed += done.returncode != 0
        for path in (home / "serving").rglob("*.json"):
            folder = path.parent
            assert folder.name.endswith(".tmp") or not damage(folder, folder.name)
        slots = Slots(home)
        slots.refresh()
        assert slots.names() == []
        folder = unpack(home, "flowers", contract.to_bytes(), model)
        publish_table(home)
        slots.refresh()
        assert isinstance(slots["flowers"], Slot)
        assert damage(folder, folder.name) == ""
    assert killed > 5
