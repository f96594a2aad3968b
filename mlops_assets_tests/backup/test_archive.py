"""Archives that are whole, and ones that are not: nothing of those becomes visible."""

from __future__ import annotations

import io
import json
import shutil
import sqlite3
import tarfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import xxhash

from mlops_assets.backup import archive, destination
from mlops_assets.backup.archive import ABOUT, MANIFEST, About
from mlops_assets.backup.contents import Places, belongs
from mlops_assets.backup.errors import ArchiveDamaged, BackupError, RestoreError
from mlops_assets.backup.restore import flaws, restore, verify
from mlops_assets.backup.snapshot import snapshot
from mlops_assets.registry.ledger import Ledger
from mlops_assets.settings import Settings
from mlops_assets.store import Store
from mlops_assets.upkeep import verify as damaged
from mlops_assets_tests.backup.conftest import PASSING

Change = Callable[[dict[str, bytes]], None]


def nothing(_done: int, _total: int) -> None:
    """Nobody looks how far it is."""


def made(here: Settings, file: Path) -> Path:
    with snapshot(here, ["iris", "not-begun"]) as (staging, about), destination.writing(file) as stream:
        archive.write(stream, about, staging.files, nothing)
    return file


@pytest.fixture(scope="module")
def whole(furnished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive, which tests copy and never change."""
    folder = tmp_path_factory.mktemp("whole")
    shutil.copytree(furnished, folder / "home")
    return made(Settings(home=folder / "home"), folder / "out.tar")


def unpacked(file: Path, into: Path, **options: bool) -> tuple[About, archive.Manifest]:
    with file.open("rb") as stream:
        return restore(stream, Settings(home=into), nothing, **options)


def contents(home: Path) -> dict[str, bytes]:
    return {path.relative_to(home).as_posix(): path.read_bytes() for path in home.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["out.tar", "out.tar.zst"])
def test_everything_comes_back(here: Settings, place: Path, name: str) -> None:
    before = contents(here.home)
    about, manifest = unpacked(made(here, place / name), place / "empty")
    assert contents(here.home).keys() - before.keys() == {"locks/backup", "ledger/.not-begun.lock"}
    after = contents(place / "empty")
    files = after.keys() - {"up.lock", "serve.lock"}
    assert files == manifest.files.keys()
    assert (about.files, about.bytes) == (len(files), sum(len(after[name]) for name in files))
    assert not files & set(PASSING)
    for file in files:
        assert after[file] == before[file] or file.endswith(".db"), file
    gone = {file for file in before if not file.startswith("oxen/")} - files
    assert gone <= {*PASSING, "ledger/.iris.lock"} | {file for file in gone if file.startswith("store/")}
    home = Settings(home=place / "empty")
    assert flaws(home) == {}
    with closing(sqlite3.connect(home.home / "mlflow" / "mlflow.db")) as database:
        assert database.execute("SELECT value FROM rows").fetchall() == [("kept",)]
    assert home.repository("iris").fsck(history=True).sound
    assert home.repository("iris").commit("third", files={"iris.csv": b"x,y\n3,4\n"}), "it can be written"
    assert Ledger(home.home / "ledger", "iris").verify({"the archive": about.heads["iris"]}) == []
    assert list(damaged(Store(home.store_url))) == []


def test_times_stay_for_store_gc_goes_by_them(here: Settings, place: Path) -> None:
    unpacked(made(here, place / "out.tar"), place / "empty")
    (manifest,) = (here.home / "store" / "iris").rglob("manifest.json")
    restored = place / "empty" / manifest.relative_to(here.home)
    assert restored.stat().st_mtime == int(manifest.stat().st_mtime)


def test_an_archive_tells_what_it_is(here: Settings, place: Path) -> None:
    with made(here, place / "out.tar").open("rb") as stream:
        about, manifest = verify(stream, nothing)
    assert about.versions["mlops-assets"]
    assert about.heads == {"iris": Ledger(here.home / "ledger", "iris").head}
    assert (about.dagster, about.mlflow, about.outside) == ("sqlite", "sqlite", [])
    assert len(manifest.files) == about.files
    assert "password" not in about.model_dump_json()


def test_no_secret_and_no_default_is_told(here: Settings, place: Path) -> None:
    told = Settings(home=here.home, executor="multiprocess", webhook_secret="open sesame", store="memory://user:pw@x")
    with snapshot(told, []) as (_, about):
        assert about.settings == {"MLOPS_EXECUTOR": "multiprocess"}


def test_data_only(here: Settings, place: Path) -> None:
    unpacked(made(here, place / "out.tar"), place / "empty", data_only=True)
    tops = {name.partition("/")[0] for name in contents(place / "empty")}
    assert tops == {"oxen", "store", "up.lock", "serve.lock"}


def rewritten(file: Path, change: Change) -> Path:
    """The archive with other members, and a manifest that agrees with them where the change leaves it alone."""
    with tarfile.open(file) as tar:
        members = {one.name: tar.extractfile(one).read() for one in tar}
    change(members)
    with tarfile.open(file, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file


def flipped(members: dict[str, bytes]) -> None:
    name = next(name for name in members if name.endswith("weights.safetensors"))
    members[name] = members[name][:-1] + bytes([members[name][-1] ^ 1])


def shortened(members: dict[str, bytes]) -> None:
    members["ledger/iris.jsonl"] = members["ledger/iris.jsonl"][:-10]


def removed(members: dict[str, bytes]) -> None:
    del members["ledger/iris.jsonl"]


def added(members: dict[str, bytes]) -> None:
    members["serving/iris/other.json"] = b"{}"
    members[MANIFEST] = members.pop(MANIFEST)


def with_much_to_say(members: dict[str, bytes]) -> None:
    members[MANIFEST] += bytes(17 << 20)


def without_end(members: dict[str, bytes]) -> None:
    del members[MANIFEST]


def of_a_later_format(members: dict[str, bytes]) -> None:
    members[ABOUT] = json.dumps(json.loads(members[ABOUT]) | {"format": 2}).encode()


def of_another_time(members: dict[str, bytes]) -> None:
    members[ABOUT] = json.dumps(json.loads(members[ABOUT]) | {"made": "2020-01-01T00:00:00Z"}).encode()


def of_a_newer_mlflow(members: dict[str, bytes]) -> None:
    about = json.loads(members[ABOUT])
    members[ABOUT] = json.dumps(about | {"versions": about["versions"] | {"mlflow": "99.0"}}).encode()


def named(name: str) -> Change:
    """A member of that name, which the manifest knows."""

    def change(members: dict[str, bytes]) -> None:
        manifest = json.loads(members.pop(MANIFEST))
        members[name] = b"gotcha"
        manifest["files"][name] = {"bytes": 6, "hash": xxhash.xxh3_128_hexdigest(b"gotcha")}
        members[MANIFEST] = json.dumps(manifest).encode()

    return change


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (flipped, "weights.safetensors is not as it was written"),
        (shortened, "ledger/iris.jsonl is not as it was written"),
        (removed, "ledger/iris.jsonl is missing"),
        (added, "serving/iris/other.json was added to it"),
        (without_end, "its manifest is missing"),
        (of_another_time, "mlops-backup.json is not as it was written"),
        (of_a_later_format, "in a format that this release does not know"),
        (of_a_newer_mlflow, "was written with mlflow 99.0"),
        (lambda members: members.pop(ABOUT), "not made by `mlops backup`"),
        (named("/tmp/gotcha"), "no plain relative name"),
        (named("../gotcha"), "no plain relative name"),
        (named("store/../../gotcha"), "no plain relative name"),
        (named("store//gotcha"), "no plain relative name"),
        (named("oxen/iris/.oxen/mlops/lock"), "none of the files"),
        (named("oxen/iris/gotcha"), "none of the files"),
        (named("store/.restore/gotcha"), "none of the files"),
        (named("dagster/.backup/gotcha"), "none of the files"),
        (named("up.lock"), "none of the files"),
        (named("locks/gotcha"), "none of the files"),
        (named("mlflow/artifacts"), "none of the files"),
        (with_much_to_say, "more in it than all of its files"),
    ],
)
def test_a_changed_archive_is_refused(whole: Path, tmp_path: Path, change: Change, sentence: str) -> None:
    file = rewritten(Path(shutil.copy(whole, tmp_path / "out.tar")), change)
    with pytest.raises(RestoreError, match=sentence):
        unpacked(file, tmp_path / "empty")
    assert contents(tmp_path / "empty").keys() <= {"up.lock", "serve.lock"}
    assert not (tmp_path / "gotcha").exists()
    if change is not of_a_newer_mlflow:
        with file.open("rb") as stream, pytest.raises(RestoreError, match=sentence):
            verify(stream, nothing)


def test_whatever_a_backup_writes_belongs(here: Settings, place: Path) -> None:
    with snapshot(here, []) as (staging, _):
        assert [name for name in staging.files if not belongs(name)] == []
    assert not [name for name in PASSING if belongs(name)]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
def test_only_plain_files_are_taken(whole: Path, tmp_path: Path, kind: bytes) -> None:
    with tarfile.open(whole) as tar, tarfile.open(tmp_path / "odd.tar", "w") as odd:
        for number, one in enumerate(tar):
            if number == 2:
                info = tarfile.TarInfo("store/odd")
                info.type, info.linkname = kind, "/etc/passwd"
                odd.addfile(info)
            odd.addfile(one, tar.extractfile(one))
    with pytest.raises(ArchiveDamaged, match="no plain file"):
        unpacked(tmp_path / "odd.tar", tmp_path / "empty")
    assert contents(tmp_path / "empty").keys() <= {"up.lock", "serve.lock"}


@pytest.mark.parametrize("name", ["out.tar", "out.tar.zst", "out.tar.gz"])
def test_an_archive_that_was_cut_off_is_refused(here: Settings, place: Path, name: str) -> None:
    whole = made(here, place / name).read_bytes()
    for share in (0.0, 0.00001, 0.3, 0.6, 0.97):
        (place / "cut").write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(ArchiveDamaged):
            unpacked(place / "cut", place / "empty")
        assert contents(place / "empty").keys() <= {"up.lock", "serve.lock"}


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    for content in (b"", b"PK\x03\x04 a zip", bytes(20_000), b"\x28\xb5\x2f\xfd no zstd", b"\x1f\x8b no gzip"):
        (tmp_path / "other").write_bytes(content)
        with pytest.raises(ArchiveDamaged, match="cannot be used"):
            unpacked(tmp_path / "other", tmp_path / "empty")


def test_a_backup_that_fails_leaves_nothing(here: Settings, place: Path) -> None:
    target = place / "backups" / "out.tar"
    target.parent.mkdir()
    target.write_bytes(b"yesterday's")
    with (
        snapshot(here, []) as (staging, about),
        pytest.raises(BackupError, match="writing failed"),
        destination.writing(target) as stream,
    ):
        archive.write(stream, about, staging.files | {"gone": str(place / "gone")}, nothing)
    assert contents(target.parent) == {"out.tar": b"yesterday's"}
    assert not list(here.home.rglob(".backup"))


def test_where_a_backup_may_lie(here: Settings, place: Path) -> None:
    places = Places.of(here)
    (place / "link").symlink_to(here.home / "store")
    for inside in (here.home / "out.tar", here.home / "store" / "out.tar", place / "link" / "out.tar"):
        with pytest.raises(BackupError, match="choose a place outside"):
            destination.chosen(inside, places)
    with pytest.raises(BackupError, match="there is no folder"):
        destination.chosen(place / "nowhere" / "out.tar", places)
    assert destination.chosen(place / "out.tar", places) == place / "out.tar"
    with snapshot(here, []) as (_, about), pytest.raises(BackupError, match="has room for"):
        destination.require_room(place / "out.tar", about.model_copy(update={"bytes": 1 << 60}))


def test_old_backups_of_a_folder_are_removed(tmp_path: Path) -> None:
    folder = tmp_path / "backups"
    folder.mkdir()
    names = [f"mlops-2026-11-{day:02}T020000Z.tar.zst" for day in (1, 2, 3)]
    for name in [*names, "mine.tar"]:
        (folder / name).touch()
    assert [path.name for path in destination.rotate(folder, 2)] == names[:1]
    assert {path.name for path in folder.iterdir()} == {*names[1:], "mine.tar"}
