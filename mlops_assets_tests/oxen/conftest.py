from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlops_assets.oxen.repository import Repository

TABLE = b"x,y,label\n1,2.5,a\n3,4.5,b\n"


# Oxen syncs every file it writes, which on a busy disk takes longer than all the rest of these tests.
MEMORY = Path("/dev/shm") if Path("/dev/shm").is_dir() else None


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="mlops-test-", dir=MEMORY) as path:
        yield Path(path)


@pytest.fixture(scope="session")
def template() -> Iterator[Path]:
    """A repository of two commits on main and one more on dev; read, refused to, and copied, but never changed."""
    with tempfile.TemporaryDirectory(prefix="mlops-test-", dir=MEMORY) as place:
        yield _seeded(Path(place) / "repo")


def _seeded(path: Path) -> Path:
    repo = Repository(path)
    repo.init()
    repo.commit("first", files={"table.csv": TABLE, "data/x.bin": b"x1", "data/deep/y.txt": b"y"})
    repo.commit("second", files={"data/x.bin": b"x2", "extra.txt": b"more"}, author="Ada", email="ada@example.org")
    repo.create_branch("dev")
    repo.commit("on dev", files={"dev.txt": b"d"}, branch="dev")
    return path


@pytest.fixture
def repo(template: Path, tmp_path: Path) -> Repository:
    path = tmp_path / "repo"
    shutil.copytree(template, path)
    return Repository(path, timeout=60)


@pytest.fixture
def head(repo: Repository) -> str:
    return repo.resolve("main")


def contents(repo: Repository, commit: str, cache: Path) -> dict[str, bytes]:
    """Every file of a commit, through a verified copy."""
    root = repo.materialize("", commit, cache)
    return {str(item.relative_to(root)): item.read_bytes() for item in root.rglob("*") if item.is_file()}
