"""Image datasets as one array of pixels and one table with a row per image.

Belongs here: the two, their making from files in any layout, and their bytes. Does not belong here: one image file
(`image_files`), MNIST's and CIFAR's own formats (`image_layouts`), and judging what was read (`validation`).
"""

from __future__ import annotations

import json
import math
import os
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mlops_assets.data.config import ImagesConfig
from mlops_assets.data.image_files import SUFFIXES, decode, is_image
from mlops_assets.data.image_layouts import Batch, SourceFile, cifar_batches, idx_batches
from mlops_assets.data.readers import ReadError

__all__ = ["Decoded", "Images", "SourceFile", "from_bytes", "read_images", "to_bytes"]

Progress = Callable[[int, int], None]

_PARTS: Final = {
    "train": "train",
    "test": "test",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
}
_NAMED: Final = 5  # files in a sentence
_TASK: Final = 32  # files that one thread decodes in a row
_SMALL: Final = 8192  # bytes on average: below, threads wait for each other longer than they decode
_CHANNELS: Final = {"L": 1, "RGB": 3}
_TENSOR: Final = "images"


@dataclass(frozen=True, eq=False)
class Images:
    """An image dataset.

    Attributes:
        table: One row per image, sorted by `key`: `key` and `label`; `part` (train, test, validation) where the layout
            says so; `height` and `width` of the stored image, upright, before any resize; `mean`, the mean of its
            pixels, 0 to 255; and in layout `folder` the content hash `file`.
        pixels: Shape (images, height, width, channels), C-contiguous; row i belongs to row i of the table.
    """

    table: pl.DataFrame
    pixels: NDArray[np.uint8]


class Decoded(NamedTuple):
    """What was read, and how many images were decoded for it; the others were `known`, or equal files."""

    images: Images
    decoded: int
    reused: int


def read_images(
    files: Sequence[SourceFile],
    config: ImagesConfig,
    *,
    known: Images | None = None,
    on_progress: Progress | None = None,
) -> Decoded:
    """Read a dataset of images; equal files give equal images, whatever their order.

    * `folder`: `CLASS/.../name.png` and other kinds (`image_files.decode`), keyed by path. If all images lie below
      directories named train, test and validation (or val, valid), these are the parts and the classes lie in them.
      One directory around all of that is passed over. Files that are no images by their name are ignored.
    * `idx`: MNIST's four files, gzipped or not, keyed `train/00017` and `test/00017`, labelled by the number as text.
    * `cifar`: CIFAR-10 and CIFAR-100 (fine labels), pickled or binary, keyed `data_batch_1/00017`; labels are the
      names from the meta file, or without it the number as text.

    Args:
        files: All files of the dataset; their `read` is called from several threads.
        config: Layout, mode and size.
        known: Images decoded before with an equal `config`: in layout `folder`, files of equal content are taken from
            there and not even read.
        on_progress: Called with the steps done and their number: images to decode, or batches.

    Raises:
        ReadError: Files are missing, damaged, hostile or of different sizes, or lie where no class can be told. All
            images are looked at before.
    """
    if config.layout == "folder":
        return _read_folder(files, config, known, on_progress)
    batches = idx_batches(files) if config.layout == "idx" else cifar_batches(files)
    images = _stack(batches, config.mode, on_progress)
    return Decoded(images, decoded=images.table.height, reused=0)


def to_bytes(pixels: NDArray[np.uint8]) -> bytes:
    """Encode pixels as safetensors with one tensor, `images`; equal pixels give equal bytes."""
    from safetensors.numpy import save

    encoded: bytes = save({_TENSOR: np.ascontiguousarray(pixels)})
    return encoded


def from_bytes(data: bytes) -> NDArray[np.uint8]:
    """Decode what `to_bytes` gave: a read-only view of `data`, since the library's own reader copies.

    Raises:
        ReadError: The bytes are something else.
    """
    try:
        start = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:start])[_TENSOR]
        shape = tuple(int(side) for side in header["shape"])
        whole = header["dtype"] == "U8" and header["data_offsets"] == [0, len(data) - start]
        if whole and math.prod(shape) == len(data) - start and min(shape, default=0) >= 0:
            return np.frombuffer(data, dtype=np.uint8, offset=start).reshape(shape)
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
        pass
    raise ReadError(f"These {len(data)} bytes are not images in a safetensors file.")


class _Place(NamedTuple):
    """One image file, and what its path says."""

    file: SourceFile
    label: str
    part: str | None


