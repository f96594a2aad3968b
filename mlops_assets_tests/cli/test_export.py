"""`mlops export`: which rows judge a lighter model, and the command over a real champion."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from mlops_assets.assets.content import content
from mlops_assets.cli.export import _lighter
from mlops_assets.deploy.quantize import QuantizationRefused
from mlops_assets.fingerprint import Recipe
from mlops_assets.home import ensure_home
from mlops_assets.pipeline import find_pipeline
from mlops_assets.serving.slot import Slot
from mlops_assets.settings import Settings, settings
from mlops_assets.store import EntryMissing, Store
from mlops_assets_tests.cli.conftest import Mlops
from mlops_assets_tests.loop import Loop
from mlops_assets_tests.serving.made import loaded, publish_images

DIGITS = find_pipeline("digits")


def keep_features(here: Settings, slot: Slot, validation: int) -> None:
    """Give the store a model and the features it was made from, labelled as the model answers."""
    rows = 300 + validation
    pixels = np.random.default_rng(5).integers(0, 256, (rows, 8, 8, 1), dtype=np.uint8)
    split = ["train"] * 300 + ["validation"] * validation
    labels = slot.answer(pixels).labels
    keys = [str(row) for row in range(rows)]
    made = content(pl.DataFrame({"key": keys, "label": labels, "split": split}), pixels, {})
    store = Store(here.store_url)
    store.put(Recipe("scans/features", "1", {"dataset": "1"}), made.digest, made.info, made.files)
    inputs = {"features": made.digest, "environment": "1", "tick": ""}
    store.put(Recipe("scans/model", "1", inputs), slot.model_digest, {}, {})


@pytest.fixture
def here() -> Settings:
    return ensure_home(settings())


@pytest.fixture
def slot(here: Settings) -> Slot:
    return loaded(here.home, publish_images(here.home))


def test_training_rows_calibrate_and_validation_rows_judge(here: Settings, slot: Slot) -> None:
    keep_features(here, slot, validation=400)
    model = (slot.folder / "model.onnx").read_bytes()
    made, told = _lighter(here, DIGITS, slot, model, "n - o > -0.05")
    assert made != model
    assert told.before == len(model)
    assert told.latency_ratio > 0
    assert "n - o > -0.05 holds" in told.reason
    assert "400 paired rows" in told.reason
    with pytest.raises(QuantizationRefused, match=r"1\.0000 before quantisation on 400 validation rows"):
        _lighter(here, DIGITS, slot, model, "n - o > 0")


def test_features_that_are_gone_are_asked_for(here: Settings, slot: Slot) -> None:
    with pytest.raises(EntryMissing, match="no features of version 1 of scans to calibrate and judge int8 by"):
        _lighter(here, DIGITS, slot, b"", "")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--condition", "n > 0"), "it goes with --target int8"),
        (("--target", "int8", "--runtime", "x"), "it goes with --target browser"),
        ((), "with a first champion"),
    ],
)
def test_what_cannot_be_exported_is_one_sentence(
    mlops: Mlops, tmp_path: Path, options: tuple[str, ...], reason: str
) -> None:
    ended = mlops("export", "digits", "--out", tmp_path / "bundle", *options)
    assert ended.code == 1
    assert ended.out == ""
    assert reason in ended.err
    assert not (tmp_path / "bundle").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:(Parameter|Function) `(execution_type|observable_source_asset):dagster.BetaWarning")
@pytest.mark.filterwarnings("ignore:Property `OpDefinition.version`:DeprecationWarning")  # Dagster's own use of it
def test_a_champion_becomes_bundles(digits: Loop, mlops: Mlops, tmp_path: Path) -> None:
    digits.edit("defs.yaml", "epochs: 3", "epochs: 12")
    digits.settle()
    plain = tmp_path / "plain"
    ended = mlops("export", "digits", "--out", plain)
    assert (ended.code, ended.err) == (0, "")
    done = subprocess.run(
        [sys.executable, "predict.py", "sample.npy", "--json"], cwd=plain, capture_output=True, text=True, check=True
    )
    assert {json.loads(line)["label"] for line in done.stdout.splitlines()} <= set("0123456789")

    ended = mlops("export", "digits", "--target", "int8", "--out", plain)
    assert (ended.code, "--force replaces the bundle" in ended.err) == (1, True)
    ended = mlops("export", "digits", "--target", "int8", "--out", plain, "--force")
    assert (ended.code, "178 validation rows" in ended.err) == (1, True)
    assert (plain / "sample.npy").is_file()
    ended = mlops("export", "digits", "--target", "int8", "--out", plain, "--force", "--condition", "n - o > -0.08")
    assert (ended.code, ended.err) == (0, "")
    assert "n - o > -0.08 holds" in ended.out
    assert "Quantised: static" in (plain / "README.md").read_text()
