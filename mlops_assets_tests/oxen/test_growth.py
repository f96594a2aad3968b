"""What a repository takes on disk, and removing what nobody needs: all of it, and nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mlops_assets.oxen import child
from mlops_assets.oxen.errors import RepositoryBusy, StoreCorrupt
from mlops_assets.oxen.growth import Size
from mlops_assets.oxen.repository import DAY, Repository
from mlops_assets_tests.oxen.conftest import TABLE, contents

ROOT = Path(__file__).parents[2]


def age(repo: Repository, seconds: float = 2 * DAY) -> None:
    """Make all that is stored older."""
    then = time.time() - seconds
    for directory, _, files in os.walk(repo.path / ".oxen"):
        for name in [*files, "."]:
            os.utime(Path(directory, name), (then, then))


def write(file: Path, content: bytes) -> Path:
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    return file


@pytest.fixture
def lost(repo: Repository) -> str:
    """A commit of a branch that was deleted by force, with a content and a directory of its own."""
    repo.create_branch("gone")
    made = repo.commit("lost", files={"lost.bin": b"l" * 100, "again.txt": b"more"}, branch="gone")
    assert made is not None
    repo.delete_branch("gone", force=True)
    return made.id


@pytest.fixture
def leftovers(repo: Repository) -> list[Path]:
    """What killed writers leave, as seen in a storm of kills."""
    files = repo.path / ".oxen" / "versions" / "files"
    beside = next(files.glob("*/*/data")).with_name("data.oxentmp.AbC123")
    beside.write_bytes(b"half")
    return [
        beside,
        write(files / "ab" / "cdef" / "data.oxentmp.XyZ789", b""),
        write(repo.path / ".oxen" / "mlops" / "work" / "0123" / "tree" / "file", b"12345"),
    ]


def test_growth_counts_everything(repo: Repository, lost: str, leftovers: list[Path]) -> None:
    found = repo.growth()
    store = repo.path / ".oxen"
    needed = [TABLE, b"x1", b"x2", b"y", b"more", b"d"]
    assert found.commits == 3
    assert found.versions == Size(len(needed) + 1 + 2, sum(map(len, needed)) + 100 + 4)
    assert found.unreferenced == (1, 100)
    assert found.leftovers == (2, 4)
    assert found.work == (1, 5)
    for name, size in (("tree", found.tree), ("history", found.history)):
        files = [item for item in (store / name).rglob("*") if item.is_file()]
        assert size == (len(files), sum(item.stat().st_size for item in files))
    assert found.bytes == found.versions.bytes + found.tree.bytes + found.history.bytes + found.work.bytes
    assert found.bytes_per_commit == found.bytes / 3


def test_an_empty_repository_has_not_grown(tmp_path: Path) -> None:
    repo = Repository(tmp_path / "repo")
    repo.init()
    assert repo.growth().versions == (0, 0)
    assert repo.growth().bytes_per_commit == 0
    assert [*repo.cleanup(0)] == [(0, 0)] * 4


def test_cleanup_removes_what_is_old_and_not_needed(
    repo: Repository, lost: str, leftovers: list[Path], tmp_path: Path
) -> None:
    before = {name: contents(repo, head, tmp_path / name) for name, head in repo.heads().items()}
    age(repo)
    done = repo.cleanup()
    assert (done.worktrees, done.leftovers, done.contents) == ((1, 5), (2, 4), (1, 100))
    assert done.commits.files == 1
    assert not (repo.path / ".oxen" / "history" / lost).exists()
    assert not [item for item in leftovers if item.exists()]
    assert not (repo.path / ".oxen" / "versions" / "files" / "ab" / "cdef").exists()
    found = repo.growth()
    assert (found.unreferenced, found.leftovers, found.work) == ((0, 0), (0, 0), (0, 0))
    assert repo.fsck(history=True).sound
    assert {name: contents(repo, head, tmp_path / f"{name}2") for name, head in repo.heads().items()} == before
    assert [*repo.cleanup()] == [(0, 0)] * 4
    assert repo.commit("next", files={"a": b"1"}) is not None


def test_cleanup_leaves_what_is_young(repo: Repository, lost: str, leftovers: list[Path]) -> None:
    done = repo.cleanup()
    assert (done.leftovers, done.contents, done.commits) == ((0, 0), (0, 0), (0, 0))
    assert [item.exists() for item in leftovers] == [True, True, False]  # a worktree is nobody's once the lock is had
    assert repo.growth().unreferenced == (1, 100)
    assert repo.cleanup(0).contents == (1, 100)


def test_cleanup_keeps_what_a_foreign_program_has_staged(repo: Repository, lost: str) -> None:
    """It is in no commit yet."""
    (repo.path / ".oxen" / "staged").mkdir()
    assert repo.cleanup(0).contents == (0, 0)
    (repo.path / ".oxen" / "staged").rmdir()
    assert repo.cleanup(0).contents == (1, 100)


def test_cleanup_waits_for_a_foreign_program(repo: Repository, lost: str, monkeypatch: pytest.MonkeyPatch) -> None:
    script = f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
from mlops_assets.oxen.work import extension
repo = extension({{"extension": {child.extension_file()!r}}}).PyRepo({str(repo.path)!r})
repo.list_branches(); print("ready", flush=True); sys.stdin.read()
"""
    monkeypatch.setattr(child, "_FOREIGN_LOCK_SECONDS", 0.2)
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as foreign:
        assert foreign.stdout is not None
        assert foreign.stdout.readline() == b"ready\n"
        with pytest.raises(RepositoryBusy, match="end it"):
            repo.cleanup(0)
        assert repo.growth().unreferenced == (1, 100)
        assert foreign.stdin is not None
        foreign.stdin.close()


