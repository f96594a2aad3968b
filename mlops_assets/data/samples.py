"""Data that ships inside a dependency, for examples and tests.

Belongs here: Fisher's iris and scanned digits. Does not belong here: what needs the network, or a user's own data.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import polars as pl

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_FAINT: Final = 18  # 1 % of the digits


def iris() -> pl.DataFrame:
    """Fisher's iris as printed in 1936: `id` 1 to 150, four lengths in cm, `species` as text.

    Source: R. A. Fisher, "The use of multiple measurements in taxonomic problems", Annals of Eugenics 7 (1936), as
    scikit-learn ships it.
    """
    from sklearn.datasets import load_iris

    data = load_iris()
    names = ("sepal_length", "sepal_width", "petal_length", "petal_width")
    return pl.DataFrame(
        {
            "id": range(1, 151),
            **{name: data.data[:, place] for place, name in enumerate(names)},
            "species": data.target_names[data.target].tolist(),
        },
        schema_overrides={"id": pl.Int64},
    )


def iris_uci() -> pl.DataFrame:
    """The widely copied iris file of the UCI repository, which differs from Fisher's paper in flowers 35 and 38.

    Source: J. C. Bezdek et al., "Will the real iris data please stand up?", IEEE Transactions on Fuzzy Systems 7
    (1999).
    """
    copied = pl.DataFrame(
        {
            "id": [35, 38],
            "sepal_length": [4.9, 4.9],
            "sepal_width": [3.1, 3.1],
            "petal_length": [1.5, 1.5],
            "petal_width": [0.1, 0.1],
        }
    )
    return iris().update(copied, on="id")


def digits() -> dict[str, bytes]:
    """1,797 handwritten digits of 8 x 8 pixels, as grey PNG files by path: `3/0004.png` is the fourth, a three.

    The counts of ink, 0 to 16, are scaled to 0..255. The same bytes come from every release of every library.

    Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository
    (1998), the test part, as scikit-learn ships it.
    """
    return {path: _png(pixels) for path, pixels in _scans().items()}


def digits_changed() -> dict[str, bytes]:
    """18 files of `digits` (1 %) as a colleague replaces them: the faintest scans, made again with half more light.

    Their classes stay what they were. The other files are left out: they do not change.
    """
    scans = _scans()
    faint = sorted(scans, key=lambda path: (int(scans[path].sum()), path))[:_FAINT]
    return {path: _png((scans[path].astype("uint16") * 3 // 2).clip(max=255).astype("uint8")) for path in sorted(faint)}


def _scans() -> Mapping[str, NDArray[np.uint8]]:
    from sklearn.datasets import load_digits

    data = load_digits()
    pixels = ((data.images * 255 + 8) // 16).astype("uint8")
    return {
        f"{label}/{number:04d}.png": scan
        for number, (label, scan) in enumerate(zip(data.target, pixels, strict=True), start=1)
    }


def _png(pixels: NDArray[np.uint8]) -> bytes:
    """Encode grey pixels without compression: what a compressor makes of them changes from release to release."""
    height, width = pixels.shape
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    header = struct.pack(">2I5B", width, height, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 0)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )
