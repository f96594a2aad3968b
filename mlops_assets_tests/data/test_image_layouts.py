import contextlib
import gzip
import os
import pickle
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from mlops_assets.data.config import ImagesConfig
from mlops_assets.data.images import Images, read_images
from mlops_assets.data.origin import local, unpacked
from mlops_assets.data.readers import ReadError
from mlops_assets_tests.data.pictures import NAMES, Files, idx, mnist, noise

IDX = ImagesConfig(layout="idx", mode="L")
CIFAR = ImagesConfig(layout="cifar")
DATA = Path(os.environ.get("MLOPS_TEST_DATA", "/nowhere"))

needs_data = pytest.mark.skipif(
    not DATA.is_dir(), reason="MLOPS_TEST_DATA names no folder with MNIST and a part of CIFAR-10"
)


def read(contents: Mapping[str, bytes], config: ImagesConfig) -> Images:
    found = read_images(Files(contents).sources(), config)
    assert (found.decoded, found.reused) == (len(found.images.pixels), 0)
    return found.images


def batch(seed: int, count: int, name: str = "labels", numbers: list[Any] | None = None) -> dict[str, Any]:
    labels = [number % 10 for number in range(count)] if numbers is None else numbers
    return {"data": noise(seed, count, 3072), name: labels}


def pickled(**contents: dict[str, Any]) -> dict[str, bytes]:
    return {name.replace("__", "."): pickle.dumps(content, protocol=2) for name, content in contents.items()}


CIFAR_10 = pickled(
    data_batch_1=batch(1, 4), data_batch_2=batch(2, 3), test_batch=batch(3, 12), batches__meta={"label_names": NAMES}
)
CIFAR_100 = pickled(
    train={**batch(1, 4, "fine_labels"), "coarse_labels": [0] * 4},
    test=batch(3, 2, "fine_labels"),
    meta={"fine_label_names": NAMES, "coarse_label_names": ["thing"]},
)


def binary(before: int) -> dict[str, bytes]:
    """The same content as `CIFAR_10` or, with two bytes before each image, `CIFAR_100`."""

    def rows(seed: int, count: int) -> bytes:
        numbers = np.zeros((count, before), dtype=np.uint8)
        numbers[:, -1] = np.arange(count) % 10
        return np.hstack([numbers, noise(seed, count, 3072)]).tobytes()

    if before == 1:
        names = ("\n".join(NAMES) + "\n\n").encode()
        batches = {"data_batch_1.bin": rows(1, 4), "data_batch_2.bin": rows(2, 3), "test_batch.bin": rows(3, 12)}
        return {**batches, "batches.meta.txt": names}
    return {"train.bin": rows(1, 4), "test.bin": rows(3, 2), "fine_label_names.txt": "\n".join(NAMES).encode()}


@pytest.mark.parametrize("zipped", [False, True])
def test_mnists_files_have_one_row_per_image(zipped: bool) -> None:
    images = read(mnist(zipped=zipped), IDX)
    assert images.table["key"].to_list() == [
        *(f"test/{number:05d}" for number in range(3)),
        *(f"train/{number:05d}" for number in range(5)),
    ]
    assert images.table["part"].to_list() == ["test"] * 3 + ["train"] * 5
    assert images.table["label"].to_list() == list("01201234")
    assert images.table.select("height", "width").unique().rows() == [(4, 3)]
    assert np.array_equal(images.pixels, np.concatenate([noise(1, 3, 4, 3), noise(0, 5, 4, 3)])[..., None])
    assert images.table["mean"].to_list() == pytest.approx([image.mean() for image in images.pixels])
    assert images.pixels.flags.c_contiguous
    assert images.table.schema["height"] == pl.Int32
    assert images.table.schema["mean"] == pl.Float32


def test_grey_layouts_become_colour_by_repetition() -> None:
    colour = read(mnist(), ImagesConfig(layout="idx")).pixels
    assert colour.shape == (8, 4, 3, 3)
    assert (colour == read(mnist(), IDX).pixels).all()


@pytest.mark.parametrize(
    ("stem", "to"), [("-idx", ".idx"), ("t10k", "test"), ("train-", "raw/MNIST/train-"), ("t10k-", "other/t10k-")]
)
def test_names_and_places_vary(stem: str, to: str) -> None:
    renamed = {name.replace(stem, to): content for name, content in mnist().items()}
    assert renamed != mnist()
    assert read({**renamed, "README": b"x"}, IDX).table.equals(read(mnist(), IDX).table)