def test_cleanup_without_branches_keeps_the_contents(repo: Repository, tmp_path: Path) -> None:
    """The loss of all branches must not become the loss of all contents."""
    other = Repository(tmp_path / "other")
    other.init()
    other.heads()
    (repo.path / ".oxen" / "refs" / "CURRENT").unlink()
    with pytest.raises(StoreCorrupt, match="no branches"):
        repo.cleanup(0)
    shutil.rmtree(repo.path / ".oxen" / "refs")
    shutil.rmtree(repo.path / ".oxen" / "history")
    before = repo.path / ".oxen" / "versions"
    count = len(list(before.rglob("data")))
    assert repo.cleanup(0).contents == (0, 0)
    assert len(list(before.rglob("data"))) == count


def test_cleanup_of_a_damaged_tree_removes_no_content(repo: Repository, lost: str) -> None:
    file = repo.path / ".oxen/tree/nodes_lmdb/data.mdb"
    whole = file.read_bytes()
    file.write_bytes(whole[:8192] + bytes(len(whole) - 8192))
    for attempt in (lambda: repo.cleanup(0), repo.growth):
        with pytest.raises(StoreCorrupt, match="backup"):
            attempt()
    file.write_bytes(whole)
    assert repo.growth().unreferenced == (1, 100)


COMMITTER = """
import sys
from pathlib import Path
from mlops_assets.oxen.repository import Repository
repo, least, most, until = Repository(Path(sys.argv[1])), int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
for n in range(most):
    if n >= least and until.exists():
        break
    # what a deleted branch had is without a commit, and is committed again three rounds later
    repo.create_branch(f"side-{n}", "dev")
    files = {f"side/{k}": b"side %d %d %d" % (n // 6, n % 3, k) for k in range(12)}
    repo.commit("side", files=files, branch=f"side-{n}")
    if n % 2:
        assert repo.merge(f"side-{n}", "dev")
    repo.delete_branch(f"side-{n}", force=True)
    assert repo.commit("take", files={"round": b"%d" % n}, remove=["side"] if n % 2 else [], branch="dev")
    rounds = n + 1
print("rounds", rounds)
"""


@pytest.mark.slow
def test_cleanup_beside_a_writer_takes_nothing_from_it(repo: Repository, tmp_path: Path) -> None:
    """The writer adds contents that were without a commit a moment ago, as the clean-up looks for those.

    It goes on until a clean-up has found some.
    """
    found = tmp_path / "found"
    command = [sys.executable, "-c", COMMITTER, str(repo.path), "10", "300", str(found)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as writer:
        removed = 0
        while writer.poll() is None:
            removed += repo.cleanup(0).contents.files
            if removed:
                found.touch()
        assert writer.stdout is not None
        rounds = int(writer.stdout.read().split()[-1])
    assert removed > 0
    assert repo.fsck(history=True).sound
    assert len(repo.log("dev")) == 3 + rounds + rounds // 2
