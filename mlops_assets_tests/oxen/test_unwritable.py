"""A full disk and a store without the right to write: a named error, nothing lost, and it goes on afterwards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mlops_assets.oxen.errors import NotWritable, OxenError
from mlops_assets.oxen.repository import Repository
from mlops_assets_tests.oxen.conftest import contents

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]

# Tries everything that writes, and everything that only reads; prints what came of each.
ATTEMPTS = """
import json, resource, sys
from pathlib import Path
from mlops_assets.errors import MlopsError
from mlops_assets.oxen.repository import Repository
repo, limit, cache = Repository(Path(sys.argv[1])), int(sys.argv[2]), Path(sys.argv[3])
head = repo.resolve("main")
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
writing = {
    "commit": lambda: repo.commit("no", files={"new/deep/a": b"1" * 30_000, "table.csv": b"x"}),
    "remove": lambda: repo.commit("no", remove=["data"]),
    "merge": lambda: repo.merge("dev", "side"),
    "branch": lambda: repo.create_branch("new"),
    "delete": lambda: repo.delete_branch("side", force=True),
    "cleanup": lambda: repo.cleanup(0),
}
reading = {
    "heads": Repository(repo.path).heads,
    "log": repo.log,
    "copy": lambda: repo.materialize("", head, cache),
    "fsck": lambda: repo.fsck(history=True).sound or 1 / 0,
    "growth": repo.growth,
}
found = {}
for name, attempt in (reading if sys.argv[4:] else writing).items():
    try:
        attempt()
        found[name] = ["done", ""]
    except MlopsError as error:
        found[name] = [type(error).__name__, str(error)]
print(json.dumps(found))
"""


def attempts(
    repo: Repository, *, limit: int = 0, cache: Path = Path("unused"), read: bool = False
) -> dict[str, list[str]]:
    done = subprocess.run(
        [sys.executable, "-c", ATTEMPTS, str(repo.path), str(limit), str(cache), *(["read"] if read else [])],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, list[str]] = json.loads(done.stdout)
    return found


@pytest.fixture
def sided(repo: Repository) -> Repository:
    """With a branch that a merge of dev would have to join."""
    repo.create_branch("side", repo.log()[-1].id)
    repo.commit("on side", files={"side.txt": b"s"}, branch="side")
    return repo


def _intact(repo: Repository, before: dict[str, str], place: Path) -> None:
    assert repo.heads() == before
    assert repo.fsck(history=True).sound
    assert repo.commit("goes on", files={"new/deep/a": b"1" * 30_000}, remove=["data"]) is not None
    assert repo.merge("dev", "side") is not None
    assert contents(repo, repo.resolve("side"), place)["dev.txt"] == b"d"
    repo.cleanup(0)
    assert repo.fsck(history=True).sound


@pytest.mark.parametrize("limit", [1, 200, 5000])
def test_no_room_for_what_is_written(sided: Repository, tmp_path: Path, limit: int) -> None:
    """A limit to the size of a file is met by Python, Rust, RocksDB and LMDB alike, as a full disk is."""
    before = sided.heads()
    found = attempts(sided, limit=limit)
    assert {kind for name, (kind, _) in found.items() if name not in {"delete", "cleanup"}} == {"NotWritable"}, found
    for kind, text in found.values():
        assert kind in {"NotWritable", "done"}
        assert kind == "done" or ("File too large" in text and "free space" in text and "\n" not in text)
    assert sided.fsck(history=True).sound
    if "side" not in sided.heads():
        sided.create_branch("side", before["side"])
    _intact(sided, before, tmp_path / "cache")


@pytest.mark.parametrize("free", [0, 20_000, 60_000, 120_000, 250_000])
def test_a_full_disk(template: Path, tmp_path: Path, free: int) -> None:
    with _small_disk(tmp_path / "disk") as disk:
        subprocess.run(["cp", "-r", str(template), str(disk / "repo")], check=True)
        repo = Repository(disk / "repo")
        repo.create_branch("side", repo.log()[-1].id)
        repo.commit("on side", files={"side.txt": b"s"}, branch="side")
        before = repo.heads()
        status = os.statvfs(disk)
        (disk / "filler").write_bytes(b"\0" * max(status.f_bavail * status.f_frsize - free, 0))
        with pytest.raises(NotWritable, match="No space left on device"):
            repo.commit("no", files={"new/deep/a": b"1" * 300_000})
        assert repo.fsck(history=True).sound
        (disk / "filler").unlink()
        _intact(repo, before, tmp_path / "cache")


@contextmanager
def _small_disk(place: Path) -> Iterator[Path]:
    """A file system of 8 MB in memory."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a file system")
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_store_that_may_only_be_read(sided: Repository, tmp_path: Path) -> None:
    before = sided.heads()
    with _read_only(sided.path):
        written = attempts(sided)
        read = attempts(sided, cache=tmp_path / "copies", read=True)
    assert {kind for kind, _ in written.values()} == {"NotWritable"}, written
    for _, text in written.values():
        assert "Permission denied" in text or "Read-only file system" in text
        assert "mend the rights" in text
    assert {kind for kind, _ in read.values()} == {"done"}, read
    _intact(sided, before, tmp_path / "cache")


@contextmanager
def _read_only(place: Path) -> Iterator[None]:
    """By rights, which do not stop root, or as a mount, which only root can make."""
    if os.geteuid() != 0:
        subprocess.run(["chmod", "-R", "a-w", str(place)], check=True)
        yield
        subprocess.run(["chmod", "-R", "u+w", str(place)], check=True)
        return
    for options in (["--bind", str(place)], ["-o", "remount,ro,bind"]):
        mounted = subprocess.run(["mount", *options, str(place)], capture_output=True, check=False)
        if mounted.returncode:
            pytest.skip(f"nothing can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_no_room_to_look_at_the_branches(repo: Repository, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Their database is copied to be read."""
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "file"))
    with pytest.raises(OxenError, match="set TMPDIR elsewhere"):
        Repository(repo.path).heads()
