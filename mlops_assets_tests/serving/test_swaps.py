"""The champion alias moved again and again under load, on a real server: nothing is lost, and nothing mixed."""

import os
from pathlib import Path

import pytest

from benchmarks import swaps
from benchmarks.swaps import NAME, storm
from mlops_assets_tests.mlflow_fixtures import close_stores
from mlops_assets_tests.serving.made import image_contract

MOVES = int(os.environ.get("MLOPS_TEST_MOVES", "30"))
"""`python -m benchmarks swaps` makes a thousand."""


@pytest.mark.slow
def test_moves_under_load_lose_and_mix_nothing(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swaps, "SEEN_SECONDS", 60.0)
    sources = {f"{NAME}/features.py": "def features(images):\n    return images\n"}
    versions = [image_contract(seed, pipeline=NAME, sources=sources, inputs=[]) for seed in (1, 2, 3)]
    found = storm(tmp_path, versions, MOVES)
    close_stores()
    assert (found.failed, found.wrong) == ([], [])
    assert len(found.seconds) == MOVES
    assert found.requests > MOVES, "there was load"
