"""`mlops store`, by the real command, over a real store, event log and registry."""

import os
import pty
import re
import sys
import time
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path

import dagster as dg
import pytest

from mlops_assets.assessment import Assessment
from mlops_assets.cli import store as command
from mlops_assets.execution import execute, wanted_stages
from mlops_assets.fingerprint import Recipe
from mlops_assets.home import ensure_home, open_instance
from mlops_assets.pipeline import STAGES, Pipeline
from mlops_assets.provenance import PIPELINE_TAG, provenance_metadata, read_state
from mlops_assets.settings import Settings, settings
from mlops_assets.store import Store
from mlops_assets.tracking import tags as keys
from mlops_assets.tracking.runs import Tracking
from mlops_assets.upkeep import entries, verify
from mlops_assets_tests.cli.conftest import Mlops
from mlops_assets_tests.loop import Loop
from mlops_assets_tests.test_upkeep import age

pytestmark = pytest.mark.slow

KINDS = ("dataset", "features", "model", "predictions", "evaluation")
DAY = 86400.0


class Kept:
    """A home with outputs in the store, and what Dagster and MLflow say of them."""

    def __init__(self, here: Settings, instance: dg.DagsterInstance) -> None:
        self.here, self.instance = here, instance
        self.store = Store(here.store_url)

    def put(self, asset: str, number: int, info: dict | None = None, **inputs: str) -> str:
        """An entry made by the recipe of a number, three days ago."""
        recipe = Recipe(asset, f"code {number}", inputs)
        self.store.put(recipe, f"{asset} {number}", info or {}, {"table": b"12345"})
        age(self.store, recipe.key, 3 * DAY, asset)
        return recipe.key

    def materialize(self, asset: str, number: int, info: dict | None = None, **inputs: str) -> str:
        """Such an entry that Dagster knows."""
        recipe = Recipe(asset, f"code {number}", inputs)
        metadata = provenance_metadata(recipe, f"{asset} {number}")
        self.instance.report_runless_asset_event(dg.AssetMaterialization(asset.split("/"), metadata=metadata))
        return self.put(asset, number, info, **inputs)

    def left(self, asset: str | None = None) -> set[str]:
        return {slot.key for slot in entries(self.store, asset)}


@pytest.fixture
def kept(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kept]:
    monkeypatch.setenv("DAGSTER_HOME", str(home / "dagster"))
    here = ensure_home(settings())
    with open_instance(here) as instance:
        yield Kept(here, instance)


def point(tracking: Tracking, alias: str, recipe: str) -> None:
    """Register a version that a recipe made, and let an alias point to it."""
    client = tracking.client
    if not client.search_registered_models():
        client.create_registered_model("iris")
    version = client.create_model_version("iris", "mlops-home:/iris/models/m-1/artifacts", tags={keys.RECIPE: recipe})
    client.set_registered_model_alias("iris", alias, version.version)


def test_a_fresh_home_has_nothing(mlops: Mlops) -> None:
    assert "nothing is there" in mlops("store", "ls").out
    assert "nothing is there below iris" in mlops("store", "ls", "--asset", "iris").out
    assert "0 entries in" in mlops("store", "verify").out
    assert mlops("store", "gc").out == "nothing to remove\n"


def test_a_list_says_what_is_in_use(kept: Kept, tracking: Tracking, mlops: Mlops) -> None:
    first, second = (kept.materialize("iris/features", number) for number in (1, 2))
    champion = kept.materialize("iris/model", 1, features="iris/features 1")
    newest = kept.materialize("iris/model", 2, features="iris/features 2")
    other = kept.put("iris/model", 3)
    point(tracking, "champion", champion)
    point(tracking, "challenger", newest)
    kept.store.fs.rm(kept.store.fs.glob(f"{kept.store.url('iris/features', second)}/*/table"))
    with kept.store.making(Recipe("iris/model", "code 4", {})):
        pass
    told = mlops("store", "ls")
    assert told.code == 0, told.err
    states = {
        key: re.split(r" *│ *", line)[6] for line in told.out.splitlines() for key in [line[18:26]] if "│" in line
    }
    assert states == {
        first[:8]: "in use",
        second[:8]: "damaged: table: it is gone",
        champion[:8]: "champion",
        newest[:8]: "current, challenger",
        other[:8]: "old",
        Recipe("iris/model", "code 4", {}).key[:8]: "incomplete",
    }
    some = mlops("store", "ls", "--asset", "iris/features").out
    assert (len(some.splitlines()), "in use" in some, "iris/model" in some) == (7, True, False)
    assert "nothing is there below iris/feat" in mlops("store", "ls", "--asset", "iris/feat").out


