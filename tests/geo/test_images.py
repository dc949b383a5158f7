"""Decoding of users' images, and encoding."""

from __future__ import annotations

import io
import struct
import warnings
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from s2s_ray.errors import UnreadableImageError
from s2s_ray.geo.images import (
    Encoding,
    Pixels,
    decode,
    decode_seen,
    encode,
)


@pytest.fixture
def pixels() -> Pixels:
    """A smooth picture of 12 rows and 30 columns, every pixel of a different colour."""
    rows, columns = np.mgrid[0:12, 0:30]
    return np.stack([rows * 20, columns * 8, 255 - rows * 10 - columns * 4], axis=-1).astype(np.uint8)


def save(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("encoding", ["png", "webp"])
def test_lossless_encodings_keep_the_pixels(pixels: Pixels, encoding: Encoding) -> None:
    data = encode(pixels, encoding)
    assert np.array_equal(decode(data), pixels)
    assert encode(pixels.copy(), encoding) == data


def test_jpeg_is_close(pixels: Pixels) -> None:
    data = encode(pixels, "jpeg")
    assert data[:2] == b"\xff\xd8"
    assert np.abs(decode(data).astype(int) - pixels).mean() < 3


def test_pixels_that_are_not_contiguous_are_encoded_as_they_look(pixels: Pixels) -> None:
    assert np.array_equal(decode(encode(pixels[:, ::-1], "png")), pixels[:, ::-1])


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF"])
def test_lossless_formats(pixels: Pixels, format: str) -> None:
    assert np.array_equal(decode(save(Image.fromarray(pixels), format)), pixels)


def test_grey_is_repeated(pixels: Pixels) -> None:
    grey = pixels[..., 0]
    assert np.array_equal(decode(save(Image.fromarray(grey), "PNG")), np.stack([grey] * 3, axis=-1))


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bits_keep_the_high_byte(pixels: Pixels, format: str) -> None:
    wide = pixels[..., 0].astype(np.uint16) * 256 + 255
    assert np.array_equal(decode(save(Image.fromarray(wide), format)), np.stack([pixels[..., 0]] * 3, axis=-1))


def test_transparency_is_dropped(pixels: Pixels) -> None:
    alpha = np.full((12, 30, 1), 7, np.uint8)
    data = save(Image.fromarray(np.concatenate([pixels, alpha], axis=-1)), "PNG")
    assert np.array_equal(decode(data), pixels)


def test_palette_with_and_without_transparency() -> None:
    image = Image.new("P", (5, 3), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    for options in ({}, {"transparency": 0}, {"transparency": b"\x00\x80"}):
        assert decode(save(image, "PNG", **options)).tolist() == [[[200, 100, 50]] * 5] * 3


def test_the_cameras_orientation_is_applied(pixels: Pixels) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the top of the scene is at the right edge
    assert np.array_equal(decode(save(Image.fromarray(pixels), "PNG", exif=exif)), np.rot90(pixels, -1))


@pytest.mark.parametrize("orientation", [*range(10), 99])
def test_every_orientation_is_applied_as_pillow_does(pixels: Pixels, orientation: Any) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = save(Image.fromarray(pixels), "PNG", exif=exif)
    with Image.open(io.BytesIO(data)) as image:
        expected = ImageOps.exif_transpose(image)
    assert np.array_equal(decode(data), np.asarray(expected))


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of the same faults
@pytest.mark.parametrize(
    "entry",
    [
        struct.pack(">HHI", 0x128, 2, 2) + b"a\0\0\0",  # a number that is a text
        struct.pack(">HHI", 0x9003, 3, 1) + b"\0\1\0\0",  # a date that is a number
        struct.pack(">HHI", 0x11A, 5, 1) + b"\xff\xff\xff\xff",  # a fraction beyond the end
        struct.pack(">HHI", 0x8769, 4, 1) + b"\xff\xff\xff\0",  # a directory beyond the end
        struct.pack(">HHI", 0x131, 99, 1) + b"\0\0\0\0",  # of no known type
    ],
)
def test_a_malformed_tag_leaves_the_orientation(entry: bytes, pixels: Pixels) -> None:
    turn = struct.pack(">HHI", 0x112, 3, 1) + struct.pack(">HH", 6, 0)
    directory = struct.pack(">H", 2) + b"".join(sorted([turn, entry])) + struct.pack(">I", 0)
    data = save(Image.fromarray(pixels), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08" + directory)
    assert decode(data).shape == (30, 12, 3)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of the same faults
@pytest.mark.parametrize(
    "tags", [b"", b"nothing", b"MM\0*\0\0\0\x08\xff\xff", b"II*\0", b"MM\0*\0\0\0\x08\0\1\1\x12\0\2"]
)
def test_tags_that_cannot_be_read_are_ignored(tags: bytes, pixels: Pixels) -> None:
    assert decode(save(Image.fromarray(pixels), "JPEG", exif=b"Exif\0\0" + tags)).shape == (12, 30, 3)


@pytest.mark.parametrize(
    ("mode", "format"),
    [*((mode, format) for mode in ("RGBA", "LA") for format in ("PNG", "WEBP", "TIFF")), ("RGBA", "GIF")],
)
def test_pixels_that_show_nothing_are_known(mode: str, format: str, pixels: Pixels) -> None:
    alpha = np.where(np.arange(30) < 10, 0, 255)[None].repeat(12, 0).astype(np.uint8)
    image = Image.fromarray(np.dstack([pixels, alpha])).convert(mode)
    data = save(image, format, **({"lossless": True} if format == "WEBP" else {}))
    found, seen = decode_seen(data)
    assert np.array_equal(found, decode(data))
    assert seen is not None
    assert np.array_equal(seen, alpha > 0)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "P"])
def test_an_image_without_transparency_is_seen_everywhere(mode: str, pixels: Pixels) -> None:
    assert decode_seen(save(Image.fromarray(pixels).convert(mode), "TIFF"))[1] is None


def test_a_colour_that_stands_for_transparent() -> None:
    grey = np.full((4, 6), 7, np.uint8)
    grey[:, :2] = 9
    for image, colour in (
        (Image.fromarray(grey), 7),
        (Image.fromarray(np.dstack([grey] * 3)), (7, 7, 7)),
        (Image.fromarray(grey.astype(np.uint16) * 100), 700),
    ):
        _, seen = decode_seen(save(image, "PNG", transparency=colour))
        assert seen is not None
        assert np.array_equal(seen, grey == 9)


def test_of_an_animation_the_first_image_counts(pixels: Pixels) -> None:
    first, second = Image.fromarray(pixels), Image.fromarray(255 - pixels)
    data = save(first, "PNG", save_all=True, append_images=[second])
    assert np.array_equal(decode(data), pixels)


def test_cmyk_jpeg(pixels: Pixels) -> None:
    assert decode(save(Image.fromarray(pixels).convert("CMYK"), "JPEG")).shape == pixels.shape


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is empty"),
        (b"<html>404 not found</html>", "is not a JPEG, PNG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not a JPEG, PNG"),
        (save(Image.new("F", (4, 4)), "TIFF"), "floating-point"),
        (save(Image.fromarray(np.full((4, 4), 1 << 20, np.int32)), "TIFF"), "32-bit"),
    ],
)
def test_what_is_no_image_is_refused_with_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(UnreadableImageError, match=reason):
        decode(data)


