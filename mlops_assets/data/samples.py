"""Data that ships inside a dependency, for examples and tests.

Belongs here: Fisher's iris. Does not belong here: anything that needs the network, or a user's own data.
"""

from __future__ import annotations

import polars as pl


def iris() -> pl.DataFrame:
    """Fisher's iris as printed in 1936: `id` 1 to 150, four lengths in cm, `species` as text.

    Source: R. A. Fisher, "The use of multiple measurements in taxonomic problems", Annals of Eugenics 7 (1936), as
    scikit-learn ships it.
    """
    from sklearn.datasets import load_iris

    data = load_iris()
    names = ("sepal_length", "sepal_width", "petal_length", "petal_width")
    return pl.DataFrame(
        {
            "id": range(1, 151),
            **{name: data.data[:, place] for place, name in enumerate(names)},
            "species": data.target_names[data.target].tolist(),
        },
        schema_overrides={"id": pl.Int64},
    )


def iris_uci() -> pl.DataFrame:
    """The widely copied iris file of the UCI repository, which differs from Fisher's paper in flowers 35 and 38.

    Source: J. C. Bezdek et al., "Will the real iris data please stand up?", IEEE Transactions on Fuzzy Systems 7
    (1999).
    """
    copied = pl.DataFrame(
        {
            "id": [35, 38],
            "sepal_length": [4.9, 4.9],
            "sepal_width": [3.1, 3.1],
            "petal_length": [1.5, 1.5],
            "petal_width": [0.1, 0.1],
        }
    )
    return iris().update(copied, on="id")