def test_gc_keeps_what_is_referred_to(kept: Kept, tracking: Tracking, mlops: Mlops) -> None:
    features = [kept.materialize("iris/features", number) for number in range(5)]
    models = [kept.materialize("iris/model", number, features=f"iris/features {number}") for number in range(5)]
    predictions = [kept.put("iris/predictions", number, model=f"iris/model {number}") for number in range(5)]
    for number in range(5):
        told = {"predictions": predictions[number]}
        kept.materialize("iris/evaluation", number, told, model=f"iris/model {number}")
    point(tracking, "champion", models[1])
    young = kept.materialize("iris/features", 9)
    age(kept.store, young, 0, "iris/features")
    kept.materialize("iris/features", 4)
    (Path(kept.store.url("iris/model", models[0])) / "attempt").mkdir()
    age(kept.store, models[0], 3 * DAY)

    told = mlops("store", "gc", "--keep", "2", "--older-than", "2")
    assert told.code == 0, told.err
    assert "removed" in told.out
    assert kept.left("iris/features") == {features[1], features[4], young}, "3 was materialized before 9 and 4"
    assert kept.left("iris/model") == {models[1], *models[3:]}
    assert kept.left("iris/predictions") == {predictions[1], *predictions[3:]}
    assert len(kept.left("iris/evaluation")) == 3, "the last two, and the champion's"
    assert list(verify(kept.store)) == []
    assert mlops("store", "verify").code == 0
    assert mlops("store", "gc", "--keep", "2", "--older-than", "2").out == "nothing to remove\n"


def test_gc_removes_what_killed_writers_left_and_old_checkpoints(kept: Kept, mlops: Mlops) -> None:
    kept.materialize("iris/features", 1)
    half = Recipe("iris/features", "half", {}).key
    kept.store.fs.makedirs(f"{kept.store.url('iris/features', half)}/attempt")
    kept.store.fs.pipe_file(f"{kept.store.url('iris/features', half)}/attempt/table", bytes(3000))
    age(kept.store, half, 3 * DAY, "iris/features")
    folder = kept.here.home / "checkpoints"
    folder.mkdir()
    for name, days in (("old", 8), ("new", 6)):
        (folder / f"{name}.safetensors").write_bytes(bytes(2000))
        os.utime(folder / f"{name}.safetensors", (time.time() - days * DAY,) * 2)
    told = mlops("store", "gc")
    assert "left by writers" in told.out
    assert "checkpoints of trainings that were given up" in told.out
    assert "removed 5.0 kB" in told.out
    assert len(kept.left()) == 1
    assert [path.name for path in folder.iterdir()] == ["new.safetensors"]


def test_gc_leaves_alone_what_nobody_can_judge(kept: Kept, mlops: Mlops) -> None:
    key = kept.put("iris/features", 1)
    told = mlops("store", "gc")
    assert "iris: Dagster's event log knows nothing of it, so its entries stay" in told.out
    assert kept.left() == {key}


@pytest.mark.parametrize("status", ["STARTING", "STARTED"])
def test_gc_leaves_a_pipeline_with_a_run_alone(kept: Kept, mlops: Mlops, status: str) -> None:
    old = kept.put("iris/features", 1)
    kept.materialize("iris/features", 2)
    gone = kept.put("digits/features", 1)
    kept.materialize("digits/features", 2)

    @dg.job(name="iris_job", tags={PIPELINE_TAG: "iris"})
    def job() -> None:
        """Nothing."""

    run = kept.instance.create_run_for_job(job, status=dg.DagsterRunStatus(status))
    told = mlops("store", "gc")
    assert f"iris: run {run.run_id[:8]} of iris is {status.lower()}, so everything of it stays" in told.out
    assert old in kept.left()
    assert gone not in kept.left()


def test_gc_leaves_a_pipeline_alone_that_mlops_run_is_busy_with(kept: Kept, mlops: Mlops) -> None:
    from filelock import FileLock

    old = kept.put("iris/features", 1)
    kept.materialize("iris/features", 2)
    (kept.here.home / "locks").mkdir()
    with FileLock(kept.here.home / "locks" / "run-iris"):
        told = mlops("store", "gc")
    assert "iris: a `mlops run iris` is under way, so everything of it stays" in told.out
    assert old in kept.left()
    mlops("store", "gc")
    assert old not in kept.left()


