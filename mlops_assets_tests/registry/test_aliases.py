import shutil
import threading
from pathlib import Path

import pytest

from mlops_assets.registry.aliases import RegistryError, Version, current, find, normalise, point, register
from mlops_assets.tracking import tags as keys
from mlops_assets.tracking.runs import Tracking
from mlops_assets.tracking.store import TrackingError


def logged_model(tracking: Tracking, folder: Path) -> tuple[str, str]:
    """A logged model with the one file that makes it one; the real thing is tested with the runs."""
    files = folder / "model"
    files.mkdir(exist_ok=True)
    (files / "MLmodel").write_text("flavors: {}\n")
    with tracking.training_run(experiment="iris", name="fit", params={}, tags={}) as run:
        model = tracking.client.create_logged_model(run.experiment_id, "model", run.run_id)
        tracking.client.log_model_artifacts(model.model_id, str(files))
    return run.run_id, model.model_uri


def test_register_and_find_by_recipe(tracking: Tracking, tmp_path: Path):
    made = []
    for recipe in ("r1", "r2", "r1"):
        run_id, uri = logged_model(tracking, tmp_path)
        tags = {keys.RECIPE: recipe, keys.MODEL_DIGEST: "d"}
        version = register(tracking, name="iris", model_uri=uri, tags=tags)
        assert version == Version("iris", len(made) + 1, run_id, recipe, "d", tags)
        assert version.uri == f"models:/iris/{version.number}"
        made.append(version)
    assert find(tracking, "iris", "r1") == made[2]
    assert find(tracking, "iris", "r2") == made[1]
    assert find(tracking, "iris", "r3") is None
    assert find(tracking, "other", "r1") is None


def test_version_without_its_files_is_not_found(tracking: Tracking, home: Path, tmp_path: Path):
    versions = []
    for _ in range(2):
        _, uri = logged_model(tracking, tmp_path)
        versions.append(register(tracking, name="iris", model_uri=uri, tags={keys.RECIPE: "r"}))
    shutil.rmtree(home / "mlflow" / "artifacts" / "iris" / "models" / uri.removeprefix("models:/"))
    assert find(tracking, "iris", "r") == versions[0]


def test_alias_points_moves_and_ignores_case(tracking: Tracking, tmp_path: Path):
    assert current(tracking, "iris", "champion") is None
    versions = []
    for _ in range(2):
        _, uri = logged_model(tracking, tmp_path)
        versions.append(register(tracking, name="iris", model_uri=uri, tags={}))
    assert current(tracking, "iris", "champion") is None
    for version in versions:
        point(tracking, "iris", "Champion", version.number)
        assert current(tracking, "iris", "CHAMPION") == version
    assert tracking.client.get_registered_model("iris").aliases == {"champion": 2}
    with pytest.raises(TrackingError, match="version=9"):
        point(tracking, "iris", "champion", 9)


@pytest.mark.parametrize("alias", ["latest", "Latest", "v1", "V12", "3", "", "a b", "a@b", "ü"])
def test_aliases_that_mlflow_reserves_or_refuses(alias: str):
    with pytest.raises(RegistryError, match="cannot be a model alias"):
        normalise(alias)


@pytest.mark.parametrize("alias", ["champion", " Production ", "v1-canary", "challenger_2"])
def test_aliases_that_are_fine(alias: str):
    assert normalise(alias) == alias.strip().lower()


def test_names_and_uris_that_cannot_be(tracking: Tracking):
    with pytest.raises(RegistryError, match="cannot name a model"):
        find(tracking, "it's", "r")
    with pytest.raises(RegistryError, match="is no recipe"):
        find(tracking, "iris", "' OR name LIKE '%")
    for uri in ("models:/iris/1", "models:/iris@champion", "runs:/abc/model"):
        with pytest.raises(RegistryError, match="names no logged model"):
            register(tracking, name="iris", model_uri=uri, tags={})
    with pytest.raises(TrackingError, match="not found"):
        register(tracking, name="iris", model_uri="models:/m-" + "0" * 32, tags={})


def test_many_register_at_once(tracking: Tracking, tmp_path: Path):
    _, uri = logged_model(tracking, tmp_path)
    gate, numbers, errors = threading.Barrier(6), [], []

    def work() -> None:
        gate.wait()
        try:
            numbers.append(register(tracking, name="iris", model_uri=uri, tags={}).number)
        except Exception as exc:  # noqa: BLE001  reported by the assertion
            errors.append(exc)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (sorted(numbers), errors) == ([1, 2, 3, 4, 5, 6], [])
