"""A PyTorch module as an MLflow logged model, in the `pt2` format (torch.export), which needs no pickle to load.

Belongs here: how the files are made and which process loads them later. Not here: the run (`runs.py`), the registry.

These are the steps of `mlflow.pytorch.log_model`, taken through the client: the function itself works on MLflow's
process-wide tracking URI and experiment. Two more reasons are time: given requirements cost nothing where inferring
them takes 7 to 10 s, and the sample is not sent through the saved model once more.
"""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from mlops_assets.tracking.store import TrackingError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from mlflow import MlflowClient
    from mlflow.models import Model

REQUIRED: Final = ("mlflow", "torch", "numpy")
"""What loading such a model takes, pinned to what is installed."""

SAMPLE_ROWS: Final = 2
"""torch.export fixes a dimension of size one; two rows make a model that takes any number of rows."""


def log_torch_model(
    client: MlflowClient,
    run_id: str,
    experiment_id: str,
    module: torch.nn.Module,
    sample: np.ndarray | torch.Tensor,
    *,
    name: str,
    params: Mapping[str, object],
    tags: Mapping[str, str],
) -> str:
    """Save `module`, in evaluation mode and on the CPU, as a logged model of the run; the module itself is untouched.

    Args:
        client: MLflow's client.
        run_id: the run that the model belongs to.
        experiment_id: the run's experiment.
        module: takes and returns one tensor.
        sample: at least two rows of input, the rows in the first dimension; two are kept as MLflow's input example.
        name: the model's name in the run.
        params: shown with the model.
        tags: shown with the model.

    Returns:
        `models:/ID`.

    Raises:
        TrackingError: the sample has fewer than two rows, or the module cannot be exported.
    """
    import torch
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model

    rows = torch.as_tensor(sample).detach().cpu()[:SAMPLE_ROWS].clone()
    if len(rows) < SAMPLE_ROWS:
        raise TrackingError(f"The model {name!r} needs a sample of at least two rows, or it would take one row only.")
    logged = client.create_logged_model(
        experiment_id,
        name,
        run_id,
        tags=dict(tags),
        params={key: str(value) for key, value in params.items()},
        model_type="pytorch",
    )
    status: Literal["READY", "FAILED"] = "FAILED"
    try:
        card = Model(logged.artifact_location, run_id, model_uuid=logged.model_id, model_id=logged.model_id)
        with tempfile.TemporaryDirectory() as aside:
            folder = Path(aside, "model")
            try:
                _save(copy.deepcopy(module).cpu().eval(), rows, card, folder)
            except Exception as exc:
                cause = (str(exc).strip().splitlines() or [type(exc).__name__])[0]
                raise TrackingError(
                    f"The model {name!r} cannot be exported ({cause}): its forward must take and return one tensor, "
                    "in operations that torch.export can trace."
                ) from exc
            client.log_model_artifacts(logged.model_id, str(folder))
        client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
        status = "READY"
    finally:
        client.finalize_logged_model(logged.model_id, status)
    return f"models:/{logged.model_id}"


def _save(module: torch.nn.Module, rows: torch.Tensor, card: Model, folder: Path) -> None:
    import torch
    from mlflow.models import infer_signature
    from mlflow.pytorch import save_model

    with torch.no_grad():
        signature = infer_signature(rows.numpy(), module(rows).numpy())
    with warnings.catch_warnings():
        # Importing mlflow.pyfunc, MLflow complains about the type hints of its own chat models.
        warnings.filterwarnings("ignore", ".*Any type hint is inferred as AnyType", UserWarning)
        save_model(
            module,
            folder,
            mlflow_model=card,
            signature=signature,
            input_example=rows.numpy(),
            pip_requirements=[f"{package}=={_release(package)}" for package in REQUIRED],
            serialization_format="pt2",
        )


def _release(package: str) -> str:
    """The version without its build (`+cpu`), which no package index knows."""
    return version(package).partition("+")[0]
