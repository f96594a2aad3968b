"""Weights and models as files that other programs can trust.

Belongs here: safetensors, the digest of weights, and ONNX with the proof that it answers as the module does. Does not
belong here: training, and where the files are kept. Nothing is pickled.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import uuid
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from mlops_assets.errors import MlopsError
from mlops_assets.training.predict import open_session

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from torch import Tensor, nn

TOLERANCE: Final = 1e-4
"""How far logits of ONNX and torch may lie apart, as a share of the largest logit (or of 1, if that is larger).

Float32 carries 6e-8 of it and layers add up; an operation that was translated wrongly is off by far more.
"""

BATCH_SIZES: Final = (1, 2, 7, 32)
"""Batch sizes at which an export is compared: one row, the smallest batch, an odd one, a usual one."""

_NOISY: Final = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")


class ExportError(MlopsError):
    """A model or its weights cannot be written or read back."""


class ExportMismatch(ExportError):
    """The exported model answers otherwise than the module."""


@dataclass(frozen=True)
class OnnxReport:
    """Proof of an export.

    Attributes:
        max_difference: Largest absolute difference of a logit between ONNX Runtime and torch.
        batch_sizes: Batch sizes that were compared.
        opset: Version of the ONNX operator set.
    """

    max_difference: float
    batch_sizes: tuple[int, ...]
    opset: int


def save_weights(weights: Mapping[str, Tensor], path: Path) -> None:
    """Write weights as safetensors, whole or not at all; equal weights give equal files."""
    from safetensors.torch import save

    _write(path, save({name: value.detach().cpu().contiguous() for name, value in weights.items()}))


def load_weights(path: Path) -> dict[str, Tensor]:
    """Read weights from a file onto the CPU.

    Raises:
        ExportError: The file is missing, or no safetensors file.
    """
    try:
        return load_weights_bytes(path.read_bytes())
    except (ExportError, OSError) as error:
        raise ExportError(f"{path} cannot be read: {error}") from error


def load_weights_bytes(data: bytes) -> dict[str, Tensor]:
    """Read the content of a weights file onto the CPU.

    Raises:
        ExportError: The bytes are not safetensors.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        loaded: dict[str, Tensor] = load(data)
    except SafetensorError as error:
        raise ExportError(f"these {len(data)} bytes are not weights in safetensors format: {error}.") from error
    return loaded


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """Name weights by content: the first 32 hex digits of the SHA-256 over sorted name, dtype, shape and bytes."""
    import torch

    digest = hashlib.sha256()
    for name in sorted(weights):
        value = weights[name].detach().cpu().contiguous()
        digest.update(json.dumps([name, str(value.dtype), list(value.shape)]).encode() + b"\n")
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]


def to_onnx(module: nn.Module, sample: NDArray[np.float32 | np.uint8], path: Path) -> OnnxReport:
    """Export a module in evaluation mode to one self-contained ONNX file and prove that it answers alike.

    The input is called "input", the output "logits", and the number of rows is free. `module` itself is not changed.

    Args:
        module: Maps x (batch, ...) to logits (batch, classes).
        sample: Real rows, float32 (n, ...) or images, uint8 (n, height, width, channels), which the exported model
            then takes; n is at least 2: from one row the exporter would fix the batch at 1.
        path: Where the file goes; nothing is written unless the answers agree within `TOLERANCE`.

    Raises:
        ExportError: The module uses something that cannot be exported, or `sample` is too small.
        ExportMismatch: ONNX Runtime and torch disagree.
    """
    import torch

    if len(sample) < 2:
        raise ExportError(
            f"an export needs at least 2 sample rows, not {len(sample)}: with one the batch size is fixed."
        )
    still = copy.deepcopy(module).cpu().eval()
    x = torch.tensor(sample)
    with _quiet():
        try:
            program = torch.onnx.export(
                still,
                (x[:2],),
                dynamo=True,
                verbose=False,
                input_names=["input"],
                output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
            )
        except Exception as error:
            cause = error.__cause__ or error
            reason = next((line.strip() for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
            raise ExportError(f"{type(module).__name__} cannot be exported to ONNX: {reason}") from error
    assert program is not None
    model = program.model_proto
    _strip(model)
    data: bytes = model.SerializeToString()
    difference = _compare(still, x, data)
    _write(path, data)
    return OnnxReport(difference, BATCH_SIZES, max(each.version for each in model.opset_import if not each.domain))


def _compare(module: nn.Module, x: torch.Tensor, data: bytes) -> float:
    import torch

    session = open_session(data, threads=1)
    largest = 0.0
    for size in BATCH_SIZES:
        rows = x[torch.arange(size) % len(x)]
        try:
            with torch.no_grad():
                expected = module(rows).numpy()
            (logits,) = session.run(["logits"], {"input": rows.numpy()})
        except Exception as error:
            reason = " ".join(str(error).split())
            raise ExportMismatch(f"{type(module).__name__} does not answer {size} rows: {reason}") from error
        if logits.shape != expected.shape:
            raise ExportMismatch(
                f"ONNX gives logits {logits.shape} for {size} rows where torch gives {expected.shape}."
            )
        difference = float(np.abs(logits - expected).max())
        # written so that a NaN on either side is a mismatch too
        if not difference <= TOLERANCE * max(1.0, float(np.abs(expected).max())):
            raise ExportMismatch(
                f"ONNX and torch differ by {difference:.3g} in a logit for {size} rows: look for an operation in "
                f"{type(module).__name__} that depends on the batch, on randomness, or on Python control flow."
            )
        largest = max(largest, difference)
    return largest


def _strip(model: Any) -> None:
    """Take out the exporter's notes: among them are source paths of the machine that exported."""
    graph = model.graph
    for each in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        each.ClearField("metadata_props")
        each.ClearField("doc_string")
    del model.functions[:]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's own warnings and log lines from the user: none of them is about the user's module."""
    loggers = [logging.getLogger(name) for name in _NOISY]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _write(path: Path, data: bytes) -> None:
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        aside.write_bytes(data)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
