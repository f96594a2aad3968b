"""What Dagster keeps of a table or a validation is bounded, whatever the table is."""

from collections.abc import Mapping
from typing import Any

import dagster as dg
import polars as pl
from dagster._core.definitions.metadata import normalize_metadata

from mlops_assets.assets.report import check_result, table_metadata
from mlops_assets.data.validation import Failure, Report

MOST_BYTES = 100_000


def stored(metadata: Mapping[str, Any]) -> str:
    """The metadata as they stand in Dagster's database."""
    return dg.serialize_value(dg.AssetObservation("a", metadata=normalize_metadata(metadata)))


def first_rows(frame: pl.DataFrame) -> str:
    return table_metadata(frame)["first rows"].value


def test_a_small_table_is_shown_whole() -> None:
    frame = pl.DataFrame({"a|b": [1, None], "c": ["x|y", "two\nlines"]})
    assert first_rows(frame).splitlines() == [
        "| a\\|b | c |",
        "| --- | --- |",
        "| 1 | x\\|y |",
        "| None | two lines |",
    ]


def test_a_wide_table_of_long_texts_makes_a_small_event() -> None:
    frame = pl.DataFrame({f"column_{i}_{'x' * 1000}": ["|" * 1000] * 9 for i in range(5000)})
    frame = frame.with_columns(pl.lit("y" * 1_000_000).alias("column_0_" + "x" * 1000))
    assert len(stored(table_metadata(frame))) < MOST_BYTES
    assert first_rows(frame).endswith("\n\nand 4,980 more columns")
    assert len(table_metadata(frame)["dagster/column_schema"].columns) == 200


def test_many_failures_make_a_small_event() -> None:
    long = "x" * 1_000_000
    failure = Failure("c" * 1000, long, long, 20, tuple(range(1, 21)), (long,) * 20)
    result = check_result(Report(20, (failure,) * 5000), "recipe")
    assert not result.passed
    assert len(stored(result.metadata)) < MOST_BYTES
    assert len(result.description or "") == 2000
    assert len(result.metadata["failures"].records) == 100
    assert result.metadata["failures not listed"].value == 4900