def _read_folder(
    files: Sequence[SourceFile], config: ImagesConfig, known: Images | None, on_progress: Progress | None
) -> Decoded:
    places = _places(files)
    old = {} if known is None else dict(zip(known.table["file"], range(known.table.height), strict=True))
    new: dict[str, int] = {}
    for row, place in enumerate(places):
        if place.file.hash not in old:
            new.setdefault(place.file.hash, row)
    work = _Work([place.file for place in places], config)
    if known is not None and config.size is None and len(new) < len(places):
        work.allocate(*known.pixels.shape[1:3])
    work.run(list(new.values()), on_progress)
    work.raise_faults()
    if known is not None:
        sides = known.table.select("height", "width").to_numpy()
    for row, place in enumerate(places):
        if known is not None and (source := old.get(place.file.hash)) is not None:
            work.put(row, known.pixels[source], sides[source])
        elif (source := new[place.file.hash]) != row:
            work.put(row, work.pixels[source], work.sides[source])
    work.raise_odd_sizes()
    table = pl.DataFrame(
        {
            "key": [place.file.path for place in places],
            "label": [place.label for place in places],
            "part": pl.Series([place.part for place in places], dtype=pl.String),
            "height": work.sides[:, 0],
            "width": work.sides[:, 1],
            "mean": _means(work.pixels),
            "file": [place.file.hash for place in places],
        }
    )
    if places[0].part is None:
        table = table.drop("part")
    return Decoded(Images(table, work.pixels), decoded=len(new), reused=len(places) - len(new))


def _places(files: Sequence[SourceFile]) -> list[_Place]:
    """Take class and part from each image's path, in the order of the paths."""
    images = sorted((file for file in files if is_image(file.path)), key=lambda file: file.path)
    if not images:
        raise ReadError(
            f"None of the {len(files)} files is an image ({', '.join(SUFFIXES)}): put images into one directory per "
            "class."
        )
    split = [file.path.split("/") for file in images]
    depth = 0
    while all(len(parts) > depth + 2 and parts[: depth + 1] == split[0][: depth + 1] for parts in split):
        if split[0][depth] in _PARTS:
            break
        depth += 1  # one directory around all classes, as archives have it
    parted = all(len(parts) > depth + 1 and parts[depth] in _PARTS for parts in split)
    place = depth + parted
    if bare := [file.path for file, parts in zip(images, split, strict=True) if len(parts) < place + 2]:
        raise ReadError(
            f"{_counted(len(bare), 'image lies', 'images lie')} in no class's directory ({_some(bare)}): move each "
            "into a directory named after its class."
        )
    return [
        _Place(file, parts[place], _PARTS[parts[depth]] if parted else None)
        for file, parts in zip(images, split, strict=True)
    ]


