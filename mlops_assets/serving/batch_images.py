"""Images of any number, some at a time: what `batch.py` scores.

Belongs here: which files are scored as what, reading arrays of images in pieces, and decoding image files beside each
other. Not here: reading a whole dataset (`data/images.py`), whose rules for names and pixels hold here too, and what a
version takes (`slot.py`).

Arrays are streamed and not mapped into memory: mapped pages count as the process's own until the kernel takes them
back, and a gzipped file cannot be mapped at all.
"""

from __future__ import annotations

import gzip
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, NamedTuple

import numpy as np
import polars as pl
import xxhash
from numpy.typing import NDArray

from mlops_assets.data.image_files import SUFFIXES, is_image
from mlops_assets.data.image_layouts import SourceFile
from mlops_assets.data.readers import ReadError
from mlops_assets.serving.batch_tables import Chunk, Chunks, opened, placed, told
from mlops_assets.serving.checks import InvalidInput

if TYPE_CHECKING:
    from mlops_assets.serving.slot import Slot

_IDX: Final = re.compile(r".*idx3-ubyte(\.gz)?")
_CIFAR_SIDE: Final = 32
_CIFAR_LABELS: Final = {"train.bin": 2, "test.bin": 2}
"""Bytes before each image of CIFAR-100's files; all others are taken for CIFAR-10's, with one."""

_GROUP: Final = 32  # image files that one thread decodes in a row


def belongs(path: str, layout: str) -> bool:
    """Tell by its name whether a file holds images that can be scored, in a pipeline whose images have that layout."""
    name = path.rpartition("/")[2].lower()
    if layout == "folder":
        return is_image(path)
    return bool(_IDX.fullmatch(name)) if layout == "idx" else name.endswith(".bin")


def array_chunks(slot: Slot, path: Path, name: str, rows: int) -> Chunks:
    """The images of an idx file or of a binary batch of CIFAR, gzipped or not.

    Raises:
        ReadError: The file is not what its name promises.
        InvalidInput: Names the first image that the version does not answer, counted from 1.
    """
    start = 0
    for pixels in _arrays(slot, path, name, rows):
        try:
            yield Chunk(None, slot.from_pixels(pixels))
        except InvalidInput as error:
            raise placed(error, name, start) from None
        start += len(pixels)


def _arrays(slot: Slot, path: Path, name: str, rows: int) -> Iterator[NDArray[np.uint8]]:
    channels, file = slot.contract.image_shape[2], path.name.lower()
    try:
        with opened(path) as stream:
            if _IDX.fullmatch(file):
                yield from _idx(stream, name, rows, channels)
            elif file.endswith(".bin"):
                yield from _cifar(stream, name, rows, channels, _CIFAR_LABELS.get(file, 1))
            else:
                known = ", ".join(SUFFIXES)
                raise ReadError(f"{name} holds no images by its name, which must end in {known}, idx3-ubyte or .bin.")
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ReadError(f"{name} is not a gzip file, or a damaged one: {error}.") from None
    except OSError as error:
        raise ReadError(f"{name} cannot be read: {error.strerror or error}.") from None


def _idx(stream: IO[bytes], name: str, rows: int, channels: int) -> Iterator[NDArray[np.uint8]]:
    start = stream.read(16)
    if len(start) < 16 or start[:4] != bytes([0, 0, 8, 3]):
        raise ReadError(f"{name} is no idx file of bytes in 3 dimensions: its header says otherwise.")
    count, height, width = (int.from_bytes(start[place : place + 4], "big") for place in (4, 8, 12))
    done = 0
    for data in _pieces(stream, height * width, rows, name):
        pixels = np.frombuffer(data, np.uint8).reshape(-1, height, width, 1)
        done += len(pixels)
        yield pixels if channels == 1 else np.repeat(pixels, channels, axis=3)
    if done != count:
        raise ReadError(f"{name} holds {done} images, not the {count} that its header says: fetch it again.")


def _cifar(stream: IO[bytes], name: str, rows: int, channels: int, labels: int) -> Iterator[NDArray[np.uint8]]:
    from mlops_assets.data.images import luma

    size = labels + 3 * _CIFAR_SIDE**2
    for data in _pieces(stream, size, rows, name):
        planes = np.frombuffer(data, np.uint8).reshape(-1, size)[:, labels:].reshape(-1, 3, _CIFAR_SIDE, _CIFAR_SIDE)
        pixels = planes.transpose(0, 2, 3, 1)
        yield luma(pixels) if channels == 1 else np.ascontiguousarray(pixels)


def _pieces(stream: IO[bytes], size: int, rows: int, name: str) -> Iterator[bytes]:
    """The records of so many bytes that follow in a file, many at a time."""
    while data := stream.read(max(size, 1) * rows):
        if not size or len(data) % size:
            raise ReadError(f"{name} ends within an image of {size} bytes: fetch it again.")
        yield data


def image_files(path: Path) -> list[SourceFile]:
    """The image files at or below a local path, by their paths below it.

    Raises:
        ReadError: There are none.
    """
    paths = sorted(path.rglob("*")) if path.is_dir() else [path]
    found = [
        SourceFile(each.relative_to(path).as_posix() if each != path else each.name, "", 0, each.read_bytes)
        for each in paths
        if each.is_file()
    ]
    found = [each for each in found if is_image(each.path)]
    if not found:
        raise ReadError(f"There is no image at {path}: the names of image files end in {', '.join(SUFFIXES)}.")
    return found


def file_chunks(slot: Slot, files: Iterable[SourceFile], rows: int, refused: list[str]) -> Chunks:
    """The images of files, decoded on all cores; one that is none, or that the version does not answer, is left out.

    Args:
        slot: It decodes them.
        files: The files.
        rows: At most, of a chunk.
        refused: Gets a sentence for each file that was left out.
    """
    left = iter(files)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        while group := [*islice(left, rows)]:
            parts = [group[start : start + _GROUP] for start in range(0, len(group), _GROUP)]
            decoded = [*pool.map(lambda part: _decoded(slot, part), parts)]
            for one in decoded:
                refused += one.refused
            pixels = [one.pixels for one in decoded if one.pixels is not None]
            if pixels:
                names = [name for one in decoded for name in one.names]
                yield Chunk(pl.DataFrame(names, ["key", "file"], orient="row"), np.concatenate(pixels))


class _Decoded(NamedTuple):
    names: list[tuple[str, str]]
    pixels: NDArray[np.uint8] | None
    refused: list[str]


def _decoded(slot: Slot, files: Sequence[SourceFile]) -> _Decoded:
    names, contents, refused = [file.path for file in files], [file.read() for file in files], list[str]()
    while contents:
        try:
            pixels = slot.from_files(contents)
        except InvalidInput as error:
            place = error.row if error.row is not None else 0
            refused.append(told(error, names[place]))
            del names[place], contents[place]
        else:
            hashes = [xxhash.xxh3_128_hexdigest(content) for content in contents]
            return _Decoded([*zip(names, hashes, strict=True)], pixels, refused)
    return _Decoded([], None, refused)
