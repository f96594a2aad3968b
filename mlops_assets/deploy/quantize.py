"""A model with weights of 8 bits, and whether its loss of accuracy is allowed.

Belongs here: making it, judging it by paired answers, and measuring it. Not here: which rows (`cli/export.py`), what a
condition means (`gate/`), and the bundle (`edge.py`).

Rows that the model was trained on calibrate, and validation rows judge: the test rows have a budget of looks.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from mlops_assets.errors import MlopsError
from mlops_assets.training.predict import open_session, pass_rows, predict

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mlops_assets.gate.decide import Decision

CONDITION: Final = "n - o > -0.02"
"""What an int8 model (n) may lose against the registered one (o)."""

CALIBRATION_ROWS: Final = 512
"""Some hundred rows settle the ranges of activations; they are taken evenly over all training rows."""

STATIC: Final = (
    "static, weights per channel and activations in 8 bits, their ranges from {rows} training rows (Jacob et al., "
    "CVPR 2018; for convolutions ONNX Runtime's guide to quantisation advises it)"
)
DYNAMIC: Final = (
    "dynamic, weights per channel in 8 bits, the ranges of activations found in each pass (ONNX Runtime's guide to "
    "quantisation advises it for networks of matrix products)"
)
_CONVOLUTIONS: Final = frozenset({"Conv", "ConvTranspose"})
_PASSES: Final = 200


class QuantizeError(MlopsError):
    """A model cannot be quantised."""


class QuantizationRefused(MlopsError):
    """A quantised model loses more than is allowed, or nobody can tell."""


class Quantized(NamedTuple):
    """A quantised model.

    Attributes:
        model: The ONNX file.
        method: How it was made, with the source.
    """

    model: bytes
    method: str


class Judged(NamedTuple):
    """What the loss of accuracy came to.

    Attributes:
        decision: The gate's.
        new: Accuracy of the quantised model on the rows that judged.
        old: Accuracy of the registered one.
        rows: How many rows those were.
    """

    decision: Decision
    new: float
    old: float
    rows: int


def quantize(model: bytes, rows: NDArray[np.float32 | np.uint8]) -> Quantized:
    """Quantise a model to 8 bits: statically where it has convolutions, else dynamically.

    A dynamic convolution runs several times slower than the float one; of a small network of matrix products, a static
    one is larger than the dynamic one.

    Args:
        model: An ONNX file with one input.
        rows: What the network takes: training rows, (rows, ...).

    Raises:
        QuantizeError: ONNX Runtime cannot quantise it.
    """
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    chosen = rows[np.unique(np.linspace(0, len(rows) - 1, min(CALIBRATION_ROWS, len(rows))).astype(np.int64))]
    with TemporaryDirectory() as folder, _one_sentence():
        graph = onnx.load_model_from_string(model).graph
        source, prepared, made = (Path(folder, f"{name}.onnx") for name in ("source", "prepared", "made"))
        source.write_bytes(model)
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        if any(node.op_type in _CONVOLUTIONS for node in graph.node):
            quantize_static(
                str(prepared),
                str(made),
                _Rows(graph.input[0].name, chosen),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QInt8,
                weight_type=QuantType.QInt8,
            )
            return Quantized(made.read_bytes(), STATIC.format(rows=len(chosen)))
        # Known shapes stand in its way: it turns weights over, and finds them of another shape than was told.
        plain = onnx.load_model(prepared)
        plain.graph.ClearField("value_info")
        onnx.save_model(plain, prepared)
        quantize_dynamic(str(prepared), str(made), per_channel=True, weight_type=QuantType.QInt8)
        return Quantized(made.read_bytes(), DYNAMIC)


def judge(
    new: bytes,
    old: bytes,
    x: NDArray[np.float32 | np.uint8],
    y: NDArray[np.int64],
    *,
    classes: Sequence[str],
    condition: str,
    reliability: float,
) -> Judged:
    """Decide by paired answers whether a model may stand in for another.

    Args:
        new: The ONNX file of the one that would stand in: `n` in the condition.
        old: Of the registered one: `o`.
        x: What both take: validation rows.
        y: Their classes, as indices.
        classes: Names of the indices.
        condition: In the gate's language.
        reliability: One-sided confidence in the verdict.

    Raises:
        ConditionError: The condition does not parse, or asks for what is not there.
        PredictError: A model cannot be run on the rows.
        QuantizeError: There are no rows.
    """
    from mlops_assets.gate.condition import parse
    from mlops_assets.gate.decide import decide
    from mlops_assets.gate.rows import Outputs, Paired

    if not len(x):
        raise QuantizeError(
            "there are no validation rows to judge the loss of accuracy by: raise `validation` in split"
        )
    names = np.asarray(classes)
    shares = [predict(model, x).astype(np.float64) for model in (new, old)]
    said = [Outputs(names[one.argmax(axis=1)], one) for one in shares]
    paired = Paired(label=names[y], new=said[0], old=said[1], classes=tuple(classes))
    decision = decide(parse(condition), paired, reliability=reliability)
    accuracy = [float((one.predicted == paired.label).mean()) for one in said]
    return Judged(decision, accuracy[0], accuracy[1], len(y))


def require_allowed(judged: Judged) -> None:
    """Go on only when the gate allows the loss.

    Raises:
        QuantizationRefused: It does not; with the numbers, and what to do.
    """
    if judged.decision.promote:
        return
    raise QuantizationRefused(
        f"int8 is not exported: accuracy {judged.new:.4f} after and {judged.old:.4f} before quantisation on "
        f"{judged.rows} validation rows; {judged.decision.reason.replace('labelled test rows', 'validation rows')}; "
        "ask for less with --condition, or take --target onnx"
    )


def latency_ratio(new: bytes, old: bytes, row: NDArray[np.float32 | np.uint8]) -> float:
    """Time of one model over that of another for one row, one thread: medians of passes in turn.

    Args:
        new: An ONNX file.
        old: The one to compare with.
        row: What both take, (1, ...).
    """
    sessions = [open_session(model, threads=1) for model in (new, old)]
    seconds: list[list[float]] = [[], []]
    for _ in range(_PASSES):  # in turn, so that what else the machine does meets both
        for session, found in zip(sessions, seconds, strict=True):
            began = time.perf_counter()
            session.run(None, {session.get_inputs()[0].name: row})
            found.append(time.perf_counter() - began)
    return statistics.median(seconds[0]) / statistics.median(seconds[1])


class _Rows:
    """Rows as ONNX Runtime's calibration asks for them, pass by pass."""

    def __init__(self, name: str, rows: NDArray[Any]) -> None:
        size = pass_rows(rows.shape[1:])
        self._passes = iter([{name: rows[start : start + size]} for start in range(0, len(rows), size)])

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        return next(self._passes, None)


@contextmanager
def _one_sentence() -> Iterator[None]:
    """What ONNX Runtime's tools raise, which is anything, as one sentence; what they log beside it goes nowhere."""
    silence = logging.NullHandler()
    logging.getLogger().addHandler(silence)  # or their first line gives the root logger a handler for good
    try:
        yield
    except Exception as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise QuantizeError(f"ONNX Runtime cannot quantise this model ({reason}); use --target onnx") from error
    finally:
        logging.getLogger().removeHandler(silence)
