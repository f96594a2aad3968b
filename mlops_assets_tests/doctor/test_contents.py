"""Settings, repositories, the store and pipelines, looked at while something about them is wrong."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from mlops_assets.doctor import contents
from mlops_assets.doctor.examination import Examination, Finding, examination
from mlops_assets.fingerprint import Recipe
from mlops_assets.home import ensure_home, open_instance
from mlops_assets.oxen.repository import Repository
from mlops_assets.oxen.tree import Tree
from mlops_assets.pipeline import DEFS, pipeline_folders
from mlops_assets.provenance import provenance_metadata
from mlops_assets.settings import settings
from mlops_assets.store import Store


@pytest.fixture
def look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Examination]:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home" / "dagster"))
    with examination(settings()) as made:
        yield made


@pytest.fixture
def repository(look: Examination) -> Repository:
    made = look.here.repository("iris")
    made.init()
    made.commit("first", files={"iris.csv": b"a,b\n1,2\n", "more/notes.txt": b"hello"})
    made.create_branch("dev")
    made.commit("second", files={"dev.txt": b"dev"}, branch="dev")
    return made


def test_settings_that_can_be_used() -> None:
    (found,) = contents.settings(settings(), {"MLOPS_HOME": "/x", "MLOPS_CIFAR10": "/data", "PATH": "/bin"})
    assert found.result == "ok"


def test_a_misspelt_variable() -> None:
    (found,) = contents.settings(settings(), {"MLOPS_DAGSTR_PORT": "3001"})
    expected = Finding("settings", "warning", "nothing reads MLOPS_DAGSTR_PORT", "did you mean MLOPS_DAGSTER_PORT?")
    assert found == expected


@pytest.mark.parametrize("url", ["nowhere://bucket", "sftp://host/path"])
def test_a_store_that_cannot_be_opened(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("MLOPS_STORE", url)
    settings.cache_clear()
    (found,) = contents.settings(settings(), {})
    assert (found.result, found.found.startswith(f"the store {url} cannot be opened: ")) == ("problem", True)


def test_a_host_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLOPS_HOST", "256.1.1.1.")
    settings.cache_clear()
    (found,) = contents.settings(settings(), {})
    assert (found.result, "MLOPS_HOST is '256.1.1.1.', which is no address" in found.found) == ("problem", True)


def test_sound_repositories(look: Examination, repository: Repository) -> None:
    expected = "1 repositories, 3 files (16 bytes) at their branches' heads"
    assert list(contents.repositories(look)) == [Finding("Oxen", "ok", expected)]
    look.deep = True
    assert [one.found for one in contents.repositories(look)] == [f"{expected}, hashed again"]


def test_damaged_content(look: Examination, repository: Repository) -> None:
    heads, tree = repository.heads(), Tree(repository.path / ".oxen")
    blobs = {entry.path: tree.blob(entry.hash) for entry in repository.entries("", heads["dev"])}
    blobs["iris.csv"].write_bytes(b"a,b\n1,2")
    blobs["more/notes.txt"].write_bytes(b"hallo")
    blobs["dev.txt"].unlink()
    found = {one.found: one for one in contents.repositories(look)}
    assert set(found) == {
        "the content of iris.csv (branch dev) has 7 bytes instead of 8",
        "the content of dev.txt (branch dev) is gone",
    }
    one = found["the content of dev.txt (branch dev) is gone"]
    assert (one.check, one.result) == ("Oxen iris", "problem")
    assert one.fix.startswith(f"delete {blobs['dev.txt']} if it is there, then commit the original again")
    look.deep = True
    assert "the content of more/notes.txt (branch dev) does not have its hash" in {
        one.found for one in contents.repositories(look)
    }


def test_a_damaged_repository_is_no_obstacle_to_others(look: Examination, repository: Repository) -> None:
    other = look.here.home / "oxen" / "digits"
    shutil.copytree(repository.path, other)
    (other / ".oxen" / "tree" / "nodes_lmdb" / "data.mdb").write_bytes(bytes(100))
    shutil.copytree(repository.path, look.here.home / "oxen" / "wine")
    (look.here.home / "oxen" / "wine" / ".oxen" / "config.toml").unlink()
    found = {one.check: one for one in contents.repositories(look)}
    assert set(found) == {"Oxen digits", "Oxen wine"}
    assert {one.result for one in found.values()} == {"problem"}
    assert "restore the repository's .oxen folder from a backup" in found["Oxen digits"].fix
    assert f"there is no Oxen repository at {look.here.home / 'oxen' / 'wine'}" in found["Oxen wine"].found


def test_what_a_killed_committer_left(look: Examination, repository: Repository) -> None:
    (repository.path / ".oxen" / "mlops" / "work" / "0123").mkdir(parents=True)
    (found,) = contents.repositories(look)
    assert (found.check, found.result, found.fix) == ("Oxen iris", "warning", "nothing: the next commit removes them")
    repository.commit("third", files={"a.txt": b"a"})
    assert [one.result for one in contents.repositories(look)] == ["ok"]


def put(
    store: Store, asset: str, number: int, info: dict | None = None, instance: dg.DagsterInstance | None = None
) -> Path:
    """An entry, which Dagster may know; where it is."""
    recipe = Recipe(asset, f"code {number}", {})
    store.put(recipe, f"digest {number}", info or {}, {"table": b"12345"})
    if instance:
        metadata = provenance_metadata(recipe, f"digest {number}")
        instance.report_runless_asset_event(dg.AssetMaterialization(asset.split("/"), metadata=metadata))
    return Path(store.url(asset, recipe.key))


def test_an_empty_store(look: Examination) -> None:
    (found,) = contents.store(look)
    assert (found.result, found.found.startswith("0 entries (0 bytes) in ")) == ("ok", True)


def test_a_damaged_store(look: Examination) -> None:
    store = Store(look.here.store_url)
    with open_instance(ensure_home(settings())) as instance:
        old = put(store, "iris/features", 1, instance=instance)
        current = put(store, "iris/features", 2, instance=instance)
        lost = put(store, "iris/model", 1, instance=instance)
        put(store, "iris/evaluation", 1, {"predictions": "gone"}, instance)
        flipped = put(store, "iris/dataset", 1, instance=instance)
    (old / "manifest.json").write_text("{")
    next(current.glob("*/table")).unlink()
    shutil.rmtree(lost.parent)
    next(flipped.glob("*/table")).write_bytes(b"12346")
    found = {(one.found, one.result) for one in contents.store(look)}
    assert found == {
        (f"iris/features {old.name[:8]} is damaged: manifest.json: not JSON: {NOT_JSON}", "warning"),
        (f"iris/features {current.name[:8]} is damaged: table: it is gone", "problem"),
        (f"iris/evaluation {key(1)} is damaged: the predictions that it judges are gone or damaged", "problem"),
        (f"iris/model {lost.name[:8]}, which was materialized last, is gone", "problem"),
    }
    fixes = {one.fix for one in contents.store(look)}
    assert fixes == {"`mlops store verify --repair`, then `mlops run iris`", "`mlops run iris` makes it again"}
    look.deep = True
    assert (f"iris/dataset {flipped.name[:8]} is damaged: table: its hash is wrong", "problem") in {
        (one.found, one.result) for one in contents.store(look)
    }


NOT_JSON = "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"


def key(number: int) -> str:
    return Recipe("iris/evaluation", f"code {number}", {}).key[:8]


def test_pipelines_that_load() -> None:
    (found,) = contents.pipelines(pipeline_folders(), deep=False)
    assert (found.result, "iris" in found.found) == ("ok", True)


def test_pipelines_that_do_not_load(tmp_path: Path) -> None:
    for name in ("yaml", "gone", "syntax", "sound"):
        shutil.copytree(DEFS / "iris", tmp_path / name)
    yaml = tmp_path / "yaml" / "defs.yaml"
    yaml.write_text(yaml.read_text().replace("target:", "targt:"))
    (tmp_path / "gone" / "schema.py").unlink()
    (tmp_path / "syntax" / "features.py").write_text("def features(:\n")
    found = {one.check: one for one in contents.pipelines(pipeline_folders(tmp_path), deep=False)}
    assert set(found) == {"pipeline yaml", "pipeline gone", "pipeline syntax"}
    assert {one.result for one in found.values()} == {"problem"}
    assert "did you mean 'target'" in found["pipeline yaml"].found + found["pipeline yaml"].fix
    assert found["pipeline gone"].found == f"{tmp_path / 'gone' / 'schema.py'} does not exist"
    assert found["pipeline gone"].fix == "create it or correct its name in defs.yaml"
    assert "features.py:1: not valid Python" in found["pipeline syntax"].found + found["pipeline syntax"].fix


@pytest.mark.slow
def test_pipelines_whose_functions_cannot_be_imported(tmp_path: Path) -> None:
    for name in ("iris", "broken"):
        shutil.copytree(DEFS / "iris", tmp_path / name)
    (tmp_path / "broken" / "model.py").write_text("import no_such_package\n\ndef model(): ...\n")
    assert [one.result for one in contents.pipelines(pipeline_folders(tmp_path), deep=False)] == ["ok"]
    (found,) = contents.pipelines(pipeline_folders(tmp_path), deep=True)
    assert (found.check, found.result) == ("pipeline broken", "problem")
    assert "No module named 'no_such_package'" in found.found + found.fix
