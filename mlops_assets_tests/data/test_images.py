import io
import struct
import zlib
from collections.abc import Mapping
from types import SimpleNamespace

import numpy as np
import polars as pl
import psutil
import pytest
from PIL import Image

from mlops_assets.data.config import ImagesConfig
from mlops_assets.data.images import Decoded, Images, from_bytes, read_images, to_bytes
from mlops_assets.data.readers import ReadError, to_parquet_bytes
from mlops_assets_tests.data.pictures import Files, noise, png

FOLDER = ImagesConfig(layout="folder")
PETS = {"cat/1.png": png(1), "cat/black/2.png": png(2), "dog/1.png": png(3), "dog/3.png": png(4)}


def read(contents: Mapping[str, bytes], config: ImagesConfig = FOLDER, known: Images | None = None) -> Decoded:
    return read_images(Files(contents).sources(), config, known=known)


def test_a_folder_has_one_row_per_image_in_the_order_of_the_paths() -> None:
    files = Files({"README.md": b"pets", "dog/Thumbs.db": b"x", **dict(reversed(PETS.items()))})
    images, decoded, reused = read_images(files.sources(), FOLDER)
    assert images.table.schema == {
        "key": pl.String,
        "label": pl.String,
        "height": pl.Int32,
        "width": pl.Int32,
        "mean": pl.Float32,
        "file": pl.String,
    }
    assert images.table["key"].to_list() == list(PETS)
    assert images.table["label"].to_list() == ["cat", "cat", "dog", "dog"]
    assert images.table.select("height", "width").unique().rows() == [(6, 5)]
    assert images.pixels.flags.c_contiguous
    assert np.array_equal(images.pixels, np.stack([noise(seed, 6, 5, 3) for seed in (1, 2, 3, 4)]))
    assert images.table["mean"].to_list() == pytest.approx([image.mean() for image in images.pixels])
    hashes = {source.path: source.hash for source in files.sources()}
    assert images.table["file"].to_list() == [hashes[path] for path in PETS]
    assert (decoded, reused) == (4, 0)
    assert sorted(files.read) == list(PETS)


def test_grey_images_have_one_channel() -> None:
    images = read(PETS, ImagesConfig(layout="folder", mode="L")).images
    assert images.pixels.shape == (4, 6, 5, 1)


def test_the_order_of_the_files_changes_nothing() -> None:
    one, other = read(PETS).images, read(dict(reversed(PETS.items()))).images
    assert to_parquet_bytes(one.table) == to_parquet_bytes(other.table)
    assert to_bytes(one.pixels) == to_bytes(other.pixels)


@pytest.mark.parametrize("around", ["", "pets/", "a/b/"])
def test_directories_named_after_parts_hold_the_classes(around: str) -> None:
    paths = ["test/cat/1.png", "train/cat/1.png", "train/dog/x/2.png", "val/dog/1.png"]
    table = read({around + path: png(seed) for seed, path in enumerate(paths)}).images.table
    assert table.columns == ["key", "label", "part", "height", "width", "mean", "file"]
    assert table["part"].to_list() == ["test", "train", "train", "validation"]
    assert table["label"].to_list() == ["cat", "cat", "dog", "dog"]
    assert table["key"].to_list() == [around + path for path in paths]


def test_a_class_may_be_called_train() -> None:
    table = read({"car/1.png": png(1), "train/express/1.png": png(2)}).images.table
    assert "part" not in table.columns
    assert table["label"].to_list() == ["car", "train"]


def test_one_directory_around_all_classes_is_no_class() -> None:
    assert read({f"shoes/{path}": data for path, data in PETS.items()}).images.table["label"].to_list() == [
        "cat",
        "cat",
        "dog",
        "dog",
    ]
    assert read({"cat/1.png": png(1)}).images.table["label"].to_list() == ["cat"]
    assert read({"train/cat/1.png": png(1)}).images.table.select("label", "part").row(0) == ("cat", "train")


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ({}, r"None of the 0 files is an image \(\.png, .*\): put images into one directory per class\."),
        ({"a/b.heic": b"x", "README": b"x"}, "None of the 2 files is an image"),
        ({**PETS, "5.png": png(5)}, r"1 image lies in no class's directory \(5\.png\): move each"),
        ({"train/1.png": png(1), "test/1.png": png(2)}, r"2 images lie in no class's directory \(test/1\.png, train"),
    ],
)
def test_files_that_make_no_classes_are_refused(contents: dict[str, bytes], message: str) -> None:
    with pytest.raises(ReadError, match=message):
        read(contents)


