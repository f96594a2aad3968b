"""An evaluation as pictures: PNG bytes, drawn without a display and without pyplot's global state.

Belongs here: drawing. Not here: measuring, and where a picture is stored or shown.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from mlops_assets.evaluation.metrics import Evaluation, Mistake

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

_DPI: Final = 100
_COLOURS: Final = 256
_SHADES: Final = 20
_LONGEST_NAME: Final = 22
_MOST_COUNTS: Final = 20
_MOST_NAMES: Final = 60
_A_LINE: Final = 5
_BLUE: Final = "#2563a8"
_GREY: Final = "#6b7280"


def confusion_png(evaluation: Evaluation) -> bytes:
    """Draw the confusion matrix: rows are true classes, shades the share of the row, numbers the counts.

    Beyond 20 classes the numbers are left out, beyond 60 the names, as nobody could read them.

    Args:
        evaluation: What to draw.

    Returns:
        A PNG image.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    counts = np.array(evaluation.confusion)
    classes = len(counts)
    shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    side = 2.6 + min(0.42 * classes, 7.0)
    figure = Figure(figsize=(side + 0.8, side), dpi=_DPI, layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap=colormaps["Blues"].resampled(_SHADES), vmin=0.0, vmax=1.0)
    figure.colorbar(image, ax=axes, label="share of the true class", fraction=0.046, pad=0.03)
    axes.set_title(f"Confusion, {evaluation.rows:,} test rows", fontsize=11)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if classes <= _MOST_NAMES:
        names = [_short(report.name) for report in evaluation.classes]
        size = 9 if classes <= _MOST_COUNTS else 6
        axes.set_xticks(range(classes), names, rotation=45, ha="right", rotation_mode="anchor", parse_math=False)
        axes.set_yticks(range(classes), names, parse_math=False)
        axes.tick_params(labelsize=size)
    if classes <= _MOST_COUNTS:
        for (row, column), count in np.ndenumerate(counts):
            colour = "white" if shares[row, column] > 0.5 else "black" if count else "#b0b7c3"
            axes.text(column, row, _count(int(count)), ha="center", va="center", color=colour, fontsize=9)
    return _png(figure)


def calibration_png(evaluation: Evaluation) -> bytes:
    """Draw the reliability diagram: accuracy against confidence per bin, and how many rows each bin holds.

    Args:
        evaluation: What to draw.

    Returns:
        A PNG image.
    """
    from matplotlib.figure import Figure

    bins = evaluation.calibration
    centres = [(item.lower + item.upper) / 2 for item in bins]
    width = 0.92 * (bins[0].upper - bins[0].lower)
    figure = Figure(figsize=(5.0, 5.2), dpi=_DPI, layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    above.plot((0, 1), (0, 1), linestyle="--", linewidth=1, color=_GREY, label="perfectly calibrated")
    above.plot(
        [item.confidence for item in bins if item.rows],
        [item.accuracy for item in bins if item.rows],
        marker="o",
        color=_BLUE,
        label="this model",
    )
    above.set(xlim=(0, 1), ylim=(-0.02, 1.02), ylabel="accuracy")
    above.set_title(f"Calibration, expected error {evaluation.ece:.3f}", fontsize=11)
    above.legend(loc="upper left", frameon=False, fontsize=9)
    above.grid(alpha=0.25)
    below.bar(centres, [item.rows for item in bins], width=width, color=_BLUE)
    below.set(xlabel="confidence: probability of the predicted class", ylabel="rows")
    below.grid(alpha=0.25, axis="y")
    return _png(figure)


def mistakes_png(mistakes: Sequence[Mistake], images: Sequence[NDArray[np.uint8]]) -> bytes:
    """Draw the images that a model was most wrong about: what each is, what it was taken for, and how surely.

    Args:
        mistakes: The wrong predictions, at least one.
        images: Their images, each of shape (height, width, channels) with 1 or 3 channels.

    Returns:
        A PNG image.
    """
    from matplotlib.figure import Figure

    lines = -(-len(mistakes) // _A_LINE)
    figure = Figure(figsize=(1.5 * _A_LINE, 1.95 * lines + 0.4), dpi=_DPI, layout="constrained")
    places = figure.subplots(lines, _A_LINE, squeeze=False).flat
    for axes, one, image in zip(places, mistakes, images, strict=False):
        axes.imshow(image.squeeze(axis=2) if image.shape[2] == 1 else image, cmap="gray", vmin=0, vmax=255)
        said = f"{_short(one.label)}, taken for\n{_short(one.predicted)} ({one.probability:.0%})"
        axes.set_title(said, fontsize=8, parse_math=False)
    for axes in figure.axes:
        axes.axis("off")
    figure.suptitle("The surest mistakes", fontsize=11)
    return _png(figure)


def _png(figure: Figure) -> bytes:
    from PIL import Image

    drawn = io.BytesIO()
    with warnings.catch_warnings():
        # A class name in a script that the font lacks shows as boxes, which is no reason to fail or to fill the log.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from", category=UserWarning)
        figure.savefig(drawn, format="png", bbox_inches="tight", pad_inches=0.12)
    # A palette makes the file three to five times smaller, and these pictures have few colours.
    picture = Image.open(drawn).convert("RGB").quantize(colors=_COLOURS, method=Image.Quantize.FASTOCTREE)
    buffer = io.BytesIO()
    picture.save(buffer, format="png", optimize=True)
    return buffer.getvalue()


def _short(name: str) -> str:
    """Leave out the middle of a long name: names of one family differ at either end."""
    flat = " ".join(name.split())
    if len(flat) <= _LONGEST_NAME:
        return flat
    head = _LONGEST_NAME // 2
    return f"{flat[:head].rstrip()}…{flat[head + 1 - _LONGEST_NAME :].lstrip()}"


def _count(count: int) -> str:
    return str(count) if count < 10_000 else f"{count / 1000:.0f}k"
