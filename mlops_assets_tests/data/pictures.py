"""Image files and datasets that tests write for themselves."""

import gzip
import io
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray
from PIL import Image

from mlops_assets.data.images import SourceFile

NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


class Files(dict[str, bytes]):
    """Contents by path, as the sources that a reader takes; `read` lists the paths that it asked for."""

    def __init__(self, contents: Mapping[str, bytes]) -> None:
        super().__init__(contents)
        self.read: list[str] = []

    def sources(self) -> list[SourceFile]:
        def source(path: str, content: bytes) -> SourceFile:
            def read() -> bytes:
                self.read.append(path)
                return content

            return SourceFile(path, xxhash.xxh3_128_hexdigest(content), len(content), read)

        return [source(path, content) for path, content in self.items()]


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(seed: int, *shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def png(seed: int, *shape: int) -> bytes:
    return encoded(Image.fromarray(noise(seed, *(shape or (6, 5, 3)))))


def idx(values: NDArray[np.uint8]) -> bytes:
    return bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


def mnist(train: int = 5, test: int = 3, zipped: bool = False) -> dict[str, bytes]:
    ending = ".gz" if zipped else ""
    files = {}
    for seed, (stem, count) in enumerate({"train": train, "t10k": test}.items()):
        files[f"{stem}-images-idx3-ubyte{ending}"] = idx(noise(seed, count, 4, 3))
        files[f"{stem}-labels-idx1-ubyte{ending}"] = idx(np.arange(count, dtype=np.uint8))
    return {name: gzip.compress(content) if zipped else content for name, content in files.items()}
