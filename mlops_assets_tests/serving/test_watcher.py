"""From aliases in a real registry to what answers, with faults on the way."""

import os
import shutil
import threading
from pathlib import Path

import pytest

from mlops_assets.pipeline import PipelineNotFound
from mlops_assets.serving import watcher as watcher_module
from mlops_assets.serving.contract import ContractError
from mlops_assets.serving.pointer import Pointer, pointer_file
from mlops_assets.serving.slots import NotServed
from mlops_assets.serving.watcher import NoChampion, Watcher, champion_slot
from mlops_assets.settings import Settings, settings
from mlops_assets.tracking import tags as keys
from mlops_assets_tests.serving.made import register_version, table_contract
from mlops_assets_tests.serving.world import SPEC, World
from mlops_assets_tests.waiting import wait_for


def test_aliases_are_followed_forth_back_and_away(world: World) -> None:
    assert world.look() is None
    first, second = world.register(1), world.register(2)
    assert world.look() is None
    world.promote(first)
    assert world.look() == 1
    assert world.pointer.accuracy is not None
    assert world.pointer.accuracy.model_dump() == {"estimate": 0.9, "lower": 0.8, "upper": 0.95}
    assert (world.pointer.alias, world.pointer.problem, len(world.pointer.run_id)) == ("production", "", 32)
    world.promote(second)
    assert world.look() == 2
    world.promote(first)
    assert world.look() == 1
    world.tracking.client.delete_registered_model_alias("flowers", "production")
    assert world.look() is None
    assert not pointer_file(world.home, "flowers").exists()
    world.promote(second)
    assert world.look() == 2
    world.tracking.client.delete_model_version("flowers", "2")
    assert world.look() is None


def test_what_is_not_promoted_never_answers(world: World) -> None:
    world.promote(world.register(1))
    assert world.look() == 1
    for alias in ("challenger", "prod", "champion"):
        version = world.register(2)
        world.promote(version, alias)
        world.tracking.client.set_model_version_tag("flowers", str(version), keys.GATE, "rejected")
        assert world.look() == 1
    assert world.pointer.problem == ""