class _Work:
    """The array that threads decode into, and what they could not decode.

    Attributes:
        pixels: Shape (files, height, width, channels); of no size before the first image says which.
        sides: Height and width of each stored image, shape (files, 2).
    """

    def __init__(self, files: Sequence[SourceFile], config: ImagesConfig) -> None:
        self._files = files
        self._config = config
        self._faults: dict[str, str] = {}
        self._lock = threading.Lock()
        self.pixels = np.empty((0, 0, 0, 0), dtype=np.uint8)
        self.sides = np.zeros((len(files), 2), dtype=np.int32)
        if config.size is not None:
            self.allocate(*config.size)

    def allocate(self, height: int, width: int) -> None:
        """Make room for all images, unless there is.

        Raises:
            ReadError: The memory is too small.
        """
        import psutil

        with self._lock:
            if self.pixels.size:
                return
            shape = (len(self._files), height, width, _CHANNELS[self._config.mode])
            needed, free = math.prod(shape), psutil.virtual_memory().available
            if needed > free:
                raise ReadError(
                    f"{_counted(shape[0], 'image', 'images')} of {height} x {width} pixels take {needed / 1e9:.1f} GB "
                    f"of memory, of which {free / 1e9:.1f} GB are free: set a smaller `size: [height, width]`."
                )
            self.pixels = np.empty(shape, dtype=np.uint8)

    def put(self, row: int, pixels: NDArray[np.uint8], sides: Sequence[int] | NDArray[np.int32]) -> None:
        """Fill one row; an image of another size leaves only its size, for `raise_odd_sizes`."""
        self.sides[row] = sides
        if self._config.size is not None or pixels.shape[:2] == self.pixels.shape[1:3]:
            self.pixels[row] = pixels

    def run(self, rows: Sequence[int], on_progress: Progress | None) -> None:
        """Decode the files of these rows."""
        done = 0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's remarks on odd files name none of them
            for count in self._decoded(rows):
                done += count
                if on_progress is not None:
                    on_progress(done, len(rows))

    def _decoded(self, rows: Sequence[int]) -> Iterator[int]:
        """Decode task by task; large files on all cores, since decoders release the GIL."""
        tasks = [rows[start : start + _TASK] for start in range(0, len(rows), _TASK)]
        if sum(self._files[row].bytes for row in rows) < _SMALL * len(rows):
            yield from map(self._decode, tasks)
        else:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                yield from pool.map(self._decode, tasks)

    def raise_faults(self) -> None:
        """Refuse all files that could not be decoded, equal ones too."""
        names = [f"{file.path}: {self._faults[file.hash]}" for file in self._files if file.hash in self._faults]
        if names:
            raise ReadError(
                f"{len(names)} of {_counted(len(self._files), 'image', 'images')} cannot be decoded ({_some(names)}): "
                "replace or remove them."
            )

    def raise_odd_sizes(self) -> None:
        """Refuse images of more than one size, unless they were resized."""
        if self._config.size is not None:
            return
        counts = Counter((height, width) for height, width in self.sides.tolist())
        (usual, _), *others = counts.most_common()
        if others:
            odd = [
                f"{file.path}: {height} x {width}"
                for file, (height, width) in zip(self._files, self.sides.tolist(), strict=True)
                if (height, width) != usual
            ]
            raise ReadError(
                f"{_counted(len(odd), 'image is', 'images are')} not {usual[0]} x {usual[1]} (height x width) as the "
                f"others are ({_some(odd)}): set `size: [{usual[0]}, {usual[1]}]`, or replace them."
            )

    def _decode(self, rows: Sequence[int]) -> int:
        for row in rows:
            file = self._files[row]
            content = file.read()
            try:
                pixels, height, width = decode(content, self._config.mode, self._config.size)
            except ReadError as error:
                self._faults[file.hash] = str(error)
            else:
                self.allocate(height, width)
                self.put(row, pixels, (height, width))
        return len(rows)


def _stack(batches: Sequence[Callable[[], Batch]], mode: str, on_progress: Progress | None) -> Images:
    """Put batches one below the other, holding one of them at a time beside the whole."""
    pixels = np.empty((0, 0, 0, 0), dtype=np.uint8)
    columns: dict[str, list[str]] = {"key": [], "label": [], "part": []}
    for done, load in enumerate(batches, start=1):
        batch = load()
        start, count = len(pixels), len(batch.pixels)
        shape = (*batch.pixels.shape[1:3], _CHANNELS[mode])
        if start and shape != pixels.shape[1:]:
            raise ReadError(
                f"The images of {batch.name} are {shape[0]} x {shape[1]} pixels, those of {columns['key'][0]} "
                f"{pixels.shape[1]} x {pixels.shape[2]}: files of one dataset belong together."
            )
        pixels.resize((start + count, *shape), refcheck=False)  # in place: nothing else refers to it
        pixels[start:] = luma(batch.pixels) if mode == "L" and batch.pixels.shape[3] == 3 else batch.pixels
        columns["key"] += [f"{batch.name}/{number:05d}" for number in range(count)]
        columns["label"] += batch.labels
        columns["part"] += [batch.part] * count
        if on_progress is not None:
            on_progress(done, len(batches))
    height, width = (pl.lit(side, dtype=pl.Int32) for side in pixels.shape[1:3])
    table = pl.DataFrame(columns).with_columns(
        height=height, width=width, mean=pl.Series(_means(pixels), dtype=pl.Float32)
    )
    if not table["key"].is_sorted():  # in a batch of more than 100,000
        order = table["key"].arg_sort()
        table, pixels = table[order], pixels[order.to_numpy()]
    return Images(table, pixels)


def luma(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Grey from RGB, ITU-R 601-2 in 16-bit fixed point, as Pillow has it."""
    red, green, blue = (pixels[..., channel].astype(np.uint32) for channel in range(3))
    grey: NDArray[np.uint8] = ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16).astype(np.uint8)
    return grey[..., np.newaxis]


def _means(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Mean of each image; whole sums, so that it is the same however the images were put together."""
    sums = pixels.reshape(len(pixels), -1).sum(axis=1, dtype=np.uint64)
    means: NDArray[np.float32] = (sums / math.prod(pixels.shape[1:])).astype(np.float32)
    return means


def _some(names: Sequence[str]) -> str:
    return ", ".join([*names[:_NAMED], *(["..."] if len(names) > _NAMED else [])])


def _counted(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"
