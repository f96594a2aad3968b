"""What a row of the dataset must look like."""

import pandera.polars as pa
import polars as pl


def schema() -> pa.DataFrameSchema:
    """The columns of `iris.csv`; lengths are in centimetres."""
    plausible = pa.Check.in_range(0, 15, include_min=False)
    return pa.DataFrameSchema(
        {
            "id": pa.Column(pl.Int64, pa.Check.ge(1)),
            "sepal_length": pa.Column(pl.Float64, plausible),
            "sepal_width": pa.Column(pl.Float64, plausible),
            "petal_length": pa.Column(pl.Float64, plausible),
            "petal_width": pa.Column(pl.Float64, plausible),
            "species": pa.Column(pl.String),
        }
    )