@pytest.mark.parametrize("encoding", ["png", "jpeg", "webp"])
def test_a_truncated_image_is_refused(pixels: Pixels, encoding: Encoding) -> None:
    noisy = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    with pytest.raises(UnreadableImageError, match="damaged or cut short"):
        decode(encode(noisy, encoding)[:-400])


def test_the_limit_of_pixels_is_checked_before_decoding() -> None:
    data = save(Image.new("1", (3000, 1000)), "PNG")
    assert decode(data, max_pixels=3_000_000).shape == (1000, 3000, 3)
    with pytest.raises(UnreadableImageError, match=r"has 3000 x 1000 pixels, more than 2,999,999"):
        decode(data, max_pixels=2_999_999)


@pytest.mark.parametrize("side", [9_500, 20_000])
def test_a_decompression_bomb_is_refused(side: int) -> None:
    header = save(Image.new("1", (1, 1)), "BMP")
    width = side.to_bytes(4, "little")
    with pytest.raises(UnreadableImageError, match="pixels"):
        decode(header[:18] + width + width + header[26:])


def test_no_damage_escapes_as_another_error(pixels: Pixels) -> None:
    image = Image.fromarray(pixels)
    files = [save(image, format) for format in ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "JPEG2000")]
    generator = np.random.default_rng(3)
    refused = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns about odd metadata
        for number in range(1400):
            data = bytearray(files[number % len(files)])
            for place in generator.integers(0, min(len(data), 200), 3):
                data[place] = generator.integers(0, 256)
            try:
                assert decode(bytes(data), max_pixels=100_000).dtype == np.uint8
            except UnreadableImageError:
                refused += 1
    assert 100 < refused < 1400
