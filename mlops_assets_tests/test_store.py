"""The store keeps what a recipe made, whole or not at all."""

import json
from pathlib import Path

import fsspec
import pytest

from mlops_assets.fingerprint import Recipe
from mlops_assets.store import EntryCorrupt, EntryMissing, Store, StoreError

RECIPE = Recipe("iris/model", "code", {"features": "data"})
FILES = {"weights": b"\x00\x01", "notes.json": b'{"a": 1}'}


@pytest.fixture(params=["local", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "store") if request.param == "local" else f"memory://{tmp_path.name}"


def test_what_is_put_is_found(url: str) -> None:
    assert Store(url).find("iris/model", RECIPE.key) is None
    Store(url).put(RECIPE, "digest", {"rows": 3}, FILES)
    found = Store(url).get("iris/model", RECIPE.key)
    assert (found.digest, found.info, found.read("weights"), found.json("notes.json")) == (
        "digest",
        {"rows": 3},
        b"\x00\x01",
        {"a": 1},
    )


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
    with pytest.raises(EntryCorrupt, match=r"damaged.*`mlops run iris`"):
        entry.read("weights")


def test_a_deleted_file_is_noticed(url: str) -> None:
    entry = Store(url).put(RECIPE, "digest", {}, FILES)
    fs, root = fsspec.core.url_to_fs(url)
    fs.rm(fs.glob(f"{root}/**/weights")[0])
    with pytest.raises(EntryMissing, match="is gone"):
        entry.read("weights")


@pytest.mark.parametrize("manifest", [b"", b"{", b"[]", b"{}", json.dumps({"digest": "d"}).encode()])
def test_a_damaged_manifest_is_named(tmp_path: Path, manifest: bytes) -> None:
    Store(str(tmp_path)).put(RECIPE, "digest", {}, FILES)
    (tmp_path / "iris" / "model" / RECIPE.key / "manifest.json").write_bytes(manifest)
    with pytest.raises(EntryCorrupt, match=r"manifest\.json is damaged"):
        Store(str(tmp_path)).find("iris/model", RECIPE.key)


def test_what_was_interrupted_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(tmp_path))

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(store._fs, "mv", killed)
    with pytest.raises(KeyboardInterrupt):
        store.put(RECIPE, "digest", {}, FILES)
    monkeypatch.undo()
    assert store.find("iris/model", RECIPE.key) is None
    store.put(RECIPE, "digest", {}, FILES)
    assert store.get("iris/model", RECIPE.key).read("weights") == b"\x00\x01"


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "iris").write_text("a file where a folder must be")
    with pytest.raises(StoreError, match="cannot be written"):
        Store(str(tmp_path)).put(RECIPE, "digest", {}, FILES)
