"""A small home with something of everything, made without running anything."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from mlops_assets.fingerprint import Recipe
from mlops_assets.oxen.repository import Repository
from mlops_assets.registry.ledger import Ledger
from mlops_assets.settings import Settings
from mlops_assets.store import Store
from mlops_assets_tests.oxen.conftest import MEMORY
from mlops_assets_tests.processes.conftest import project, trained

__all__ = ["project", "trained"]


@pytest.fixture(scope="session")
def furnished() -> Iterator[Path]:
    """The home, which tests copy and never change."""
    with tempfile.TemporaryDirectory(prefix="mlops-test-", dir=MEMORY) as place:
        yield _furnished(Path(place) / "home")


@pytest.fixture
def place(furnished: Path) -> Iterator[Path]:
    """A folder with a copy of that home as `home`."""
    with tempfile.TemporaryDirectory(prefix="mlops-test-", dir=MEMORY) as folder:
        shutil.copytree(furnished, Path(folder) / "home")
        yield Path(folder)


@pytest.fixture
def here(place: Path) -> Settings:
    return Settings(home=place / "home")


def _furnished(home: Path) -> Path:
    repository = Repository(home / "oxen" / "iris")
    repository.init()
    repository.commit("first", files={"iris.csv": b"x,y\n1,2\n"})
    repository.commit("second", files={"more/deep.txt": b"deep"})
    recipe = Recipe(asset="iris/model", code_version="1", inputs={"features": "f"})
    Store(str(home / "store")).put(recipe, "digest", {}, {"weights.safetensors": os.urandom(1 << 19)})
    ledger = Ledger(home / "ledger", "iris")
    for number in range(3):
        ledger.append("noticed", {"number_of_test": number})
    for name in ("dagster/history/runs.db", "dagster/history/runs/index.db", "mlflow/mlflow.db"):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(home / name)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("CREATE TABLE rows (value TEXT)")
            connection.execute("INSERT INTO rows VALUES ('kept')")
            connection.commit()
    for name, content in {
        "dagster/storage/run/compute_logs/step.lock": b"printed",
        "mlflow/artifacts/1/run/artifacts/uv.lock": b"an artifact may have any name",
        "predictions/iris/date=2026-11-21/0.parquet": b"PAR1",
        "serving/iris/current.json": b"{}",
        "of-a-later-release/file.bin": b"new",
    }.items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_bytes(content)
    for name in PASSING:
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_bytes(b"passing")
    return home


PASSING = (
    "cache/file-1/iris.csv",
    "dagster/.create.lock",
    "downloads/large.tgz",
    "logs/dagster.log",
    "mlflow/mlflow.db.lock",
    "mlflow/mlflow.db.part",
    "predictions/.aside/0.parquet",
    "runs/5e20db80",
    "scoring/iris/0",
    "serve.lock",
    "serving/iris/.1234.tmp/model.onnx",
    "up.lock",
)