def test_all_damaged_files_are_named_at_once() -> None:
    bad = {f"dog/bad{number}.png": b"junk" for number in range(7)} | {"cat/empty.png": b"", "cat/cut.png": png(9)[:-30]}
    with pytest.raises(ReadError) as caught:
        read({**PETS, **bad})
    assert str(caught.value) == (
        "9 of 13 images cannot be decoded (cat/cut.png: damaged: image file is truncated, cat/empty.png: empty, "
        "dog/bad0.png: not an image of a known kind, dog/bad1.png: not an image of a known kind, "
        "dog/bad2.png: not an image of a known kind, ...): replace or remove them."
    )


def test_images_of_several_sizes_need_one_to_be_resized_to() -> None:
    odd = {**PETS, "cat/a.png": png(7, 9, 9), "dog/0.png": png(8, 5, 6)}
    with pytest.raises(ReadError) as caught:
        read(odd)
    assert str(caught.value) == (
        "2 images are not 6 x 5 (height x width) as the others are (cat/a.png: 9 x 9, dog/0.png: 5 x 6): set "
        "`size: [6, 5]`, or replace them."
    )
    images = read(odd, ImagesConfig(layout="folder", size=(6, 5))).images
    assert images.pixels.shape == (6, 6, 5, 3)
    assert images.table.filter(pl.col("height") * pl.col("width") != 30)["key"].to_list() == ["cat/a.png"]
    assert np.array_equal(images.pixels[0], noise(1, 6, 5, 3))


def test_an_odd_image_among_new_ones_is_found_beside_known_ones() -> None:
    known = read(PETS).images
    with pytest.raises(ReadError, match=r"1 image is not 6 x 5 .*cat/a\.png: 9 x 9"):
        read({**PETS, "cat/a.png": png(7, 9, 9)}, known=known)


def test_only_new_content_is_read_and_decoded() -> None:
    before = {f"{number % 7}/{number:05d}.png": png(number, 8, 8) for number in range(1000)}
    known = read(before).images
    changed = dict(before)
    for number in range(0, 1000, 100):
        changed[f"{number % 7}/{number:05d}.png"] = png(-number - 1 & 0xFFFF, 8, 8)
    changed["3/moved.png"] = changed.pop("3/00003.png")
    files = Files(changed)
    steps: list[tuple[int, int]] = []
    images, decoded, reused = read_images(
        files.sources(), FOLDER, known=known, on_progress=lambda *step: steps.append(step)
    )
    assert (decoded, reused) == (10, 990)
    assert sorted(files.read) == [
        f"{number % 7}/{number:05d}.png" for number in sorted(range(0, 1000, 100), key=lambda n: (n % 7, n))
    ]
    assert steps == [(10, 10)]
    anew = read(changed).images
    assert images.table.equals(anew.table)
    assert np.array_equal(images.pixels, anew.pixels)


def test_nothing_is_decoded_when_nothing_changed_and_sizes_are_remembered() -> None:
    config = ImagesConfig(layout="folder", size=(3, 3))
    known = read(PETS, config).images
    files = Files(PETS)
    again = read_images(files.sources(), config, known=known)
    assert (again.decoded, again.reused, files.read) == (0, 4, [])
    assert again.images.table.equals(known.table)
    assert np.array_equal(again.images.pixels, known.pixels)
    assert again.images.table["height"].to_list() == [6] * 4


