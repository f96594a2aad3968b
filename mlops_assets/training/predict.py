"""Probabilities from an exported model.

Belongs here: running an ONNX model over rows in bulk. Does not belong here: serving single requests, and judging the
answers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from mlops_assets.errors import MlopsError

if TYPE_CHECKING:
    from numpy.typing import NDArray


_PASS_ROWS: Final = 1024
_PASS_VALUES: Final = 2**20


class PredictError(MlopsError):
    """A model cannot be run, or not over these rows."""


def pass_rows(shape: Sequence[int]) -> int:
    """Give how many rows of a shape, without their number, go through a network in one pass without gradients.

    As many as 1,024 and, for images, about a million values: a convolution's outputs are tens of times its input.
    """
    return max(1, min(_PASS_ROWS, _PASS_VALUES // math.prod(shape)))


def open_session(model: Path | bytes, *, threads: int) -> Any:
    """Open an ONNX model on the CPU as an `onnxruntime.InferenceSession`.

    Raises:
        PredictError: It is not an ONNX model, or not one that this ONNX Runtime can run.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what goes wrong is raised; the log would only say it twice
    source = model if isinstance(model, bytes) else str(model)
    try:
        return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        name = f"the model of {len(model)} bytes" if isinstance(model, bytes) else str(model)
        raise PredictError(f"{name} cannot be loaded by ONNX Runtime: {_reason(error)}") from error


def predict(
    model: Path | bytes, x: NDArray[np.float32 | np.uint8], *, batch_size: int | None = None, threads: int = 1
) -> NDArray[np.float32]:
    """Give class probabilities for every row.

    Args:
        model: An ONNX model with one input (batch, ...) and logits (batch, classes) as its first output.
        x: Features, float32 (n, ...), or images, uint8 (n, height, width, channels); n may be 0.
        batch_size: Rows in one pass; None chooses by their size.
        threads: CPU threads.

    Returns:
        Probabilities, float32 (n, classes); each row sums to 1.

    Raises:
        PredictError: The model cannot be run on these rows, or a logit is not finite.
    """
    session = open_session(model, threads=threads)
    name = session.get_inputs()[0].name
    # without rows, one of zeros tells how many classes there are
    rows = x if len(x) else np.zeros((1, *x.shape[1:]), dtype=x.dtype)
    size = batch_size or pass_rows(x.shape[1:])
    try:
        parts = [session.run(None, {name: rows[start : start + size]})[0] for start in range(0, len(rows), size)]
    except Exception as error:
        raise PredictError(f"the model does not take rows of {x.dtype} {x.shape[1:]}: {_reason(error)}") from error
    logits = np.concatenate(parts).astype(np.float64)[: len(x)]
    if not np.isfinite(logits).all():
        row = int(np.argwhere(~np.isfinite(logits))[0][0]) + 1
        raise PredictError(f"the model's answer to row {row} is not finite: look at that row, or train anew.")
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    result: NDArray[np.float32] = (shares / shares.sum(axis=1, keepdims=True)).astype(np.float32)
    return result


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())
