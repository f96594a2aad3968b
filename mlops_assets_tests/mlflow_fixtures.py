"""Real MLflow stores for tests, which `conftest.py` gives to all of them.

Creating a database runs some sixty migrations (2 s), so one is made per session and copied.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlops_assets.tracking.runs import Tracking
from mlops_assets.tracking.store import ensure_store, sqlalchemy_store


@pytest.fixture(scope="session")
def store_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("store")
    ensure_store(home)
    return home


@pytest.fixture
def home(store_template: Path, tmp_path: Path) -> Path:
    """A platform home whose embedded store is ready."""
    return Path(shutil.copytree(store_template, tmp_path / "home"))


@pytest.fixture
def tracking(home: Path) -> Iterator[Tracking]:
    tracking = Tracking.embedded(home)
    yield tracking
    close_stores()


def close_stores() -> None:
    """MLflow keeps the engines of its stores for the life of the process; a test's are closed with the test."""
    engines = sqlalchemy_store()._engine_map
    for uri in list(engines):
        engines.pop(uri).dispose()