def test_a_name_may_lack_what_its_ending_says() -> None:
    files = {f"{name}.gz": content for name, content in mnist().items()}  # a browser unpacked them
    assert read(files, IDX).table.height == 8


def test_rows_stay_in_order_beyond_a_hundred_thousand() -> None:
    count = 100_050
    files = mnist()
    pixels = noise(5, count, 1, 1)
    files["train-images-idx3-ubyte"] = idx(pixels)
    files["train-labels-idx1-ubyte"] = idx(np.zeros(count, dtype=np.uint8))
    files["t10k-images-idx3-ubyte"] = idx(noise(6, 3, 1, 1))
    images = read(files, IDX)
    assert images.table["key"].is_sorted()
    assert images.table["key"].n_unique() == count + 3
    row = images.table["key"].index_of("train/100001")
    assert row is not None
    assert images.pixels[row].item() == pixels[100_001].item()
    assert images.table["mean"][row] == pixels[100_001].item()


def test_progress_is_told_by_batch() -> None:
    steps: list[tuple[int, int]] = []
    read_images(Files(CIFAR_10).sources(), CIFAR, on_progress=lambda *step: steps.append(step))
    assert steps == [(1, 3), (2, 3), (3, 3)]


def without(files: dict[str, bytes], *names: str) -> dict[str, bytes]:
    return {name: content for name, content in files.items() if name not in names}


GOOD = mnist()
IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "There is no file t10k-images-idx3-ubyte or t10k-images-idx3-ubyte.gz, which layout `idx` needs"),
        (without(GOOD, LABELS), f"no file {LABELS} or {LABELS}.gz"),
        (
            {**GOOD, f"raw/{IMAGES}.gz": b""},
            f"{IMAGES} and raw/{IMAGES}.gz have the same place in the dataset: keep one",
        ),
        ({**GOOD, IMAGES: b""}, "no idx file of bytes in 3 dimensions"),
        ({**GOOD, IMAGES: GOOD[LABELS]}, "no idx file of bytes in 3 dimensions"),
        ({**GOOD, IMAGES: b"\0\0\x0d\x03" + GOOD[IMAGES][4:]}, "no idx file of bytes in 3 dimensions"),
        ({**GOOD, IMAGES: GOOD[IMAGES][:10]}, "no idx file of bytes in 3 dimensions"),
        ({**GOOD, IMAGES: GOOD[IMAGES][:-1]}, "holds less than the 60 bytes that its header says"),
        ({**GOOD, IMAGES: GOOD[IMAGES] + b"x"}, "holds more than the 60 bytes"),
        ({**GOOD, IMAGES: idx(noise(1, 0, 4, 3))}, "holds nothing: its header says 0 x 4 x 3"),
        ({**GOOD, LABELS: idx(np.zeros(4, dtype=np.uint8))}, f"{IMAGES} has 5 images, and {LABELS} 4 labels"),
        ({**GOOD, IMAGES: idx(noise(1, 5, 4, 4))}, "images of train are 4 x 4 pixels, those of test/00000 4 x 3"),
        ({**GOOD, IMAGES: gzip.compress(GOOD[IMAGES], mtime=0)[:-9]}, "is a damaged gzip file"),
        ({**GOOD, IMAGES: b"\x1f\x8b" + b"x" * 40}, "is a damaged gzip file"),
    ],
)
def test_idx_files_that_do_not_fit_are_refused(files: dict[str, bytes], message: str) -> None:
    with pytest.raises(ReadError, match=message):
        read(files, IDX)


@pytest.mark.parametrize("claimed", [3, 1 << 31])
def test_a_gzip_bomb_is_unpacked_no_further_than_its_header_says(claimed: int) -> None:
    header = bytes([0, 0, 8, 3]) + claimed.to_bytes(4, "big") + bytes([0, 0, 16, 0] * 2)
    bomb = gzip.compress(header + bytes(200_000_000), compresslevel=1)
    tracemalloc.start()
    try:
        with pytest.raises(ReadError, match=r"holds (less|more) than the \d+ bytes"):
            read({**GOOD, f"{IMAGES}": bomb}, IDX)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 120_000_000  # the three images of 4096 x 4096 pixels that the header allows, twice


@given(st.data())
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_damaged_idx_files_give_a_read_error_or_images(data: st.DataObject) -> None:
    files = mnist(zipped=data.draw(st.booleans()))
    name = data.draw(st.sampled_from(sorted(files)))
    content = bytearray(files[name])
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    files[name] = bytes(content[: data.draw(st.integers(0, len(content)))]) + data.draw(st.binary(max_size=5))
    with contextlib.suppress(ReadError):
        assert read(files, IDX).pixels.ndim == 4


