"""Images of a request: from JSON, tensors and files to pixels of the shape that a version takes.

Belongs here: shapes, types and decoding, refused by row. Not here: what the schema says of an image (`checks.py`).
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mlops_assets.data.readers import ReadError
from mlops_assets.serving.checks import InvalidInput

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mlops_assets.serving.contract import RawContract


def in_shape(pixels: Any, shape: tuple[int, ...], field: str = "input") -> NDArray[np.uint8]:
    """Pixels as uint8 (rows, *shape); whole numbers from 0 to 255 of another type are taken, a single channel may lack.

    Args:
        pixels: An array or nested lists.
        shape: Height, width and channels.
        field: What the request calls them.

    Raises:
        InvalidInput: They are something else, or there are none.
    """
    try:
        given = np.asarray(pixels)
    except (ValueError, TypeError, OverflowError):
        raise InvalidInput(f"the images of '{field}' are not all of one shape", field=field) from None
    if given.shape[1:] == shape[:2] and shape[2] == 1:
        given = given[..., np.newaxis]
    if given.shape[1:] != shape:
        raise InvalidInput(
            f"'{field}' has the shape {list(given.shape)}; an image's is [rows, {', '.join(map(str, shape))}] "
            "(height, width, channels)",
            field=field,
        )
    if not len(given):
        raise InvalidInput("there are no images; send at least one", field=field)
    if given.dtype == np.uint8:
        return given
    if given.dtype.kind not in "iuf":
        raise InvalidInput(f"'{field}' has values that are not whole numbers from 0 to 255", field=field)
    wrong = ~((given >= 0) & (given <= 255) & (given == np.floor(given))).reshape(len(given), -1).all(axis=1)
    if wrong.any():
        row = int(wrong.argmax())
        raise InvalidInput(
            f"row {row}: '{field}' has values that are not whole numbers from 0 to 255", field=field, row=row
        )
    whole: NDArray[np.uint8] = given.astype(np.uint8)
    return whole


def decoded(files: Sequence[bytes], contract: RawContract) -> NDArray[np.uint8]:
    """Decode image files as the pipeline's reader does.

    Raises:
        InvalidInput: One is no image, or of another size than the version takes.
    """
    from mlops_assets.data.image_files import decode

    assert contract.images is not None
    height, width, _ = contract.image_shape
    made = []
    for row, file in enumerate(files):
        try:
            pixels = decode(file, contract.images.mode, contract.images.size)
        except ReadError as error:
            raise InvalidInput(f"image {row} cannot be read: {error}", field="files", row=row) from None
        if pixels.values.shape[:2] != (height, width):
            raise InvalidInput(
                f"image {row} has {pixels.height} x {pixels.width} pixels (height x width), not {height} x {width}",
                field="files",
                row=row,
            )
        made.append(pixels.values)
    if not made:
        raise InvalidInput("there are no images; send at least one", field="files")
    return np.stack(made)


def from_records(rows: Sequence[Mapping[str, Any]], contract: RawContract) -> NDArray[np.uint8]:
    """Images as JSON has them: all rows `{"pixels": [[...]]}`, or all `{"file": BASE64 of an image file}`.

    Raises:
        InvalidInput: Names field and row.
    """
    if not rows:
        raise InvalidInput("there are no rows; send at least one")
    for row, given in enumerate(rows):
        if not isinstance(given, Mapping) or set(given) not in ({"pixels"}, {"file"}) or set(given) != set(rows[0]):
            raise InvalidInput(
                f"row {row} is no image: send `pixels` (height x width x channels) or `file` (an image file in "
                "base64), the same in all rows",
                row=row,
            )
    if "pixels" in rows[0]:
        return in_shape([given["pixels"] for given in rows], contract.image_shape, "pixels")
    return decoded([_file(given["file"], row) for row, given in enumerate(rows)], contract)


def _file(text: object, row: int) -> bytes:
    try:
        return base64.b64decode(str(text).encode(), validate=True)
    except (binascii.Error, ValueError):
        raise InvalidInput(f"row {row}: 'file' is not base64", field="file", row=row) from None
