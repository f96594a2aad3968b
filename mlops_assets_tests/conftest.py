"""What all tests share: nothing of the user's home or environment reaches them."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlops_assets.settings import settings
from mlops_assets_tests.mlflow_fixtures import home, store_template, tracking

__all__ = ["home", "store_template", "tracking"]


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
