import polars as pl

from mlops_assets.data.samples import iris, iris_uci


def test_iris_is_fishers() -> None:
    frame = iris()
    assert frame.shape == (150, 6)
    assert frame["id"].to_list() == list(range(1, 151))
    assert frame["species"].unique(maintain_order=True).to_list() == ["setosa", "versicolor", "virginica"]
    assert frame.row(0) == (1, 5.1, 3.5, 1.4, 0.2, "setosa")
    assert frame.filter(pl.col("id").is_in([35, 38])).select("petal_width", "sepal_width").rows() == [
        (0.2, 3.1),
        (0.1, 3.6),
    ]


def test_the_copied_file_differs_in_two_flowers() -> None:
    ours, copied = iris(), iris_uci()
    assert copied.schema == ours.schema
    changed = copied.filter(pl.any_horizontal(copied[name] != ours[name] for name in ours.columns))
    assert changed.rows() == [(35, 4.9, 3.1, 1.5, 0.1, "setosa"), (38, 4.9, 3.1, 1.5, 0.1, "setosa")]