@pytest.mark.parametrize("around", ["", "cifar-10-batches-py/"])
@pytest.mark.parametrize("files", [CIFAR_10, binary(1)], ids=["pickled", "binary"])
def test_cifar_10_is_read_in_both_kinds(files: dict[str, bytes], around: str) -> None:
    images = read({**{around + name: content for name, content in files.items()}, f"{around}readme.html": b""}, CIFAR)
    assert images.pixels.shape == (19, 32, 32, 3)
    assert images.pixels.flags.c_contiguous
    assert images.table["key"].to_list() == [
        *(f"data_batch_1/{number:05d}" for number in range(4)),
        *(f"data_batch_2/{number:05d}" for number in range(3)),
        *(f"test_batch/{number:05d}" for number in range(12)),
    ]
    assert images.table["part"].to_list() == ["train"] * 7 + ["test"] * 12
    assert images.table["label"].to_list() == [*NAMES[:4], *NAMES[:3], *NAMES, *NAMES[:2]]
    planes = noise(2, 3, 3072)[1].reshape(3, 32, 32)
    assert np.array_equal(images.pixels[5], np.stack(list(planes), axis=-1))


@pytest.mark.parametrize("files", [CIFAR_100, binary(2)], ids=["pickled", "binary"])
def test_cifar_100_has_its_fine_labels(files: dict[str, bytes]) -> None:
    images = read(files, CIFAR)
    assert images.table["key"].to_list() == ["test/00000", "test/00001", *(f"train/{n:05d}" for n in range(4))]
    assert images.table["label"].to_list() == [*NAMES[:2], *NAMES[:4]]
    assert np.array_equal(images.pixels[5, ..., 2].ravel(), noise(1, 4, 3072)[3, 2048:])


def test_without_names_labels_are_numbers() -> None:
    assert read(without(CIFAR_10, "batches.meta"), CIFAR).table["label"].to_list()[:4] == list("0123")


def test_batches_may_be_ten_or_more() -> None:
    files = {**CIFAR_10, "data_batch_10": CIFAR_10["data_batch_1"]}
    images = read(files, CIFAR)
    assert images.table["key"].is_sorted()
    assert images.table["key"][4] == "data_batch_10/00000"
    assert np.array_equal(images.pixels[4], images.pixels[0])


def test_labels_may_be_an_array() -> None:
    files = {**CIFAR_10, **pickled(test_batch={"data": noise(3, 2, 3072), "labels": np.array([7, 1])})}
    assert read(files, CIFAR).table["label"].to_list()[-2:] == ["horse", "automobile"]


def test_grey_has_pillows_weights() -> None:
    grey = read(CIFAR_10, ImagesConfig(layout="cifar", mode="L")).pixels
    for row, image in enumerate(read(CIFAR_10, CIFAR).pixels):
        assert np.array_equal(grey[row, ..., 0], np.asarray(Image.fromarray(image).convert("L")))


