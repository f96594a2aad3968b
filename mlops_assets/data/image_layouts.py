"""The files of MNIST and CIFAR, as batches of pixels and labels.

Belongs here: finding, checking and parsing files of the layouts `idx` and `cifar`. Does not belong here: what becomes
of the batches (`images`), and reading pickles without running them (`array_pickle`).

Sources: Y. LeCun, C. Cortes and C. Burges, "The MNIST database of handwritten digits" (the idx format);
A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images" (2009).
"""

from __future__ import annotations

import builtins
import gzip
import io
import math
import re
import zlib
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlops_assets.data import array_pickle
from mlops_assets.data.image_files import is_image
from mlops_assets.data.readers import ReadError

_IDX: Final = re.compile(r"(train|t10k|test)-(images|labels)[-.]idx[13]-ubyte(\.gz)?")
_GZIP: Final = b"\x1f\x8b"
_DEFLATE: Final = 1032  # times its size is the most that compressed data can stand for
_SIDE: Final = 32  # pixels of a CIFAR image
_IMAGE: Final = 3 * _SIDE * _SIDE  # bytes: red, then green, then blue


class SourceFile(NamedTuple):
    """One file of a dataset.

    Attributes:
        path: Relative to the dataset's root, with forward slashes.
        hash: Content hash (xxh3-128, hexadecimal), as Oxen has it.
        bytes: Its size.
        read: Gives the verified content.
    """

    path: str
    hash: str
    bytes: int
    read: Callable[[], builtins.bytes]


class Batch(NamedTuple):
    """Images that lie in one file.

    Attributes:
        name: Where their keys begin.
        part: `train` or `test`.
        pixels: Shape (images, height, width, channels), of 1 or 3 channels; possibly a view.
        labels: One per image.
    """

    name: str
    part: str
    pixels: NDArray[np.uint8]
    labels: list[str]


def belongs(path: str, layout: str) -> bool:
    """Tell by its name whether a file is one that a layout (`folder`, `idx`, `cifar`) reads."""
    if layout == "folder":
        return is_image(path)
    name = path.rpartition("/")[2]
    return bool(_idx_place(name)) if layout == "idx" else any(form.place(name) for form in _FORMS)


def idx_batches(files: Iterable[SourceFile]) -> list[Callable[[], Batch]]:
    """Find MNIST's four files, whichever directory they lie in; what is called gives their content.

    Raises:
        ReadError: One of them is missing or there twice.
    """
    found = _pick(files, _idx_place)
    batches: list[Callable[[], Batch]] = []
    for part, stem in (("test", "t10k"), ("train", "train")):
        images, labels = (found.get(f"{part} {kind}") for kind in ("images", "labels"))
        if images is None or labels is None:
            missing = f"{stem}-images-idx3-ubyte" if images is None else f"{stem}-labels-idx1-ubyte"
            raise ReadError(f"There is no file {missing} or {missing}.gz, which layout `idx` needs: add it.")
        batches.append(partial(_idx_batch, part, images, labels))
    return batches


def cifar_batches(files: Sequence[SourceFile]) -> list[Callable[[], Batch]]:
    """Find the batches of CIFAR-10 or CIFAR-100, pickled or binary, whichever directory they lie in.

    Raises:
        ReadError: They are missing, of two kinds, or one is there twice; or the file with the labels' names is damaged.
    """
    picked = [(form, _pick(files, form.place)) for form in _FORMS]
    picked = [(form, found) for form, found in picked if found.keys() - {form.meta}]
    if not picked:
        raise ReadError(
            "There is no file data_batch_1 or data_batch_1.bin (CIFAR-10), train or train.bin (CIFAR-100), which "
            "layout `cifar` needs: add it, unpacked."
        )
    if len(picked) > 1:
        one, other = (min(found.keys() - {form.meta}) for form, found in picked[:2])
        raise ReadError(f"{one} and {other} belong to different kinds of CIFAR: keep one kind.")
    [(form, found)] = picked
    meta = found.pop(form.meta, None)
    if form.test not in found or len(found) == 1:
        missing = "training batch" if form.test in found else form.test
        raise ReadError(
            f"Beside {min(file.path for file in found.values())} there is no {missing}: add what is missing."
        )
    names = None if meta is None else _label_names(form, meta)
    return [
        partial(_cifar_batch, form, "test" if name == form.test else "train", found[name], names)
        for name in sorted(found)
    ]


class _Form(NamedTuple):
    """How one kind of CIFAR names its files and what lies in them.

    Attributes:
        train: Matches the names of training batches.
        test: Name of the test batch.
        meta: Name of the file with the labels' names.
        labels: Pickled: the labels' key.
        names: Pickled: the key of the labels' names.
        label_bytes: Binary: bytes before each image, of which the last is the label.
    """

    train: re.Pattern[str]
    test: str
    meta: str
    labels: str = ""
    names: str = ""
    label_bytes: int = 0

    def place(self, name: str) -> str:
        """The name itself if it is one of this kind's."""
        return name if name in {self.test, self.meta} or self.train.fullmatch(name) else ""


_FORMS: Final = (
    _Form(re.compile(r"data_batch_[0-9]{1,3}"), "test_batch", "batches.meta", "labels", "label_names"),
    _Form(re.compile(r"train"), "test", "meta", "fine_labels", "fine_label_names"),
    _Form(re.compile(r"data_batch_[0-9]{1,3}\.bin"), "test_batch.bin", "batches.meta.txt", label_bytes=1),
    _Form(re.compile(r"train\.bin"), "test.bin", "fine_label_names.txt", label_bytes=2),
)