def test_equal_files_are_decoded_once_and_all_named_when_damaged() -> None:
    files = Files({"a/1.png": png(1), "a/2.png": png(1), "b/1.png": png(1), "b/2.png": png(2)})
    images, decoded, reused = read_images(files.sources(), FOLDER)
    assert (decoded, reused, len(files.read)) == (2, 2, 2)
    assert np.array_equal(images.pixels[0], images.pixels[2])
    assert np.array_equal(images.pixels[3], noise(2, 6, 5, 3))
    with pytest.raises(ReadError, match=r"2 of 3 images cannot be decoded \(a/1.png: .*, a/2.png: "):
        read({"a/1.png": b"x", "a/2.png": b"x", "b/1.png": png(1)})


def test_large_files_are_decoded_by_several_threads_into_their_own_rows() -> None:
    contents = {f"{number % 3}/{number}.png": png(number, 60, 60, 3) for number in range(200)}
    images = read(contents).images
    for row, path in enumerate(images.table["key"]):
        assert np.array_equal(images.pixels[row], noise(int(path[2:-4]), 60, 60, 3))


def test_a_failure_to_read_passes_through() -> None:
    sources = Files(PETS).sources()

    def fail() -> bytes:
        raise OSError("the disk is gone")

    sources[2] = sources[2]._replace(read=fail)
    with pytest.raises(OSError, match="the disk is gone"):
        read_images(sources, FOLDER)


@pytest.mark.parametrize("size", [None, (100, 50)])
def test_more_pixels_than_memory_are_refused(monkeypatch: pytest.MonkeyPatch, size: tuple[int, int] | None) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=59_000))
    config = ImagesConfig(layout="folder", size=size)
    contents = {f"a/{number}.png": png(number, 100, 50, 3) for number in range(4)}
    message = r"4 images of 100 x 50 pixels take 0\.0 GB of memory, of which 0\.0 GB are free: set a smaller `size"
    with pytest.raises(ReadError, match=message):
        read(contents, config)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=60_000))
    assert read(contents, config).decoded == 4


def test_pillows_remarks_on_odd_files_stay_silent() -> None:
    plain = png(1)
    animation = b"acTL" + bytes(8)  # of no frames: Pillow warns, and shows the image itself
    odd = plain[:33] + struct.pack(">I", 8) + animation + struct.pack(">I", zlib.crc32(animation)) + plain[33:]
    with pytest.warns(UserWarning, match="Invalid APNG"):
        Image.open(io.BytesIO(odd)).close()
    assert np.array_equal(read({"a/1.png": odd}).images.pixels[0], noise(1, 6, 5, 3))


def test_pixels_come_back_from_their_bytes() -> None:
    pixels = noise(1, 4, 3, 2, 3)
    data = to_bytes(pixels)
    again = from_bytes(data)
    assert np.array_equal(again, pixels)
    assert again.dtype == np.uint8
    assert not again.flags.owndata
    assert to_bytes(np.asfortranarray(pixels)) == to_bytes(pixels[::-1][::-1]) == data
    assert to_bytes(pixels[:0]) != data
    assert from_bytes(to_bytes(pixels[:0])).shape == (0, 3, 2, 3)


def test_the_library_reads_the_same_file() -> None:
    from safetensors.numpy import load, save

    pixels = noise(1, 4, 3, 2, 1)
    assert np.array_equal(load(to_bytes(pixels))["images"], pixels)
    assert np.array_equal(from_bytes(save({"images": pixels}, metadata={"a": "b"})), pixels)


@pytest.mark.parametrize("cut", [0, 4, 8, 20, 60, -1])
def test_bytes_that_are_no_images_are_refused(cut: int) -> None:
    with pytest.raises(ReadError, match="not images in a safetensors file"):
        from_bytes(to_bytes(noise(1, 4, 3, 2, 3))[:cut])


def test_other_tensors_are_refused() -> None:
    from safetensors.numpy import save

    for tensors in (
        {"other": noise(1, 2, 2)},
        {"images": noise(1, 2, 2).astype(np.float32)},
        {"images": noise(1, 2, 2), "more": noise(1, 2)},
    ):
        with pytest.raises(ReadError, match="not images"):
            from_bytes(save(tensors))
