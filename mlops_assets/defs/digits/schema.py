"""What a row of the dataset must look like."""

import pandera.polars as pa
import polars as pl


def schema() -> pa.DataFrameSchema:
    """One row per scan: its size in pixels, and its mean brightness from 0 to 255, by which blank ones are found."""
    return pa.DataFrameSchema(
        {
            "key": pa.Column(pl.String),
            "label": pa.Column(pl.String),
            "height": pa.Column(pl.Int32, pa.Check.eq(8)),
            "width": pa.Column(pl.Int32, pa.Check.eq(8)),
            "mean": pa.Column(pl.Float32, pa.Check.in_range(5, 250)),
        }
    )
