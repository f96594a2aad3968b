import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from mlops_assets.evaluation.metrics import Mistake, evaluate
from mlops_assets.evaluation.plots import calibration_png, confusion_png, mistakes_png

pytestmark = pytest.mark.slow


def evaluated(classes, *, rows=2000, seed=0, names=None):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, classes, rows)
    logits = rng.normal(size=(rows, classes))
    logits[np.arange(rows), label] += 2.5
    probabilities = np.exp(logits)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    names = names or [f"a class with quite a long name, number {index}" for index in range(classes)]
    return evaluate(label, probabilities, class_names=names, keys=range(rows))


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("L"))


@pytest.mark.parametrize("classes", [2, 20, 60, 300])
def test_pictures_are_small_and_of_a_readable_size(classes):
    evaluation = evaluated(classes)

    for png in (confusion_png(evaluation), calibration_png(evaluation)):
        height, width = pixels(png).shape
        assert len(png) < 60_000
        assert 300 < height < 1400
        assert 300 < width < 1400


def test_nothing_is_cut_off_at_the_border():
    for png in (confusion_png(evaluated(20)), confusion_png(evaluated(40)), calibration_png(evaluated(3))):
        grey = pixels(png)
        border = np.concatenate([grey[:5].ravel(), grey[-5:].ravel(), grey[:, :5].ravel(), grey[:, -5:].ravel()])
        assert border.min() > 245


def test_the_diagonal_of_a_good_model_is_dark_and_the_rest_is_not():
    good = pixels(confusion_png(evaluated(4, names=list("abcd"))))
    label = np.array([0, 1] * 20)
    swapped = evaluate(label, np.eye(2)[1 - label], class_names=["a", "b"], keys=range(40))
    right = evaluate(label, np.eye(2)[label], class_names=["a", "b"], keys=range(40))

    assert (good < 100).sum() > 1000
    assert confusion_png(swapped) != confusion_png(right)


def test_awkward_class_names_are_drawn():
    names = ["$x^{$", "日本語", "", "line\nbreak", "a" * 500]

    confusion_png(evaluated(5, names=names))


def test_equal_evaluations_give_equal_bytes():
    assert confusion_png(evaluated(3)) == confusion_png(evaluated(3))
    assert calibration_png(evaluated(3)) == calibration_png(evaluated(3))


def test_a_single_row_can_be_drawn():
    evaluation = evaluate(np.array([0]), np.array([[0.9, 0.1]]), class_names=["a", "b"], keys=["k"])

    assert pixels(confusion_png(evaluation)).size
    assert pixels(calibration_png(evaluation)).size


def in_a_fresh_process(code):
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


def test_importing_the_parts_loads_nothing_heavy():
    in_a_fresh_process(
        "import mlops_assets.gate.decide, mlops_assets.evaluation.plots, mlops_assets.evaluation.markdown, sys;"
        "heavy = {'matplotlib', 'scipy', 'sklearn', 'PIL', 'pandas', 'dagster'} & set(sys.modules);"
        "assert not heavy, heavy"
    )


def test_drawing_leaves_pyplot_alone():
    in_a_fresh_process(
        "import numpy as np, sys;"
        "from mlops_assets.evaluation.metrics import evaluate;"
        "from mlops_assets.evaluation.plots import confusion_png;"
        "confusion_png(evaluate(np.array([0]), np.array([[0.9, 0.1]]), class_names=['a', 'b'], keys=['k']));"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )


@pytest.mark.parametrize(("shape", "count"), [((8, 8, 1), 1), ((32, 32, 3), 7), ((20, 48, 3), 20)])
def test_mistakes_show_the_images_themselves(shape, count):
    mistakes = [Mistake(f"k{index}", "a long name of a class, $5", "b", 0.9) for index in range(count)]
    dark, bright = (np.full(shape, value, dtype=np.uint8) for value in (0, 255))

    shades = [pixels(mistakes_png(mistakes, [image] * count)) for image in (dark, bright)]

    assert shades[0].shape == shades[1].shape
    assert shades[0].shape[1] < 1000
    assert (shades[0] < 10).mean() > (shades[1] < 10).mean() + 0.01 * count