class Touch:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "There is no file data_batch_1 or data_batch_1.bin"),
        ({"batches.meta": CIFAR_10["batches.meta"]}, "There is no file data_batch_1"),
        (without(CIFAR_10, "test_batch"), "Beside data_batch_1 there is no test_batch"),
        (without(CIFAR_10, "data_batch_1", "data_batch_2"), "Beside test_batch there is no training batch"),
        ({**CIFAR_10, **binary(1)}, "data_batch_1 and data_batch_1.bin belong to different kinds of CIFAR: keep one"),
        ({**CIFAR_10, "a/test_batch": b""}, "test_batch and a/test_batch have the same place"),
        ({**CIFAR_10, "data_batch_2": CIFAR_10["data_batch_2"][:-9]}, "data_batch_2 is not a pickle of arrays"),
        ({**CIFAR_10, "data_batch_2": b""}, "data_batch_2 is not a pickle of arrays"),
        ({**CIFAR_10, **pickled(test_batch={"labels": [1]})}, "test_batch has no `data` of 3072 bytes an image"),
        ({**CIFAR_10, "test_batch": pickle.dumps(batch(1, 0))}, "test_batch has no `data`"),
        ({**CIFAR_10, **pickled(test_batch={"data": noise(1, 3072)})}, "test_batch has no `data`"),
        ({**CIFAR_10, **pickled(test_batch={"data": noise(1, 2, 3071)})}, "test_batch has no `data`"),
        ({**CIFAR_10, **pickled(test_batch={"data": np.zeros((2, 3072), dtype=int)})}, "test_batch has no `data`"),
        ({**CIFAR_10, **pickled(test_batch={"data": noise(1, 2, 3072)})}, "no `labels` that are whole numbers"),
        ({**CIFAR_10, **pickled(test_batch=batch(1, 2, numbers=[1, "a"]))}, "no `labels` that are whole numbers"),
        ({**CIFAR_10, **pickled(test_batch=batch(1, 2, numbers=[1, -1]))}, "no `labels` that are whole numbers"),
        ({**CIFAR_10, **pickled(test_batch=batch(1, 2, numbers=[1]))}, "test_batch has 2 images and 1 labels"),
        (
            {**CIFAR_10, **pickled(test_batch=batch(1, 2, numbers=[1, 10]))},
            "has the label 10, but there are names for 10",
        ),
        ({**CIFAR_10, **pickled(batches__meta={})}, "batches.meta gives no list of distinct label names"),
        ({**CIFAR_10, **pickled(batches__meta={"label_names": 5})}, "batches.meta gives no list"),
        ({**CIFAR_10, **pickled(batches__meta={"label_names": ["a", "a"]})}, "batches.meta gives no list"),
        ({**binary(1), "batches.meta.txt": b"\xff"}, "batches.meta.txt gives no list"),
        ({**binary(1), "test_batch.bin": bytes(3072)}, "test_batch.bin has 3072 bytes, which is no multiple of 3073"),
        ({**binary(1), "test_batch.bin": b""}, "test_batch.bin has 0 bytes"),
        ({**binary(2), "test.bin": bytes(3073)}, "test.bin has 3073 bytes, which is no multiple of 3074"),
    ],
)
def test_cifar_files_that_do_not_fit_are_refused(files: dict[str, bytes], message: str) -> None:
    with pytest.raises(ReadError, match=message):
        read(files, CIFAR)


def test_a_hostile_batch_runs_nothing(tmp_path: Path) -> None:
    trace = tmp_path / "ran"
    for name in ("data_batch_1", "batches.meta"):
        hostile = pickled(x={"data": Touch(trace), "label_names": Touch(trace), "labels": [0]})["x"]
        with pytest.raises(ReadError, match=f"^{name} is a pickle that asks for .*, which was not run: fetch it again"):
            read({**CIFAR_10, name: hostile}, CIFAR)
    assert not trace.exists()


@given(st.data())
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_damaged_cifar_files_give_a_read_error_or_images(data: st.DataObject) -> None:
    files = dict(data.draw(st.sampled_from([CIFAR_10, binary(1), CIFAR_100])))
    name = data.draw(st.sampled_from(sorted(files)))
    content = bytearray(files[name])
    for _ in range(data.draw(st.integers(0, 3))):
        place = data.draw(st.integers(0, len(content) - 1) | st.integers(0, min(200, len(content) - 1)))
        content[place] = data.draw(st.integers(0, 255))
    files[name] = bytes(content[: data.draw(st.just(len(content)) | st.integers(0, len(content)))])
    with contextlib.suppress(ReadError):
        assert read(files, CIFAR).pixels.shape[1:] == (32, 32, 3)


@needs_data
def test_all_of_mnist() -> None:
    files = {path.name: path.read_bytes() for path in (DATA / "mnist").iterdir()}
    images = read(files, IDX)
    assert images.pixels.shape == (70_000, 28, 28, 1)
    assert images.table["part"].value_counts(sort=True).rows() == [("train", 60_000), ("test", 10_000)]
    train = images.table["part"] == "train"
    assert images.table.filter(train)["label"].to_list()[:5] == ["5", "0", "4", "1", "9"]
    counts = dict(images.table.filter(train)["label"].value_counts().iter_rows())
    assert [counts[str(digit)] for digit in range(10)] == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert images.pixels[train.to_numpy()].mean() / 255 == pytest.approx(0.1307, abs=5e-5)


@needs_data
def test_a_part_of_cifar_10_as_it_was_published(tmp_path: Path) -> None:
    root = unpacked(local(DATA / "cifar10_mini"), tmp_path / "cifar")
    files = {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    images = read(files, CIFAR)
    with np.load(DATA / "cifar10_mini" / "cifar10_mini.npz") as other:
        assert np.array_equal(images.pixels, np.concatenate([other["train_images"], other["test_images"]]))
        numbers = np.concatenate([other["train_labels"], other["test_labels"]])
    assert images.table["label"].to_list() == [NAMES[number] for number in numbers]
    counts = images.table.group_by("part", "label").len()
    assert set(counts.rows()) == {("train", name, 200) for name in NAMES} | {("test", name, 50) for name in NAMES}
