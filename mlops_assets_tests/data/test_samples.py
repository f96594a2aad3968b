import hashlib
import io

import numpy as np
import polars as pl
from PIL import Image
from sklearn.datasets import load_digits

from mlops_assets.data.samples import digits, digits_changed, iris, iris_uci


def test_iris_is_fishers() -> None:
    frame = iris()
    assert frame.shape == (150, 6)
    assert frame["id"].to_list() == list(range(1, 151))
    assert frame["species"].unique(maintain_order=True).to_list() == ["setosa", "versicolor", "virginica"]
    assert frame.row(0) == (1, 5.1, 3.5, 1.4, 0.2, "setosa")
    assert frame.filter(pl.col("id").is_in([35, 38])).select("petal_width", "sepal_width").rows() == [
        (0.2, 3.1),
        (0.1, 3.6),
    ]


def test_the_copied_file_differs_in_two_flowers() -> None:
    ours, copied = iris(), iris_uci()
    assert copied.schema == ours.schema
    changed = copied.filter(pl.any_horizontal(copied[name] != ours[name] for name in ours.columns))
    assert changed.rows() == [(35, 4.9, 3.1, 1.5, 0.1, "setosa"), (38, 4.9, 3.1, 1.5, 0.1, "setosa")]


def test_digits_are_scikit_learns() -> None:
    scans = digits()
    assert len(scans) == 1797
    assert list(scans)[:4] == ["0/0001.png", "1/0002.png", "2/0003.png", "3/0004.png"]
    data = load_digits()
    for row in range(0, 1797, 97):
        with Image.open(io.BytesIO(scans[f"{data.target[row]}/{row + 1:04d}.png"])) as image:
            assert image.mode == "L"
            ink = np.asarray(image) * (16 / 255)
        assert np.abs(ink - data.images[row]).max() < 0.04


def test_digits_are_the_same_bytes_everywhere() -> None:
    content = b"".join(path.encode() + b"\0" + scan for path, scan in sorted(digits().items()))
    assert hashlib.sha256(content).hexdigest() == "a49f376468467317bbaea9a509bd0774d2ab71f599be5b919cf6751dd0e3aea3"


def test_one_percent_of_the_digits_changes_and_can_still_be_read() -> None:
    before, after = digits(), digits_changed()
    assert len(after) == 18 == round(len(before) / 100)
    assert after == digits_changed()
    assert list(after) == sorted(after)
    for path, scan in after.items():
        old, new = (np.asarray(Image.open(io.BytesIO(one))).astype(int) for one in (before[path], scan))
        assert new.sum() > 1.1 * old.sum()
        assert np.array_equal(new > 0, old > 0)
