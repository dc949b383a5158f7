"""Image files as pixels: decoding and encoding. Preparation, training and the service decode nowhere else."""

from __future__ import annotations

import io
import struct
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from s2s_ray.errors import TooManyPixelsError, UnreadableImageError, ViewError

Pixels = NDArray[np.uint8]
Seen = NDArray[np.bool_]
"""Which pixels of an image show anything, H W."""
Descriptors = NDArray[np.float32]
"""Unit descriptors of images, N x D."""
Layout = Literal["auto", "north-up", "polar"]
LAYOUTS: tuple[Layout, ...] = ("auto", "north-up", "polar")
Encoding = Literal["png", "jpeg", "webp"]
# Street-level panoramas reach 13312 x 6656; just below the size at which Pillow itself warns.
MAX_PIXELS = 89_000_000
# Only what is needed: some other plugins start interpreters (EPS). JPEG includes the MPO files of stereo cameras.
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "JPEG2000")
_TURNS = {  # by the value of the tag Orientation; 1 is upright, and no other value has a meaning
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Raised by Pillow's decoders on damaged files; Pillow's own `open` treats the last three as damage, too.
_DAMAGE = (OSError, ValueError, SyntaxError, EOFError, IndexError, TypeError, struct.error)


def decode(data: bytes, max_pixels: int = MAX_PIXELS) -> Pixels:
    """Return the pixels of an encoded image, H W 3 RGB.

    The camera's orientation tag is applied; grey, palette, CMYK and 16-bit images become 8-bit RGB (the high byte);
    transparency is dropped; an animation or a multi-page file gives its first image.

    Raises:
        UnreadableImageError: not an image, damaged, truncated, or more than `max_pixels` pixels. The message is a
            clause that continues "the image ...", suitable for the person who sent it.
    """
    return _decode(data, max_pixels, seen=False)[0]


def decode_seen(data: bytes, max_pixels: int = MAX_PIXELS) -> tuple[Pixels, Seen | None]:
    """Return the pixels of an encoded image as `decode` does, and which of them show anything, H W.

    Wholly transparent pixels show nothing. None: the image has no transparency.

    Raises:
        UnreadableImageError: as `decode` does.
    """
    return _decode(data, max_pixels, seen=True)


def _decode(data: bytes, max_pixels: int, *, seen: bool) -> tuple[Pixels, Seen | None]:
    if not data:
        raise UnreadableImageError("is empty (0 bytes)")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > max_pixels:
                raise TooManyPixelsError(_too_large(image.width, image.height, max_pixels))
            image.load()
            turn = _turn(image)
            upright = image if turn is None else image.transpose(turn)
            return _rgb(upright), _seen(upright) if seen else None
    except UnreadableImageError:
        raise
    except UnidentifiedImageError:
        raise UnreadableImageError("is not a JPEG, PNG, WebP, TIFF, BMP, GIF or JPEG 2000 file") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise TooManyPixelsError(f"has more than {max_pixels:,} pixels; make it smaller") from None
    except _DAMAGE as error:
        raise UnreadableImageError(f"is damaged or cut short ({error})") from None


def encode(pixels: Pixels, encoding: Encoding) -> bytes:
    """Encode H W 3 RGB pixels; equal pixels give equal bytes. PNG and WebP are lossless, JPEG has quality 95."""
    buffer = io.BytesIO()
    image = Image.fromarray(np.ascontiguousarray(pixels))
    if encoding == "png":
        image.save(buffer, "PNG", compress_level=1)
    elif encoding == "webp":
        image.save(buffer, "WEBP", lossless=True, quality=0, method=0)
    else:
        image.save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()


def checked(pixels: Pixels) -> Pixels:
    """Return h w 3 pixels, uint8. Raises ViewError for any other array."""
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != "uint8" or not pixels.size:
        raise ViewError(f"image has shape {pixels.shape} and dtype {pixels.dtype}: expected h w 3, uint8")
    return pixels


def _too_large(width: int, height: int, max_pixels: int) -> str:
    return f"has {width} x {height} pixels, more than {max_pixels:,} in all; make it smaller"


def _turn(image: Image.Image) -> Image.Transpose | None:
    """Return how to set an image upright by the camera's orientation tag; None if it is, or the tags are unreadable.

    That tag is read alone: Pillow's `exif_transpose` writes all of them again, and fails if any is malformed.
    """
    try:
        found = image.getexif().get(ExifTags.Base.Orientation)
    except _DAMAGE:
        return None
    return _TURNS.get(found) if isinstance(found, int) else None


def _seen(image: Image.Image) -> Seen | None:
    if not image.has_transparency_data:
        return None
    seen: Seen
    if image.mode.startswith("I"):  # the grey value that stands for transparent
        seen = np.asarray(image) != image.info["transparency"]
    else:
        seen = np.asarray(image.convert("RGBA").getchannel("A")) > 0
    return seen


def _rgb(image: Image.Image) -> Pixels:
    if image.mode.startswith("I;16") or image.mode == "I":
        wide = np.asarray(image).astype(np.int64)
        if wide.min() < 0 or wide.max() > 0xFFFF:
            raise UnreadableImageError("has 32-bit pixels; expected 8 or 16 bits a channel")
        return np.repeat((wide >> 8).astype(np.uint8)[..., None], 3, axis=-1)
    if image.mode == "F":
        raise UnreadableImageError("has floating-point pixels; expected 8 or 16 bits a channel")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))