def test_champions_of_another_code_location_answer_here(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLOPS_LOCATION", "gpu")
    settings.cache_clear()
    world.promote(world.register(1))
    assert world.look() == 1


def test_an_alias_is_one_in_whatever_case(world: World) -> None:
    version = world.register(1)
    world.tracking.client.set_registered_model_alias("flowers", "PRODuction", str(version))
    assert world.look() == 1
    assert world.slot()


def test_a_look_without_news_writes_nothing(world: World) -> None:
    world.promote(world.register(1))
    world.look()
    before = pointer_file(world.home, "flowers").stat()
    other = world.another()
    for watcher in (world.watcher, other, world.watcher, other):
        watcher.look()
    after = pointer_file(world.home, "flowers").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_pointer_that_is_deleted_or_damaged_is_written_again(world: World) -> None:
    world.promote(world.register(1))
    assert world.look() == 1
    path = pointer_file(world.home, "flowers")
    path.unlink()
    assert world.look() == 1
    path.write_text("{")
    assert world.look() == 1
    assert world.pointer.version == 1
    path.unlink()
    path.mkdir()
    assert world.look() == 1


def test_options_of_the_server_need_no_training(world: World) -> None:
    world.promote(world.register(1))
    world.look()
    world.spec.write_text(f"{SPEC}  serving: {{batching: 'off', log: {{inputs: digest}}}}\n")
    assert world.look() == 1
    assert world.pointer.serving.batching == "off"
    assert world.slots["flowers"].serving.log.inputs == "digest"
    world.spec.write_text("type: nonsense\n")
    assert world.look() == 1
    assert world.pointer.serving.batching == "off"
    world.spec.write_text(SPEC)
    assert world.look() == 1
    assert world.pointer.serving.batching == "auto"


def test_a_spec_that_is_broken_from_the_start_leaves_the_last_good(world: World) -> None:
    world.promote(world.register(1))
    world.look()
    world.spec.write_text("type: nonsense\n")
    world.watcher = world.another()
    assert world.look() == 1
    world.spec.write_text(SPEC)
    world.promote(world.register(2))
    assert world.look() == 2
    world.spec.unlink()
    assert world.look() == 2
    shutil.rmtree(world.folder)
    assert world.look() == 2


def test_a_version_of_others_is_told_of_and_not_served(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watcher_module, "AGAIN_SECONDS", 0.0)
    foreign = register_version(world.tracking, world.folder.parent, *table_contract(9), tags={})
    world.promote(foreign)
    assert world.look() is None
    assert "version 3 of flowers has no serving contract" in world.pointer.problem
    with pytest.raises(NotServed, match="flowers is not served: version 3 of flowers has no serving contract"):
        world.slots["flowers"]
    good = world.register(1)
    world.promote(good)
    assert world.look() == good
    world.promote(foreign)
    assert world.look() == good
    assert "version 3 of flowers has no serving contract" in world.pointer.problem
    assert world.slots.problems["flowers"] == world.pointer.problem
    world.promote(good)
    assert world.look() == good
    assert (world.pointer.problem, world.slots.problems) == ("", {})


def test_another_wish_is_not_held_up_by_a_failure(world: World) -> None:
    world.promote(world.register(1))
    world.look()
    world.promote(register_version(world.tracking, world.folder.parent, *table_contract(9), tags={}))
    assert world.look() == 1
    world.promote(world.register(2))
    assert world.look() == 2


def test_two_watchers_do_no_harm(world: World) -> None:
    versions = [world.register(seed) for seed in (1, 2)]
    world.promote(versions[0])
    watchers, over = [world.another() for _ in range(3)], threading.Event()

    def watch(watcher: Watcher) -> None:
        while not over.is_set():
            watcher.look()

    threads = [threading.Thread(target=watch, args=(one,)) for one in watchers]
    world.watcher.look()
    for one in threads:
        one.start()
    try:
        for count in range(6):
            world.promote(versions[count % 2])
            # one that had asked before may put the old version back, for a moment
            wait_for(lambda: world.look() == versions[count % 2], "the version that was promoted")  # noqa: B023
            assert world.pointer.problem == ""
    finally:
        over.set()
        for one in threads:
            one.join()
    assert world.look() == versions[1]
    assert [one.name for one in (world.home / "serving" / "flowers").iterdir() if one.suffix == ".tmp"] == []


def test_what_a_slower_watcher_puts_back_does_not_stay(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.promote(world.register(1))
    assert world.look() == 1
    stale, write = world.pointer, watcher_module.write_pointer

    def overtaken(home: Path, pointer: Pointer) -> None:
        write(home, pointer)
        write(home, stale)  # by one that had asked the registry before the alias moved, and ends then

    world.promote(world.register(2))
    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(watcher_module, "write_pointer", overtaken)
        assert world.look() == 1
    assert world.look() == 2


def test_the_champion_alone_is_asked_for(world: World) -> None:
    here = Settings(home=world.home)
    with pytest.raises(PipelineNotFound, match="there is no pipeline 'flowerz'"):
        champion_slot(here, "flowerz")
    with pytest.raises(NoChampion, match=r"flowers has no champion yet \(no version has the alias 'production'\)"):
        world.slot()
    world.promote(world.register(1))
    assert world.slot()
    assert not pointer_file(world.home, "flowers").exists()
    world.promote(register_version(world.tracking, world.folder.parent, *table_contract(2), tags={}))
    with pytest.raises(ContractError, match="version 3 of flowers has no serving contract"):
        world.slot()


def test_a_watcher_needs_no_mlflow(world: World, tmp_path: Path) -> None:
    import subprocess
    import sys

    world.promote(world.register(1))
    script = (
        "import sys; from pathlib import Path\n"
        "from mlops_assets.serving.registry import Embedded\n"
        "from mlops_assets.serving.slots import Slots\n"
        "from mlops_assets.serving.watcher import Watcher\n"
        "home, folder = map(Path, sys.argv[1:])\n"
        "Watcher(home, Embedded(home), lambda: [folder]).look()\n"
        "slots = Slots(home); slots.refresh()\n"
        "heavy = {'mlflow', 'torch', 'dagster', 'pandas', 'pandera', 'gradio'} & set(sys.modules)\n"
        "print(slots['flowers'].version, sorted(heavy))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(world.home), str(world.folder)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert done.stdout == "1 []\n"