def _pick(files: Iterable[SourceFile], place: Callable[[str], str]) -> dict[str, SourceFile]:
    """Take the files whose name has a place in the layout, by that place."""
    found: dict[str, SourceFile] = {}
    for file in files:
        where = place(file.path.rpartition("/")[2])
        if not where:
            continue
        if where in found:
            raise ReadError(f"{found[where].path} and {file.path} have the same place in the dataset: keep one.")
        found[where] = file
    return found


def _idx_place(name: str) -> str:
    match = _IDX.fullmatch(name)
    return f"{'train' if match[1] == 'train' else 'test'} {match[2]}" if match else ""


def _idx_batch(part: str, images: SourceFile, labels: SourceFile) -> Batch:
    pixels, numbers = _idx_array(images, dimensions=3), _idx_array(labels, dimensions=1)
    if len(pixels) != len(numbers):
        raise ReadError(f"{images.path} has {len(pixels)} images, and {labels.path} {len(numbers)} labels.")
    return Batch(part, part, pixels[..., np.newaxis], [str(number) for number in numbers.tolist()])


def _idx_array(file: SourceFile, *, dimensions: int) -> NDArray[np.uint8]:
    """Parse an idx file of bytes; a gzipped one is unpacked no further than its own header says."""
    data = file.read()
    header = 4 + 4 * dimensions
    try:
        stream = gzip.GzipFile(fileobj=io.BytesIO(data)) if data.startswith(_GZIP) else io.BytesIO(data)
        start = stream.read(header)
        shape = tuple(int.from_bytes(start[place : place + 4], "big") for place in range(4, header, 4))
        size = math.prod(shape)
        if start[:4] != bytes([0, 0, 8, dimensions]) or len(start) < header:
            raise ReadError(
                f"{file.path} is no idx file of bytes in {dimensions} dimensions: its header says otherwise."
            )
        if not size:
            raise ReadError(f"{file.path} holds nothing: its header says {' x '.join(map(str, shape))}.")
        content = stream.read(size + 1) if size <= len(data) * _DEFLATE else b""
    except (EOFError, OSError, zlib.error) as error:
        raise ReadError(f"{file.path} is a damaged gzip file ({error}): fetch it again.") from None
    if len(content) != size:
        what = "more" if len(content) > size else "less"
        raise ReadError(f"{file.path} holds {what} than the {size} bytes that its header says: fetch it again.")
    return np.frombuffer(content, dtype=np.uint8).reshape(shape)


def _label_names(form: _Form, file: SourceFile) -> list[str]:
    try:
        if form.label_bytes:
            names = file.read().decode().split()
        else:
            texts = _load(file)[form.names]
            names = [text.decode() if isinstance(text, bytes) else str(text) for text in texts]
    except (UnicodeDecodeError, TypeError, KeyError):
        names = []
    if not names or len(set(names)) < len(names):
        raise ReadError(f"{file.path} gives no list of distinct label names: fetch it again.")
    return names


def _cifar_batch(form: _Form, part: str, file: SourceFile, names: list[str] | None) -> Batch:
    rows, numbers = _binary(form, file) if form.label_bytes else _pickled(form, file)
    if names is not None and max(numbers) >= len(names):
        raise ReadError(f"{file.path} has the label {max(numbers)}, but there are names for {len(names)} only.")
    planes = rows.reshape(-1, 3, _SIDE, _SIDE)
    labels = [str(number) if names is None else names[number] for number in numbers]
    return Batch(file.path.rpartition("/")[2].removesuffix(".bin"), part, planes.transpose(0, 2, 3, 1), labels)


def _binary(form: _Form, file: SourceFile) -> tuple[NDArray[np.uint8], list[int]]:
    data = file.read()
    size = form.label_bytes + _IMAGE
    if not data or len(data) % size:
        raise ReadError(f"{file.path} has {len(data)} bytes, which is no multiple of {size}: fetch it again.")
    rows = np.frombuffer(data, dtype=np.uint8).reshape(-1, size)
    return rows[:, form.label_bytes :], rows[:, form.label_bytes - 1].tolist()


def _pickled(form: _Form, file: SourceFile) -> tuple[NDArray[np.uint8], list[int]]:
    content = _load(file)
    rows, labels = content.get("data"), content.get(form.labels)
    if not isinstance(rows, np.ndarray) or rows.dtype != np.uint8 or rows.shape[1:] != (_IMAGE,) or not len(rows):
        raise ReadError(f"{file.path} has no `data` of {_IMAGE} bytes an image: fetch it again.")
    numbers = labels.tolist() if isinstance(labels, np.ndarray) else labels
    if not isinstance(numbers, list) or not all(type(number) is int and number >= 0 for number in numbers):
        raise ReadError(f"{file.path} has no `{form.labels}` that are whole numbers: fetch it again.")
    if len(numbers) != len(rows):
        raise ReadError(f"{file.path} has {len(rows)} images and {len(numbers)} labels: fetch it again.")
    return rows, numbers


def _load(file: SourceFile) -> dict[str, Any]:
    try:
        return array_pickle.load(file.read())
    except ReadError as error:
        raise ReadError(f"{file.path} is {error}: fetch it again from a source that you trust.") from None
