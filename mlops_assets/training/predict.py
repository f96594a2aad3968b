"""Probabilities from an exported model.

Belongs here: running an ONNX model over rows, few or many. Does not belong here: what the rows are and judging the
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


def open_session(model: Path | bytes, *, threads: int, gpu: bool = False) -> Any:
    """Open an ONNX model as an `onnxruntime.InferenceSession`, on a GPU only if that is wanted and there is one.

    Raises:
        PredictError: It is not an ONNX model, or not one that this ONNX Runtime can run.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what goes wrong is raised; the log would only say it twice
    source = model if isinstance(model, bytes) else str(model)
    cuda = gpu and "CUDAExecutionProvider" in ort.get_available_providers()
    providers = ["CUDAExecutionProvider"] if cuda else []
    try:
        return ort.InferenceSession(source, options, providers=[*providers, "CPUExecutionProvider"])
    except Exception as error:
        name = f"the model of {len(model)} bytes" if isinstance(model, bytes) else str(model)
        raise PredictError(f"{name} cannot be loaded by ONNX Runtime: {_reason(error)}") from error


class Predictor:
    """An open ONNX model that gives probabilities, from any thread.

    Args:
        model: An ONNX model with one input (batch, ...) and logits (batch, classes) as its first output.
        threads: CPU threads.
        gpu: Whether to run on a GPU where there is one.

    Raises:
        PredictError: It cannot be loaded.
    """

    def __init__(self, model: Path | bytes, *, threads: int = 1, gpu: bool = False) -> None:
        self._session = open_session(model, threads=threads, gpu=gpu)
        self._input = self._session.get_inputs()[0].name
        self.accelerated: bool = self._session.get_providers()[0] != "CPUExecutionProvider"

    def __call__(self, x: NDArray[np.float32 | np.uint8], *, batch_size: int | None = None) -> NDArray[np.float32]:
        """Give class probabilities for every row.

        Args:
            x: Features, float32 (n, ...), or images, uint8 (n, height, width, channels); n may be 0.
            batch_size: Rows in one pass; None chooses by their size.

        Returns:
            Probabilities, float32 (n, classes); each row sums to 1.

        Raises:
            PredictError: The model cannot be run on these rows, or a logit is not finite.
        """
        # without rows, one of zeros tells how many classes there are
        rows = x if len(x) else np.zeros((1, *x.shape[1:]), dtype=x.dtype)
        size = batch_size or pass_rows(x.shape[1:])
        feeds = ({self._input: rows[start : start + size]} for start in range(0, len(rows), size))
        try:
            parts = [self._session.run(None, feed)[0] for feed in feeds]
        except Exception as error:
            raise PredictError(f"the model does not take rows of {x.dtype} {x.shape[1:]}: {_reason(error)}") from error
        logits = np.concatenate(parts).astype(np.float64)[: len(x)]
        if not np.isfinite(logits).all():
            row = int(np.argwhere(~np.isfinite(logits))[0][0]) + 1
            raise PredictError(f"the model's answer to row {row} is not finite: look at that row, or train anew.")
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        result: NDArray[np.float32] = (shares / shares.sum(axis=1, keepdims=True)).astype(np.float32)
        return result


def predict(
    model: Path | bytes, x: NDArray[np.float32 | np.uint8], *, batch_size: int | None = None, threads: int = 1
) -> NDArray[np.float32]:
    """Open a model and give probabilities for every row, as `Predictor` does.

    Raises:
        PredictError: The model cannot be loaded, or not run on these rows.
    """
    return Predictor(model, threads=threads)(x, batch_size=batch_size)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())
