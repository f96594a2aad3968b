"""What a row of the dataset must look like."""

import pandera.polars as pa
import polars as pl


def schema() -> pa.DataFrameSchema:
    """One row per image, of 32 x 32 pixels; `part` is the split of the data's authors."""
    return pa.DataFrameSchema(
        {
            "key": pa.Column(pl.String),
            "label": pa.Column(pl.String),
            "part": pa.Column(pl.String, pa.Check.isin(["train", "test"])),
            "height": pa.Column(pl.Int32, pa.Check.eq(32)),
            "width": pa.Column(pl.Int32, pa.Check.eq(32)),
        }
    )
