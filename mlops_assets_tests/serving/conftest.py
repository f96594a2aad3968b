"""Homes in which two small versions are served, without a training: their ONNX files are written by hand."""

from pathlib import Path

import pytest

from mlops_assets_tests.serving.made import publish_images, publish_table


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
