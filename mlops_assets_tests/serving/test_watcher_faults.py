"""What answers while the registry, its files or the home are damaged or gone."""

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing

import pytest

from mlops_assets.errors import MlopsError
from mlops_assets.serving import watcher as watcher_module
from mlops_assets.serving.pointer import damage
from mlops_assets.serving.registry import RegistryUnknown
from mlops_assets.serving.server import answering
from mlops_assets.serving.slot import SlotError, Unservable
from mlops_assets.serving.slots import Slots
from mlops_assets.settings import Settings
from mlops_assets_tests.serving.made import register_version, table_contract
from mlops_assets_tests.serving.world import World

pytestmark = pytest.mark.slow


def missing(world: World) -> None:
    (world.home / "mlflow" / "mlflow.db").rename(world.home / "mlflow" / "away.db")


def garbage(world: World) -> None:
    missing(world)
    (world.home / "mlflow" / "mlflow.db").write_bytes(b"no database at all" * 1000)


def empty(world: World) -> None:
    missing(world)
    (world.home / "mlflow" / "mlflow.db").write_bytes(b"")


@pytest.mark.parametrize("break_it", [missing, garbage, empty])
def test_without_a_registry_the_last_good_answers_on(break_it: Callable[[World], None], world: World) -> None:
    world.promote(world.register(1))
    world.register(2)
    world.move()
    assert world.look() == 1
    break_it(world)
    assert world.look() == 1
    assert world.pointer.problem == ""
    world.watcher, world.slots = world.another(), Slots(world.home)
    assert world.look() == 1
    with pytest.raises(RegistryUnknown, match=r"mlflow\.db (does not exist|cannot be read)"):
        world.slot()
    (world.home / "mlflow" / "mlflow.db").unlink(missing_ok=True)
    database = (world.home / "mlflow" / "away.db").rename(world.home / "mlflow" / "mlflow.db")
    with closing(sqlite3.connect(database, isolation_level=None)) as direct:
        direct.execute("UPDATE registered_model_aliases SET version = 2")
    assert world.look() == 2


@pytest.mark.slow
def test_a_locked_registry_is_waited_for_and_then_left(world: World) -> None:
    world.promote(world.register(1))
    world.register(2)
    world.move()
    assert world.look() == 1
    with closing(sqlite3.connect(world.home / "mlflow" / "mlflow.db", isolation_level=None)) as holder:
        holder.execute("PRAGMA locking_mode=EXCLUSIVE")
        holder.execute("BEGIN EXCLUSIVE")
        holder.execute("UPDATE registered_model_aliases SET version = 2")
        assert world.look() == 1
        assert world.pointer.problem == ""
        holder.execute("COMMIT")
    assert world.look() == 2


def no_model(world: World, version: int) -> None:
    world.artifact(version, "onnx/model.onnx").unlink()


def damaged_model(world: World, version: int) -> None:
    world.artifact(version, "onnx/model.onnx").write_bytes(b"no model")


def no_contract(world: World, version: int) -> None:
    world.artifact(version, "serving/contract.json").unlink()


def damaged_contract(world: World, version: int) -> None:
    file = world.artifact(version, "serving/contract.json")
    file.write_bytes(file.read_bytes().replace(b"setosa", b"secosa"))


@pytest.mark.parametrize("break_it", [no_model, damaged_model, no_contract, damaged_contract])
def test_a_damaged_version_leaves_the_last_good(
    break_it: Callable[[World, int], None], world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watcher_module, "AGAIN_SECONDS", 3600.0)  # not tried again by itself, however slow this is
    world.promote(world.register(1))
    assert world.look() == 1
    world.promote(world.register(2))
    kept = shutil.copytree(world.home / "mlflow" / "artifacts", world.home / "kept")
    break_it(world, 2)
    assert world.look() == 1
    assert world.pointer.version == 1
    assert "damaged" in world.pointer.problem or "cannot be read" in world.pointer.problem
    assert "\n" not in world.pointer.problem
    with pytest.raises(MlopsError):
        world.slot()
    shutil.rmtree(world.home / "mlflow" / "artifacts")
    kept.rename(world.home / "mlflow" / "artifacts")
    assert world.look() == 1  # not tried at every look
    monkeypatch.setattr(watcher_module.time, "monotonic", lambda: 1e12)
    assert world.look() == 2
    assert world.pointer.problem == ""


def test_a_version_that_does_not_answer_as_in_training_is_never_pointed_at(world: World) -> None:
    contract, model = table_contract(2)
    wrong = contract.model_copy(update={"answers": ((1.0, 0.0, 0.0),) * 3})
    world.promote(world.register(1))
    assert world.look() == 1
    for bad, reason in ((wrong, "otherwise than in training"), (contract, "on other rows")):
        unservable = "features depend on other rows" if reason == "on other rows" else ""
        changed = bad.model_copy(update={"unservable": unservable})
        version = register_version(world.tracking, world.folder.parent, changed, model)
        world.promote(version)
        assert world.look() == 1
        assert reason in world.pointer.problem
        with pytest.raises(Unservable if unservable else SlotError, match=reason):
            world.slot()


def test_files_that_were_damaged_at_home_are_made_again_at_the_start(world: World) -> None:
    world.promote(world.register(1))
    world.look()
    folder = world.home / "serving" / "flowers" / world.pointer.key
    (folder / "model.onnx").write_bytes(b"")
    world.watcher, world.slots = world.another(), Slots(world.home)
    assert world.look() == 1
    assert damage(folder, folder.name) == ""


def test_an_unwritable_home_ends_nothing(world: World) -> None:
    world.promote(world.register(1))
    assert world.look() == 1
    world.promote(world.register(2))
    place = world.home / "serving" / "flowers"
    moved = place.rename(world.home / "away")
    place.write_text("a file where a folder is needed")
    world.watcher.look()
    place.unlink()
    moved.rename(place)
    world.watcher = world.another()
    assert world.look() == 2


def test_options_hold_while_the_registry_is_away(world: World) -> None:
    world.promote(world.register(1))
    world.move()
    assert world.look() == 1
    missing(world)
    text = world.spec.read_text() + "  serving: {log: {leave_out: [colour]}}\n"
    world.spec.write_text(text)
    assert world.look() == 1
    assert world.pointer.serving.log.leave_out == ["colour"]
    assert world.slots["flowers"].serving.log.leave_out == ["colour"]


def test_a_pipeline_whose_folder_is_gone_answers_on_and_says_so(world: World) -> None:
    world.promote(world.register(1))
    assert world.look() == 1
    away = world.folder.rename(world.folder.with_name("away"))
    world.promote(world.register(2))
    assert world.look() == 1
    assert "the folder of the pipeline is gone" in world.pointer.problem
    away.rename(world.folder)
    assert world.look() == 2
    assert world.pointer.problem == ""


def test_a_damaged_pointer_stops_no_server(world: World) -> None:
    world.promote(world.register(1))
    assert world.look() == 1
    (world.home / "serving" / "other").mkdir()
    (world.home / "serving" / "other" / "current.json").write_bytes(b"")
    assert [one.pipeline for one in answering(Settings(home=world.home))] == ["flowers"]