def test_gc_removes_nothing_when_the_registry_cannot_be_asked(
    kept: Kept, mlops: Mlops, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = kept.put("iris/features", 1)
    kept.materialize("iris/features", 2)
    database = kept.here.home / "mlflow" / "mlflow.db"
    database.write_bytes(b"x" * 5000)
    told = mlops("store", "gc")
    assert told.code == 1
    assert f"{database} cannot be read (file is not a database), so nobody knows which models are in use" in told.err
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    settings.cache_clear()
    told = mlops("store", "gc")
    assert (told.code, "No MLflow server answers at http://127.0.0.1:9" in told.err) == (1, True)
    assert old in kept.left()


@pytest.mark.parametrize(("answer", "removed"), [(b"n\n", False), (b"y\n", True)])
def test_gc_asks_at_a_terminal(
    kept: Kept, mlops: Mlops, monkeypatch: pytest.MonkeyPatch, answer: bytes, removed: bool
) -> None:
    old = kept.put("iris/features", 1)
    kept.materialize("iris/features", 2)
    master, slave = pty.openpty()
    with os.fdopen(slave, "r", closefd=True) as terminal:
        monkeypatch.setattr(sys, "stdin", terminal)
        os.write(master, answer)
        told = mlops("store", "gc")
    os.close(master)
    assert told.code == 0, told.err
    assert "Remove" in told.out
    assert ("nothing was removed" in told.out) == (not removed)
    assert (old not in kept.left()) == removed
    kept.put("iris/features", 1)
    mlops("store", "gc", "--yes")
    assert old not in kept.left()


def test_verify_names_damage_and_how_it_is_mended(kept: Kept, mlops: Mlops, monkeypatch: pytest.MonkeyPatch) -> None:
    damaged = kept.materialize("iris/features", 1)
    kept.materialize("digits/features", 1)
    predictions = kept.put("iris/predictions", 1)
    evaluation = kept.materialize("iris/evaluation", 1, {"predictions": predictions})
    assert mlops("store", "verify").out.startswith("4 entries in ")
    flip(Path(kept.store.url("iris/features", damaged)))
    kept.store.fs.rm(kept.store.url("iris/predictions", predictions), recursive=True)
    monkeypatch.setattr(command, "BAR_SECONDS", -1.0)
    told = mlops("store", "verify")
    assert told.code == 1
    assert "verifying" in told.out, "the bar"
    assert re.search(rf"iris/features +│ {damaged} │ table: its hash is wrong +│ current", told.out)
    assert re.search(rf"iris/evaluation │ {evaluation} │ the predictions that it judges are gone", told.out)
    assert told.err.strip() == (
        "error: 2 entries are damaged; `mlops store verify --repair` sets aside what is, "
        "then `mlops run iris` makes again what is current"
    )
    with kept.store.making(Recipe("iris/features", "code 1", {})):
        told = mlops("store", "verify", "--repair")
    assert (told.code, "1 entry is set aside" in told.out) == (1, True)
    assert f"iris/features {damaged[:8]}: being made right now" in told.err
    told = mlops("store", "verify", "--repair")
    assert (told.code, told.err) == (0, "")
    assert "1 entry is set aside; `mlops run iris` makes again what is current" in told.out
    assert mlops("store", "verify").code == 0


def flip(folder: Path) -> None:
    """Change a bit of every file."""
    for file in folder.glob("*/*"):
        data = file.read_bytes()
        file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def cut(folder: Path) -> None:
    """Lose the end of the manifest."""
    manifest = folder / "manifest.json"
    manifest.write_bytes(manifest.read_bytes()[:100])


# Observable source assets are beta in Dagster 1.13; `dg.load_from_defs_folder` silences the same warnings.
@pytest.mark.filterwarnings("ignore:(Parameter|Function) `(execution_type|observable_source_asset):dagster.BetaWarning")
@pytest.mark.filterwarnings("ignore:Property `OpDefinition.version`:DeprecationWarning")
def test_whatever_is_damaged_is_whole_again_after_a_repair_and_a_run(settled: Loop, mlops: Mlops) -> None:
    store = Store(settled.here.store_url)
    before = read_state(settled.instance, "iris")
    whole = digests(store)
    assert {asset for asset, _ in whole} == {f"iris/{kind}" for kind in KINDS}

    def damage(kind: str, how: Callable[[Path], None]) -> None:
        (slot,) = entries(store, f"iris/{kind}")
        how(Path(slot.url))

    for kind, how in zip(KINDS, cycle([flip, cut]), strict=False):
        damage(kind, how)
        assert mlops("store", "verify", "--repair").code == 0, kind
        assert len(digests(store)) < len(KINDS), kind
        run(settled, store)
        assert digests(store) == whole, kind
        assert mlops("store", "verify").code == 0, kind
    settled.edit("defs.yaml", "n > 0.75", "n > 0.76")
    assert settled.settle() == ["champion"], "the gate finds the predictions that it decides on"
    for kind, how in zip(KINDS, cycle([cut, flip]), strict=False):
        damage(kind, how)
    assert mlops("store", "verify", "--repair").code == 0
    run(settled, store)
    assert digests(store) == whole
    after = read_state(settled.instance, "iris")
    assert {stage: after[stage].digest for stage in STAGES} == {stage: before[stage].digest for stage in STAGES}


def digests(store: Store) -> dict[tuple[str, str], str]:
    return {slot.place: slot.entry.digest for slot in entries(store) if slot.entry}


def run(loop: Loop, store: Store) -> None:
    """What `mlops run iris` does."""
    now = Assessment.of(Pipeline.load(loop.folder), loop.repository, loop.instance)
    execute(now, wanted_stages(now, store), loop.instance)
    again = Assessment.of(Pipeline.load(loop.folder), loop.repository, loop.instance)
    assert wanted_stages(again, store) == ()
