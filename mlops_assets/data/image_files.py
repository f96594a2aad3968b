"""One image file to pixels, by Pillow.

Belongs here: which files count as images, and how every colour model becomes RGB or grey. Does not belong here: what
the directories mean and how many images make a dataset (`images`).
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlops_assets.data.readers import ReadError

if TYPE_CHECKING:
    from PIL import Image as PillowImage

SUFFIXES: Final = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")
"""File name endings, in lower case, that `is_image` takes for images."""

MOST_PIXELS: Final = 1 << 26
"""An image of more pixels is refused before it is decoded: a file of some kilobytes may stand for gigabytes."""

# Pillow must not try its other decoders on a hostile file: that for EPS starts a program
_FORMATS: Final = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF")


class Pixels(NamedTuple):
    """A decoded image.

    Attributes:
        values: Shape (height, width, channels).
        height: In pixels, of the stored image, upright, before any resize.
        width: Likewise.
    """

    values: NDArray[np.uint8]
    height: int
    width: int


def is_image(path: str) -> bool:
    """Tell by its name whether a file is an image; hidden files and what macOS adds to archives are none."""
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in path.split("/"))
    return not hidden and path.lower().endswith(SUFFIXES)


def decode(data: bytes, mode: str, size: Sequence[int] | None) -> Pixels:
    """Decode the first frame of a PNG, JPEG, BMP, GIF, WebP or TIFF file.

    The EXIF orientation is applied. Transparent pixels are shown over black, CMYK becomes RGB, 16-bit grey is scaled
    from 0..65535 to 0..255, and grey is ITU-R 601-2 luma, as in Pillow.

    Args:
        data: The file's content.
        mode: `RGB` (3 channels) or `L` (grey, 1 channel).
        size: Height and width to resize to, bilinear and antialiased; None leaves the image as it is.

    Raises:
        ReadError: With the reason alone; the caller knows the file's name.
    """
    from PIL import Image, UnidentifiedImageError

    if not data:
        raise ReadError("empty")
    try:
        return _pixels(data, mode, size)
    except ReadError:
        raise
    except UnidentifiedImageError:
        raise ReadError("not an image of a known kind") from None
    except Image.DecompressionBombError:
        raise ReadError(f"more than {MOST_PIXELS / 1e6:.0f} million pixels") from None
    except Exception as error:  # noqa: BLE001 - decoders raise anything on damaged files, and that is the finding
        reason = next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")
        raise ReadError(f"damaged: {reason}") from None


def _pixels(data: bytes, mode: str, size: Sequence[int] | None) -> Pixels:
    from PIL import Image, ImageOps

    with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
        if image.width * image.height > MOST_PIXELS:
            raise ReadError(f"{image.width} x {image.height} pixels, more than {MOST_PIXELS / 1e6:.0f} million")
        ImageOps.exif_transpose(image, in_place=True)
        plain = _in_mode(image, mode)
        if size is not None and plain.size != (size[1], size[0]):
            plain = plain.resize((size[1], size[0]), Image.Resampling.BILINEAR)
        values = np.asarray(plain, dtype=np.uint8)
        return Pixels(values.reshape(*values.shape[:2], -1), image.height, image.width)


def _in_mode(image: PillowImage.Image, mode: str) -> PillowImage.Image:
    from PIL import Image

    if image.mode in {"I", "F"}:
        raise ReadError("32-bit pixels, whose range nobody knows; save it with 8 or 16 bits")
    if image.mode.startswith("I;16"):  # Pillow itself clips at 255
        wide = np.asarray(image).astype(np.uint32)
        image = Image.fromarray(((wide * 255 + 32767) // 65535).astype(np.uint8))
    elif image.has_transparency_data:
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        black.alpha_composite(image.convert("RGBA"))
        image = black
    if image.mode not in {"1", "L", "RGB"}:
        image = image.convert("RGB")
    return image if image.mode == mode else image.convert(mode)
