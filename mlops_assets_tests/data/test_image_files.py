import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from mlops_assets.data.image_files import MOST_PIXELS, decode, is_image
from mlops_assets.data.readers import ReadError
from mlops_assets_tests.data.pictures import encoded, noise

RGB = noise(1, 6, 5, 3)
GREY = noise(2, 6, 5)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("cat/1.png", True),
        ("cat/1.JPEG", True),
        ("cat/1.tif", True),
        ("cat/README.md", False),
        ("cat/Thumbs.db", False),
        (".DS_Store", False),
        ("cat/._1.png", False),
        (".thumbnails/1.png", False),
        ("__MACOSX/cat/1.png", False),
        ("cat/png", False),
    ],
)
def test_the_name_tells_whether_a_file_is_an_image(path: str, expected: bool) -> None:
    assert is_image(path) is expected


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_kinds_without_loss_come_back_as_they_were(kind: str) -> None:
    colour = decode(encoded(Image.fromarray(RGB), kind), "RGB", None)
    assert np.array_equal(colour.values, RGB)
    assert (colour.height, colour.width) == (6, 5)
    grey = decode(encoded(Image.fromarray(GREY), kind), "L", None)
    assert np.array_equal(grey.values, GREY[..., None])


@pytest.mark.parametrize(("kind", "options"), [("JPEG", {"quality": 95}), ("WEBP", {"quality": 95}), ("GIF", {})])
def test_kinds_with_loss_come_back_about_as_they_were(kind: str, options: dict[str, int]) -> None:
    smooth = np.linspace(0, 255, 32 * 32).reshape(32, 32).astype(np.uint8)
    values = decode(encoded(Image.fromarray(smooth), kind, **options), "L", None).values
    assert np.abs(values[..., 0].astype(int) - smooth).max() < 24


def test_grey_is_repeated_for_colour_and_colour_is_weighted_for_grey() -> None:
    repeated = decode(encoded(Image.fromarray(GREY)), "RGB", None).values
    assert np.array_equal(repeated, np.repeat(GREY[..., None], 3, axis=2))
    weighted = decode(encoded(Image.fromarray(RGB)), "L", None).values[..., 0]
    assert np.abs(weighted - RGB @ [0.299, 0.587, 0.114]).max() < 1


def test_16_bit_grey_is_scaled_not_clipped() -> None:
    deep = np.array([[0, 128, 129, 257], [32768, 65407, 65408, 65535]], dtype=np.uint16)
    expected = [[0, 0, 1, 1], [128, 255, 255, 255]]
    for stored in (deep, deep.astype(">u2")):
        for kind in ("PNG", "TIFF"):
            values = decode(
                encoded(Image.fromarray(stored.astype(np.uint16) if kind == "PNG" else stored), kind), "L", None
            ).values
            assert values[..., 0].tolist() == expected


def test_one_bit_and_palette_images_have_their_colours() -> None:
    bits = Image.fromarray(np.array([[0, 255], [255, 0]], dtype=np.uint8)).convert("1")
    assert decode(encoded(bits), "L", None).values[..., 0].tolist() == [[0, 255], [255, 0]]
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putpixel((1, 0), 1)
    assert decode(encoded(palette), "RGB", None).values.tolist() == [[[10, 20, 30], [200, 100, 50]]]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_pixels_are_shown_over_black(mode: str) -> None:
    image = Image.new(mode, (3, 1))
    for place, alpha in enumerate((0, 128, 255)):
        image.putpixel((place, 0), (200, 200, 200, alpha) if mode == "RGBA" else (200, alpha))
    assert decode(encoded(image), "RGB", None).values[0, :, 0].tolist() == [0, 100, 200]
    assert decode(encoded(image), "L", None).values[0, :, 0].tolist() == [0, 100, 200]


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_transparent_colour_of_a_palette_is_black(kind: str) -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([250, 20, 30, 200, 100, 50])
    palette.putpixel((1, 0), 1)
    assert decode(encoded(palette, kind, transparency=0), "RGB", None).values.tolist() == [[[0, 0, 0], [200, 100, 50]]]


def test_cmyk_becomes_the_colour_that_it_prints() -> None:
    values = decode(encoded(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "JPEG", quality=95), "RGB", None).values
    assert np.abs(values.astype(int) - [0, 255, 255]).max() < 6


def test_the_first_frame_counts() -> None:
    frames = [Image.fromarray(np.full((4, 4), shade, dtype=np.uint8)) for shade in (10, 200)]
    for kind in ("GIF", "TIFF", "WEBP", "PNG"):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        assert decode(data, "L", None).values.mean() < 30


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_a_camera_that_was_turned_is_turned_back(kind: str) -> None:
    half = np.zeros((4, 8), dtype=np.uint8)
    half[:, :4] = 255  # bright on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to see it upright
    image = decode(encoded(Image.fromarray(half), kind, exif=exif), "L", None)
    assert (image.height, image.width) == image.values.shape[:2] == (8, 4)
    assert image.values[:3].mean() > 200
    assert image.values[5:].mean() < 50


def test_resizing_averages_instead_of_picking_pixels() -> None:
    board = ((np.indices((64, 64)).sum(axis=0) % 2) * 255).astype(np.uint8)
    image = decode(encoded(Image.fromarray(board)), "L", (4, 8))
    assert image.values.shape == (4, 8, 1)
    assert (image.height, image.width) == (64, 64)
    assert np.abs(image.values.astype(int) - 127).max() < 10


def _claiming(width: int, height: int) -> bytes:
    """A PNG whose header lies about its size."""
    data = bytearray(encoded(Image.fromarray(GREY)))
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    return bytes(data)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n(x) print\n%%EOF\n"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"not an image at all", "not an image of a known kind"),
        (EPS, "not an image of a known kind"),
        (encoded(Image.fromarray(GREY), "PPM"), "not an image of a known kind"),
        (encoded(Image.fromarray(noise(3, 64, 64, 3)))[:-900], "damaged"),
        (encoded(Image.fromarray(noise(3, 64, 64, 3)), "JPEG")[:700], "damaged"),
        (_claiming(8192, 8193), "8192 x 8193 pixels, more than 67 million"),
        (_claiming(100_000, 100_000), "more than 67 million pixels"),
        (encoded(Image.fromarray(GREY.astype(np.float32)), "TIFF"), "32-bit pixels"),
        (encoded(Image.fromarray(GREY.astype(np.int32)), "TIFF"), "32-bit pixels"),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_what_is_no_image_is_refused_with_the_reason(data: bytes, reason: str) -> None:
    with pytest.raises(ReadError, match=reason):
        decode(data, "RGB", (8, 8))


def test_the_limit_is_where_it_says() -> None:
    assert MOST_PIXELS == 8192 * 8192
    with Image.open(io.BytesIO(_claiming(8192, 8192))) as image:
        assert image.size == (8192, 8192)
    with pytest.raises(ReadError, match="damaged"):  # looked into, not refused for its size
        decode(_claiming(8192, 8192), "L", None)
