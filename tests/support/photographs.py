"""Photographs as phones write them: JPEG files whose EXIF says where and how they were taken."""

from __future__ import annotations

import io
from typing import Any

from PIL import Image

from s2s_ray.geo.images import Pixels

FOCAL_MM, FOV = 26, 69.39
"""A phone's main camera: the focal length of a 36 mm film, and the field of view in degrees."""


def photograph(
    pixels: Pixels,
    position: tuple[float, float] | None = None,
    heading: float | None = None,
    reference: str = "T",
    focal_mm: int | None = None,
) -> bytes:
    """Return a JPEG file of the pixels with these tags."""
    tags = Image.Exif()
    gps: dict[int, Any] = {}
    if position is not None:
        latitude, longitude = position
        gps |= {1: "N" if latitude >= 0 else "S", 2: _sexagesimal(latitude)}
        gps |= {3: "E" if longitude >= 0 else "W", 4: _sexagesimal(longitude)}
    if heading is not None:
        gps |= {16: reference, 17: heading}
    if gps:
        tags.get_ifd(0x8825).update(gps)
    if focal_mm is not None:
        tags.get_ifd(0x8769)[0xA405] = focal_mm
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", exif=tags, quality=95, subsampling=0)
    return buffer.getvalue()


def _sexagesimal(degrees: float) -> tuple[float, float, float]:
    whole, rest = divmod(abs(degrees), 1)
    minutes, rest = divmod(60 * rest, 1)
    return whole, minutes, round(60 * rest, 4)
