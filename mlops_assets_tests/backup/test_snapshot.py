"""What goes on while everything is held still: who waits, who does not, and what is in the archive all the same."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from filelock import FileLock

from mlops_assets.backup.contents import STAGING, Places
from mlops_assets.backup.errors import BackupError, RestoreError
from mlops_assets.backup.restore import restore
from mlops_assets.backup.snapshot import snapshot
from mlops_assets.fingerprint import Recipe
from mlops_assets.home import ensure_home
from mlops_assets.registry.ledger import Ledger
from mlops_assets.settings import Settings
from mlops_assets.store import Store
from mlops_assets.upkeep import collect
from mlops_assets_tests.backup.test_archive import contents, made, nothing, unpacked

HELD = """
import fcntl, os, sys
file = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
getattr(fcntl, sys.argv[2])(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def held(path: Path, how: str) -> Iterator[Callable[[], None]]:
    """A lock that another process has until it is told to end."""
    command = [sys.executable, "-c", HELD, str(path), how]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        assert process.stdout.readline() == b"held\n"
        yield process.stdin.close


def test_what_is_collected_meanwhile_is_in_the_archive(here: Settings, place: Path) -> None:
    store = Store(here.store_url)
    with snapshot(here, []) as (staging, about):
        assert [one.kind for one in collect(store, lambda _: False, older_than=-1, dry_run=False)] == ["entry"]
        assert not list((here.home / "store").rglob("weights.safetensors"))
        assert any(name.endswith("weights.safetensors") for name in staging.files)
        assert sum(Path(path).stat().st_size for path in staging.files.values()) == about.bytes


def test_what_is_written_meanwhile_is_not_in_the_archive(here: Settings) -> None:
    with snapshot(here, []) as (staging, _):
        before = {name: Path(path).read_bytes() for name, path in staging.files.items()}
        here.repository("iris").commit("later", files={"iris.csv": b"x,y\n9,9\n"})
        Ledger(here.home / "ledger", "iris").append("noticed", {"later": True})
        Store(here.store_url).put(Recipe("iris/model", "2", {"features": "g"}), "d", {}, {"later": b"later"})
        assert {name: Path(path).read_bytes() for name, path in staging.files.items()} == before


@pytest.mark.parametrize(("lock", "how"), [("mlops/lock", "flock"), ("refs/LOCK", "lockf")])
def test_a_writer_of_a_repository_is_waited_for(here: Settings, lock: str, how: str) -> None:
    done = threading.Event()

    def back_up() -> None:
        with snapshot(here, []):
            done.set()

    with held(here.home / "oxen" / "iris" / ".oxen" / lock, how) as release:
        thread = threading.Thread(target=back_up)
        thread.start()
        assert not done.wait(0.3)
        release()
        thread.join()
    assert done.is_set()


def test_nothing_is_locked_while_the_archive_is_written(here: Settings) -> None:
    with snapshot(here, ["iris"]), FileLock(here.home / "ledger" / ".iris.lock", timeout=0):
        for lock, take in (("mlops/lock", fcntl.flock), ("refs/LOCK", fcntl.lockf)):
            file = os.open(here.home / "oxen" / "iris" / ".oxen" / lock, os.O_RDWR)
            take(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.close(file)


def test_one_backup_at_a_time(here: Settings) -> None:
    with (
        snapshot(here, []),
        pytest.raises(BackupError, match=r"another backup of .* is under way"),
        snapshot(here, []),
    ):
        pass


def test_what_a_killed_backup_has_left_is_swept_and_never_taken(here: Settings, place: Path) -> None:
    for root in Places.of(here).roots.values():
        (root / STAGING).mkdir()
        (root / STAGING / "0").write_bytes(b"left")
    with snapshot(here, []) as (staging, _):
        assert not any(STAGING in name for name in staging.files)
        assert b"left" not in {Path(path).read_bytes() for path in staging.files.values()}
    assert not list(here.home.rglob(STAGING))


def test_links_to_other_disks_are_followed(here: Settings, place: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "large"
    (here.home / "store").rename(place / "aside")
    (elsewhere / "store").mkdir(parents=True)
    (here.home / "predictions" / "linked").symlink_to(elsewhere)
    (elsewhere / "0.parquet").write_bytes(b"far")
    here.store = str(elsewhere / "store")
    Store(here.store_url).put(Recipe("iris/model", "2", {"features": "g"}), "d", {}, {"far": b"away"})
    unpacked(made(here, place / "out.tar"), place / "empty")
    restored = contents(place / "empty")
    assert restored["predictions/linked/0.parquet"] == b"far"
    assert b"away" in restored.values()


def test_what_cannot_be_in_an_archive_is_told(here: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    far = Settings(
        home=here.home,
        store="s3://key:secret@bucket/outputs",
        artifacts="s3://mlflow",
        MLFLOW_TRACKING_URI="http://mlflow:5000",
    )
    monkeypatch.setenv("DAGSTER_HOME", "/srv/dagster")
    with snapshot(far, []) as (staging, about):
        assert about.outside == [
            "the store of outputs, at bucket/outputs",
            "MLflow's database, at http://mlflow:5000 (MLOPS_MLFLOW_DATABASE is not set)",
            "MLflow's artifacts, at s3://mlflow (MLOPS_ARTIFACTS)",
            "Dagster's home, /srv/dagster (DAGSTER_HOME)",
        ]
        assert not any(name.startswith("store/") for name in staging.files)
    monkeypatch.setenv("DAGSTER_HOME", "")
    with snapshot(Settings(home=here.home, artifacts=str(here.home / "mlflow" / "artifacts")), []) as (_, about):
        assert about.outside == [], "the volume of a server"
    with pytest.raises(RestoreError, match="MLOPS_STORE is no folder"), Path(os.devnull).open("rb") as stream:
        restore(stream, far, nothing)


def test_a_home_that_is_not_empty_is_left_alone(here: Settings, place: Path) -> None:
    file = made(here, place / "out.tar")
    before = contents(here.home)
    with pytest.raises(RestoreError, match=r"not empty .*nothing is overwritten"):
        unpacked(file, here.home)
    assert contents(here.home).keys() - before.keys() == set()
    for name in ("notes.txt", "mlflow/artifacts/1/a", "store/x", "oxen/iris/.oxen/config.toml", "ledger/a.jsonl"):
        (place / "used" / name).parent.mkdir(parents=True, exist_ok=True)
        (place / "used" / name).write_bytes(b"mine")
        with pytest.raises(RestoreError, match="not empty"):
            unpacked(file, place / "used")
        (place / "used" / name).unlink()
    (place / "used" / "dagster").mkdir()  # of somebody's own
    (place / "used" / "dagster" / "dagster.yaml").write_text("telemetry: {enabled: true}")
    with pytest.raises(RestoreError, match=r"not empty \(dagster/dagster.yaml\)"):
        unpacked(file, place / "used")


def test_a_home_that_only_commands_have_looked_at_is_empty(
    here: Settings, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", "")
    ensure_home(Settings(home=place / "looked"))
    assert (place / "looked" / "dagster" / "dagster.yaml").is_file()
    unpacked(made(here, place / "out.tar"), place / "looked")
    assert (place / "looked" / "mlflow" / "mlflow.db").is_file()


@pytest.mark.parametrize(("lock", "who"), [("up.lock", "`mlops up`"), ("serve.lock", "the model server")])
def test_a_home_in_use_is_left_alone(here: Settings, place: Path, lock: str, who: str) -> None:
    file = made(here, place / "out.tar")
    (place / "used").mkdir()
    with FileLock(place / "used" / lock), pytest.raises(RestoreError, match=f"{who} runs with .*stop it"):
        unpacked(file, place / "used")


@pytest.mark.parametrize(
    "more", [{"dagster_database": "postgresql://a:pw@h/d"}, {"MLFLOW_TRACKING_URI": "http://m:5000"}]
)
def test_databases_of_another_kind_are_refused(here: Settings, place: Path, more: dict[str, str]) -> None:
    file = made(here, place / "out.tar")
    with file.open("rb") as stream, pytest.raises(RestoreError, match=r"for SQLite.*`--data-only`") as refused:
        restore(stream, Settings(home=place / "empty", **more), nothing)
    assert "pw" not in str(refused.value)
    assert contents(place / "empty").keys() <= {"up.lock", "serve.lock"}


def test_a_restore_without_room_is_refused(here: Settings, place: Path) -> None:
    from mlops_assets_tests.faults import small_disk

    file = made(here, place / "out.tar")
    with small_disk(place / "small", "nr_inodes=5000") as small:
        (small / "filler").write_bytes(bytes((2 << 20) - 200_000))
        with pytest.raises(RestoreError, match="not empty"):
            unpacked(file, small)
        (small / "filler").rename(small / "up.lock")
        with pytest.raises(RestoreError, match=r"has room for .* are needed"):
            unpacked(file, small)
