"""What all tests share: nothing of the user's home or environment reaches them."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mlops_assets.settings import settings
from mlops_assets_tests.mlflow_fixtures import close_stores, home, store_template, tracking

if TYPE_CHECKING:
    from mlops_assets_tests.loop import Loop

__all__ = ["home", "store_template", "tracking"]

# A shell that starts the tests in the background has Ctrl-C ignored, and every child would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give each test a home of its own, and hide variables that a developer may have set."""
    for name in [name for name in os.environ if name.startswith(("MLOPS_", "DAGSTER_", "MLFLOW_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLOPS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DAGSTER_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    settings.cache_clear()
    yield
    settings.cache_clear()


@pytest.fixture
def loop(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator["Loop"]:
    """The iris pipeline in a folder of its own, driven in this process."""
    from mlops_assets.home import ensure_home
    from mlops_assets_tests.loop import looping

    monkeypatch.setenv("DAGSTER_HOME", str(home / "dagster"))
    with looping(ensure_home(settings()), tmp_path / "defs" / "iris") as made:
        yield made
    close_stores()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that mostly wait for servers: at the end they would be alone."""
    items.sort(key=lambda item: "/processes/" not in item.nodeid)
