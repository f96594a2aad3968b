"""Predictions on a test set, kept by (model digest, test-set digest).

The champion is therefore no input of the evaluation: whoever wants its predictions on today's test rows finds them, or
makes them once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mlops_assets import versions
from mlops_assets.data.arrays import Arrays
from mlops_assets.data.readers import from_parquet_bytes, table_digest, to_parquet_bytes
from mlops_assets.fingerprint import Recipe, digest
from mlops_assets.store import Entry, Store

ONNX: Final = "model.onnx"
FILE: Final = "predictions.parquet"


def predict_stored(store: Store, pipeline: str, model: Entry, test: Arrays, classes: Sequence[str]) -> Entry:
    """A model's predictions on a test set, from the store or made now.

    Args:
        store: Where they are kept.
        pipeline: The pipeline's name.
        model: A stored model: its ONNX file, and `features` and `classes` in its info.
        test: The rows; their features must be the model's.
        classes: Names of the labels' indices; the model's own may be others.

    Returns:
        An entry whose table has the columns key, label, predicted, and one probability per class of the model.
    """
    inputs = {"model": model.digest, "test": test.digest, "classes": digest(list(classes))}
    recipe = Recipe(f"{pipeline}/predictions", versions.PREDICT, inputs)
    with store.making(recipe):
        found = store.find(recipe.asset, recipe.key)
        if found:
            return found
        from mlops_assets.training.predict import predict

        probabilities = predict(model.read(ONNX), test.x)
        own = list(model.info["classes"])
        frame = pl.DataFrame(
            {
                "key": test.keys,
                "label": np.asarray(classes)[test.y],
                "predicted": np.asarray(own)[probabilities.argmax(axis=1)],
                **{f"p{index}": probabilities[:, index] for index in range(len(own))},
            },
            schema_overrides={"key": pl.String, "label": pl.String, "predicted": pl.String},
        )
        data = to_parquet_bytes(frame)
        return store.put(recipe, table_digest(data), {"classes": own, "rows": frame.height}, {FILE: data})


def probabilities(entry: Entry) -> NDArray[np.float64]:
    """The probabilities of stored predictions, shape (rows, classes)."""
    frame = from_parquet_bytes(entry.read(FILE))
    return frame.select(pl.selectors.matches(r"^p\d+$")).to_numpy().astype(np.float64)
