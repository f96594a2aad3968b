"""What the model sees of a row."""

import polars as pl


def features(frame: pl.DataFrame) -> pl.DataFrame:
    """The four lengths, and the area of sepal and petal in square centimetres."""
    return frame.with_columns(
        sepal_area=pl.col("sepal_length") * pl.col("sepal_width"),
        petal_area=pl.col("petal_length") * pl.col("petal_width"),
    )
