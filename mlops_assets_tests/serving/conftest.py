"""Homes in which two small versions are served, without a training: their ONNX files are written by hand."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlops_assets.tracking.runs import Tracking
from mlops_assets_tests.mlflow_fixtures import close_stores
from mlops_assets_tests.serving.made import publish_images, publish_table, register_version, table_contract
from mlops_assets_tests.serving.world import World


@pytest.fixture
def table_home(tmp_path: Path) -> Path:
    """A home with version 1 of the pipeline `flowers`: a table."""
    home = tmp_path / "home"
    publish_table(home)
    return home


@pytest.fixture
def image_home(tmp_path: Path) -> Path:
    """A home with version 1 of the pipeline `scans`: grey images of 8 x 8 pixels."""
    home = tmp_path / "home"
    publish_images(home)
    return home


@pytest.fixture(scope="session")
def two_versions(store_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with two versions, which take MLflow longer to make than files to copy."""
    folder = tmp_path_factory.mktemp("versions")
    home = Path(shutil.copytree(store_template, folder / "home"))
    tracking = Tracking.embedded(home)
    for seed in (1, 2):
        assert register_version(tracking, folder, *table_contract(seed)) == seed
    close_stores()
    return home


@pytest.fixture
def world(two_versions: Path, tmp_path: Path) -> Iterator[World]:
    home = Path(shutil.copytree(two_versions, tmp_path / "home"))
    yield World(home, Tracking.embedded(home), tmp_path)
    close_stores()
