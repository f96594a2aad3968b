from pathlib import Path

import polars as pl
import pytest

from mlops_assets.data import samples
from mlops_assets_tests.cli.conftest import Mlops
from mlops_assets_tests.loop import Loop


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    file = tmp_path / "mine.parquet"
    samples.iris().drop("species").write_parquet(file)
    return file


def test_what_would_be_ignored_is_refused(mlops: Mlops, mine: Path) -> None:
    for options, sentence in {
        ("--out", "o.parquet"): "--out takes the predictions of FILE, which is not given",
        (mine, "--sample", "3"): "--sample is about sample rows",
        (mine, "--local"): "--local is about sample rows",
        (mine, "--out", "nodir/o.parquet"): "nodir/o.parquet cannot be written, as nodir is no directory",
    }.items():
        refused = mlops("predict", "iris", *options)
        assert refused.code == 1
        assert refused.err.startswith(f"error: {sentence}")
        assert refused.err.count("\n") == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:(Parameter|Function) `(execution_type|observable_source_asset):dagster.BetaWarning")
@pytest.mark.filterwarnings("ignore:Property `OpDefinition.version`:DeprecationWarning")
def test_the_predictions_of_a_file_replace_no_file(settled: Loop, mlops: Mlops, mine: Path) -> None:
    before, other, target = mine.read_bytes(), mine.with_name("other.txt"), mine.with_name("scored.parquet")
    other.write_text("theirs")
    link = mine.with_name("link.parquet")
    link.symlink_to(mine)

    for path in (mine, link, mine.parent / "." / mine.name):
        refused = mlops("predict", "iris", mine, "--out", path)
        assert (refused.code, refused.err) == (1, f"error: {path} is the file to score; name a new file by --out\n")
    refused = mlops("predict", "iris", mine, "--out", other)
    assert (refused.code, refused.err) == (1, f"error: {other} exists already; name a new file by --out\n")

    assert mlops("predict", "iris", mine, "--out", target).code == 0
    assert (mine.read_bytes(), other.read_text()) == (before, "theirs")
    assert pl.read_parquet(target).height == 150
