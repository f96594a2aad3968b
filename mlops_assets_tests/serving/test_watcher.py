"""From aliases in a real registry to what answers, with faults on the way."""

import os
import shutil
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from mlops_assets.errors import MlopsError
from mlops_assets.pipeline import PipelineNotFound
from mlops_assets.registry.aliases import point
from mlops_assets.serving import watcher as watcher_module
from mlops_assets.serving.contract import ContractError
from mlops_assets.serving.pointer import Pointer, damage, pointer_file, read_pointer
from mlops_assets.serving.registry import Embedded, RegistryUnknown
from mlops_assets.serving.slot import SlotError, Unservable
from mlops_assets.serving.slots import NotServed, Slots
from mlops_assets.serving.watcher import NoChampion, Watcher, champion_slot
from mlops_assets.settings import Settings
from mlops_assets.tracking import tags as keys
from mlops_assets.tracking.runs import Tracking
from mlops_assets_tests.mlflow_fixtures import close_stores
from mlops_assets_tests.serving.made import register_version, table_contract

SPEC = """
type: mlops_assets.component.ModelPipeline
attributes:
  data: {path: data.csv, key: id, target: species, classes: [setosa, versicolor, virginica]}
  split: {salt: s, test: 0.2, validation: 0.2}
  gate: {condition: n > 0.5, reliability: 0.9, champion_alias: production}
"""


class World:
    """A registry, a pipeline that is followed, and a worker."""

    def __init__(self, home: Path, tracking: Tracking, tmp_path: Path) -> None:
        self.home, self.tracking, self.folder = home, tracking, tmp_path / "defs" / "flowers"
        self._files = tmp_path
        self.folder.mkdir(parents=True)
        self.spec = self.folder / "defs.yaml"
        self.spec.write_text(SPEC)
        self.watcher, self.slots = self.another(), Slots(home)

    def another(self) -> Watcher:
        return Watcher(self.home, Embedded(self.home), lambda: [self.folder] if self.folder.exists() else [])

    def move(self) -> None:
        """Go on in a copy of the home, to whose database MLflow has no connection."""
        close_stores()
        self.home = Path(shutil.copytree(self.home, self.home.with_name("copy")))
        with closing(sqlite3.connect(self.home / "mlflow" / "mlflow.db")) as alone:
            alone.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # so that the one file is all of it
        self.watcher, self.slots = self.another(), Slots(self.home)

    def register(self, seed: int, **changed: object) -> int:
        return register_version(self.tracking, self._files, *table_contract(seed, **changed))

    def promote(self, version: int, alias: str = "production") -> None:
        point(self.tracking, "flowers", alias, version)

    def look(self) -> int | None:
        """The version that answers after a look, or None."""
        self.watcher.look()
        self.slots.refresh()
        try:
            return self.slots["flowers"].version
        except NotServed:
            return None

    @property
    def pointer(self) -> Pointer:
        found = read_pointer(pointer_file(self.home, "flowers"))
        assert found is not None
        return found

    def artifact(self, version: int, path: str) -> Path:
        run = self.tracking.client.get_model_version("flowers", str(version)).run_id
        (file,) = (self.home / "mlflow" / "artifacts").glob(f"*/{run}/artifacts/{path}")
        return file

    def slot(self) -> object:
        from mlops_assets.pipeline import Pipeline

        return champion_slot(Settings(home=self.home), Pipeline.load(self.folder))


@pytest.fixture
def world(home: Path, tracking: Tracking, tmp_path: Path) -> World:
    return World(home, tracking, tmp_path)


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


def test_a_version_of_others_is_told_of_and_not_served(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watcher_module, "AGAIN_SECONDS", 0.0)
    foreign = register_version(world.tracking, world.folder.parent, *table_contract(9), tags={})
    world.promote(foreign)
    assert world.look() is None
    assert "version 1 of flowers has no serving contract" in world.pointer.problem
    with pytest.raises(NotServed, match="flowers is not served: version 1 of flowers has no serving contract"):
        world.slots["flowers"]
    good = world.register(1)
    world.promote(good)
    assert world.look() == good
    world.promote(foreign)
    assert world.look() == good
    assert "version 1 of flowers has no serving contract" in world.pointer.problem
    assert world.slots.problems["flowers"] == world.pointer.problem
    world.promote(good)
    assert world.look() == good
    assert (world.pointer.problem, world.slots.problems) == ("", {})


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


def test_another_wish_is_not_held_up_by_a_failure(world: World) -> None:
    world.promote(world.register(1))
    world.look()
    world.promote(register_version(world.tracking, world.folder.parent, *table_contract(9), tags={}))
    assert world.look() == 1
    world.promote(world.register(3))
    assert world.look() == 3


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


def test_two_watchers_do_no_harm(world: World) -> None:
    versions = [world.register(seed) for seed in (1, 2)]
    world.promote(versions[0])
    watchers, over = [world.another() for _ in range(3)], threading.Event()
    seen: set[int | None] = set()

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
            seen.add(world.look())
            assert world.pointer.problem == ""
    finally:
        over.set()
        for one in threads:
            one.join()
    assert seen == {1, 2}
    assert world.look() == versions[1]
    assert [one.name for one in (world.home / "serving" / "flowers").iterdir() if one.suffix == ".tmp"] == []


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
    with pytest.raises(ContractError, match="version 2 of flowers has no serving contract"):
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
