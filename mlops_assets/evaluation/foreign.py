"""Predictions of a model that somebody registered in MLflow by other means than this platform.

Belongs here: running it as MLflow's own `pyfunc` on the test rows, and refusing answers that cannot be judged. Not
here: when it is judged, and what for. Loading such a model runs the code that came with it, as everywhere in MLflow.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from mlops_assets.data.readers import table_digest, to_parquet_bytes
from mlops_assets.errors import MlopsError
from mlops_assets.evaluation.predictions import FILE
from mlops_assets.fingerprint import Recipe, digest

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mlops_assets.data.arrays import Arrays
    from mlops_assets.registry.aliases import Version
    from mlops_assets.store import Entry, Store
    from mlops_assets.tracking.runs import Tracking


class ForeignModelError(MlopsError):
    """A model that cannot be run on the pipeline's test rows."""


def predict_foreign(store: Store, tracking: Tracking, version: Version, test: Arrays, classes: Sequence[str]) -> Entry:
    """A registered version's predictions on a test set, from the store or made now.

    Args:
        store: Where they are kept, under the model's name, which is the pipeline's.
        tracking: Where the version is registered.
        version: The version; its `pyfunc` takes the feature table (pandas, columns by name) or the images, and returns
            one class name, or one probability or other score per class for each row, in the order of `classes`; only
            probabilities are kept.
        test: The rows.
        classes: The classes.

    Returns:
        An entry like that of `predictions.predict_stored`; without probabilities where the model gives none.

    Raises:
        ForeignModelError: It does not load or run here, or returns something else.
    """
    inputs = {"version": f"{version.uri} {version.run_id}", "test": test.digest, "classes": digest(list(classes))}
    recipe = Recipe(f"{version.name}/predictions", "foreign-1", inputs)
    with store.making(recipe):
        found = store.find(recipe.asset, recipe.key)
        if found:
            return found
        answers = _answers(tracking, version, test)
        columns = {"key": test.keys, "label": np.asarray(classes)[test.y], **_columns(version, answers, classes)}
        frame = pl.DataFrame(columns, schema_overrides=dict.fromkeys(("key", "label", "predicted"), pl.String))
        data = to_parquet_bytes(frame)
        return store.put(recipe, table_digest(data), {"classes": list(classes), "rows": frame.height}, {FILE: data})


def files_digest(tracking: Tracking, version: Version) -> str:
    """Content hash of a version's files, without MLflow's own description of them, which differs at every logging.

    Raises:
        ForeignModelError: They cannot be read.
    """
    from mlflow.artifacts import download_artifacts

    try:
        with TemporaryDirectory() as folder:
            source = tracking.client.get_model_version_download_uri(version.name, str(version.number))
            local = Path(download_artifacts(artifact_uri=source, dst_path=folder, tracking_uri=tracking.uri))
            files = sorted(path for path in local.rglob("*") if path.is_file() and path.name != "MLmodel")
            return digest(
                [[path.relative_to(local).as_posix(), hashlib.sha256(path.read_bytes()).hexdigest()] for path in files]
            )
    except Exception as error:  # MLflow's stores raise whatever their libraries do
        raise ForeignModelError(
            f"the files of version {version.number} of {version.name} cannot be read ({_first_line(error)}); register "
            "it again"
        ) from error


def _answers(tracking: Tracking, version: Version, test: Arrays) -> NDArray[Any]:
    from mlflow.artifacts import download_artifacts
    from mlflow.pyfunc import load_model

    rows = pl.DataFrame(test.x, schema=test.features).to_pandas() if test.features else test.x
    try:
        with TemporaryDirectory() as folder:
            source = tracking.client.get_model_version_download_uri(version.name, str(version.number))
            local = download_artifacts(artifact_uri=source, dst_path=folder, tracking_uri=tracking.uri)
            return np.asarray(load_model(local).predict(rows))
    except Exception as error:  # whatever its code raises, or MLflow of its files, it is the model that does not fit
        raise ForeignModelError(
            f"version {version.number} of {version.name} does not run on the test rows ({_first_line(error)}); "
            "register a model that takes the pipeline's features"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _columns(version: Version, answers: NDArray[Any], classes: Sequence[str]) -> dict[str, NDArray[Any]]:
    if answers.ndim == 2 and answers.shape[1] == len(classes) and np.issubdtype(answers.dtype, np.number):
        scores = answers.astype(np.float64)
        if np.isfinite(scores).all():
            shares = (scores >= 0).all() and np.allclose(scores.sum(axis=1), 1, atol=1e-2)
            named = {f"p{index}": scores[:, index] for index in range(len(classes)) if shares}
            return {"predicted": np.asarray(classes)[scores.argmax(axis=1)], **named}
    names = answers.reshape(-1).astype(str)
    if len(names) == len(answers) and set(names) <= set(classes):
        return {"predicted": names}
    raise ForeignModelError(
        f"version {version.number} of {version.name} answers with shape {answers.shape}, and not with one of the "
        f"classes ({', '.join(classes)}) or their {len(classes)} scores for each row; register a model that does"
    )
