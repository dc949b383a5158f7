"""Metadata of a picture's file: where it was taken, where the camera looked, how much it saw.

Metadata are hints. What is malformed, out of range or contradictory is ignored, with a warning that says what and why.
"""

from __future__ import annotations

import io
import math
import re
import struct
import zlib
from dataclasses import dataclass
from typing import Literal, NamedTuple

from PIL import Image

from s2s_ray.geo.camera import Crop, Projection
from s2s_ray.geo.exif import Exif, read_exif
from s2s_ray.geo.gpano import panorama_of, read_gpano
from s2s_ray.geo.images import FORMATS

COMPASS_SPREAD = 5.0
MAGNETIC_SPREAD = 15.0
"""Standard deviations of bearings in EXIF, in degrees. A phone's compass is right to about 5 degrees. Magnetic north
differs from true north by less than 15 degrees nearly everywhere people live, and a file does not say by how much.
GPano's bearings come from the same compasses, so they have the spread of those."""
FILM_WIDTH_MM = 36.0
_ASPECT_TOLERANCE = 0.02
_WIDEST_PHOTOGRAPH = 2 * (1 - _ASPECT_TOLERANCE)
_SIDEWAYS = (5, 6, 7, 8)
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')  # as Pillow finds it
_PNG, _XMP_KEYWORD, _MOST_XMP = b"\x89PNG\r\n\x1a\n", b"XML:com.adobe.xmp", (1 << 20) + 1
_RAW_KEYWORD, _MOST_RAW = b"Raw profile type exif", 1 << 22


@dataclass(frozen=True, slots=True)
class PhotoMetadata:
    """All that a file says of its picture. None: the file does not say it, or says something that cannot be.

    Attributes:
        position: latitude and longitude in WGS 84 degrees.
        heading: compass bearing of the picture's middle column in degrees, 0 up to below 360.
        heading_spread: degrees by which it may be wrong either way (one standard deviation); 180 if it is unknown.
        heading_reference: the north that it is measured from.
        fov: horizontal field of view in degrees.
        projection: how the picture shows directions.
        pitch, roll: of the camera, in degrees, as in `Camera`.
        crop: directions of the edges of a panorama.
        warnings: what was ignored or is doubtful, and why, in sentences.
    """

    position: tuple[float, float] | None = None
    heading: float | None = None
    heading_spread: float = 180.0
    heading_reference: Literal["true", "magnetic"] | None = None
    fov: float | None = None
    projection: Projection | None = None
    pitch: float | None = None
    roll: float | None = None
    crop: Crop | None = None
    warnings: tuple[str, ...] = ()


class _Blocks(NamedTuple):
    """A picture's size, turned by EXIF's orientation or not, its EXIF and its XMP."""

    width: int
    height: int
    turned: bool
    exif: bytes | None
    xmp: bytes | None


def read_metadata(data: bytes) -> PhotoMetadata:
    """Return what an image file says of its picture, in EXIF and in XMP GPano; never raises for malformed metadata.

    JPEG, PNG, WebP and TIFF files are understood. GPano comes before EXIF where both say something.
    """
    try:
        blocks = _blocks(data)
    except Exception as error:  # Pillow raises nearly anything for a damaged file
        reason = str(error).replace(repr(error), "")[:100] or type(error).__name__
        if "cannot identify" in reason:
            reason = "no known image format"
        return PhotoMetadata(warnings=(f"the file's metadata cannot be read ({reason})",))
    exif = Exif() if blocks.exif is None else read_exif(blocks.exif)
    packet = exif.values.get("XMP") if blocks.xmp is None else blocks.xmp
    properties, warnings = read_gpano(packet) if isinstance(packet, bytes) else ({}, [])
    notes = [*exif.warnings, *warnings]
    width, height = blocks.width, blocks.height
    if _is_sideways(exif, packet, blocks.turned):
        width, height = height, width
    panorama = panorama_of(properties, width, height, notes)
    is_sweep = width / height >= _WIDEST_PHOTOGRAPH and panorama.projection != "equirectangular"
    heading, spread, reference = _heading(exif, panorama.heading, is_sweep, notes)
    fov, projection = panorama.fov, panorama.projection
    if projection is None and "ProjectionType" not in properties:
        fov = _photograph_fov(exif, width, height, notes)
        projection = None if fov is None else "rectilinear"
    return PhotoMetadata(
        position=_position(exif, notes),
        heading=heading,
        heading_spread=spread,
        heading_reference=reference,
        fov=fov,
        projection=projection,
        pitch=panorama.pitch,
        roll=panorama.roll,
        crop=panorama.crop,
        warnings=tuple(notes),
    )


def _blocks(data: bytes) -> _Blocks:
    """Return what an image file has. Raises whatever Pillow does for a damaged file."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        width, height = image.size
        if data.startswith(_PNG):
            return _Blocks(width, height, False, *_png_blocks(data))
        if image.format == "TIFF":
            return _Blocks(width, height, True, data, None)
        exif, xmp = (image.info.get(name) for name in ("exif", "xmp"))
    return _Blocks(width, height, False, *(block if isinstance(block, bytes) else None for block in (exif, xmp)))


def _is_sideways(exif: Exif, packet: object, turned: bool) -> bool:
    """Return whether `decode` exchanges the sides of a picture whose size was read.

    Args:
        packet: the XMP, whose orientation counts where EXIF has none.
        turned: the size was turned by EXIF's orientation already.
    """
    if "Orientation" in exif.values:
        return not turned and exif.number("Orientation") in _SIDEWAYS
    found = _XMP_ORIENTATION.search(packet) if isinstance(packet, bytes) else None
    return found is not None and int(found[1]) in _SIDEWAYS


def _png_blocks(data: bytes) -> tuple[bytes | None, bytes | None]:
    """Return EXIF and XMP of a PNG file; Pillow would decode all pixels to find those that follow them."""
    exif = xmp = raw = None
    at = len(_PNG)
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        at += 12 + length
        if kind == b"eXIf":
            exif = exif or body
        elif kind == b"iTXt" and body.startswith(_XMP_KEYWORD + b"\0"):
            xmp = xmp or _international_text(body)
        elif kind in (b"tEXt", b"zTXt") and body.startswith(_RAW_KEYWORD + b"\0"):
            raw = raw or _raw_profile(body[len(_RAW_KEYWORD) + 1 :], compressed=kind == b"zTXt")
    return exif or raw, xmp


def _raw_profile(text: bytes, *, compressed: bool) -> bytes | None:
    """Return the EXIF that older programs wrote into PNG files as hexadecimal digits, behind its kind and length."""
    try:
        digits = zlib.decompressobj().decompress(text[1:], _MOST_RAW) if compressed else text
        return bytes.fromhex("".join(digits.decode("ascii").split("\n")[3:]))
    except (zlib.error, ValueError):
        return None


def _international_text(body: bytes) -> bytes | None:
    compressed, rest = body[len(_XMP_KEYWORD) + 1 : len(_XMP_KEYWORD) + 2], body[len(_XMP_KEYWORD) + 3 :]
    parts = rest.split(b"\0", 2)
    if len(parts) < 3:
        return None
    if compressed != b"\1":
        return parts[2]
    try:
        return zlib.decompressobj().decompress(parts[2], _MOST_XMP)
    except zlib.error:
        return b""


def _heading(
    exif: Exif, of_panorama: float | None, is_sweep: bool, notes: list[str]
) -> tuple[float | None, float, Literal["true", "magnetic"] | None]:
    direction = exif.number("GPSImgDirection")
    if direction is not None and not 0 <= direction <= 360:
        notes.append(f"EXIF GPSImgDirection={direction:g} is ignored: expected 0 to 360 degrees")
        direction = None
    if of_panorama is not None:
        if direction is not None and abs((direction - of_panorama + 180) % 360 - 180) > 45:
            notes.append(
                f"EXIF GPSImgDirection={direction:.1f} is ignored: GPano PoseHeadingDegrees says {of_panorama:.1f}"
            )
        return of_panorama % 360, COMPASS_SPREAD, "true"
    if direction is not None and is_sweep:
        notes.append(
            f"EXIF GPSImgDirection={direction:.1f} is ignored: the picture is made of several photographs, and the "
            "file does not say which of them looked there"
        )
        direction = None
    if direction is None:
        return None, 180.0, None
    reference = exif.letter("GPSImgDirectionRef")
    if reference == "T":
        return direction % 360, COMPASS_SPREAD, "true"
    if reference == "M":
        notes.append(
            f"EXIF GPSImgDirection={direction:.1f} is measured from magnetic north, which differs from true north: "
            f"it may be wrong by {MAGNETIC_SPREAD:g} degrees"
        )
        return direction % 360, MAGNETIC_SPREAD, "magnetic"
    named = "missing" if reference is None else _shown(reference)
    notes.append(
        f"EXIF GPSImgDirectionRef is {named}, expected T (true) or M (magnetic): GPSImgDirection={direction:.1f} "
        f"may be wrong by {MAGNETIC_SPREAD:g} degrees"
    )
    return direction % 360, MAGNETIC_SPREAD, None


def _photograph_fov(exif: Exif, width: int, height: int, notes: list[str]) -> float | None:
    """Return the horizontal field of view of a photograph by its focal length in 35 mm terms.

    The longer side of the picture is taken as the 36 mm of the film.
    """
    focal = exif.number("FocalLengthIn35mmFilm")
    if focal is None or focal == 0:  # 0 stands for unknown
        return None
    if not 1 <= focal <= 10_000:
        notes.append(f"EXIF FocalLengthIn35mmFilm={focal:g} is ignored: expected 1 to 10,000 mm")
        return None
    if max(width / height, height / width) >= _WIDEST_PHOTOGRAPH:
        notes.append(
            f"EXIF FocalLengthIn35mmFilm={focal:g} is ignored: the picture, {width} x {height} pixels, is made of "
            "several photographs or was cropped"
        )
        return None
    columns, rows = exif.number("PixelXDimension"), exif.number("PixelYDimension")
    if columns is not None and rows is not None and columns > 0 and rows > 0:
        long, short = max(columns, rows), min(columns, rows)
        if abs(long / short / (max(width, height) / min(width, height)) - 1) > _ASPECT_TOLERANCE:
            notes.append(
                f"EXIF FocalLengthIn35mmFilm={focal:g} is ignored: the picture, {width} x {height} pixels, was cropped "
                f"from {columns:g} x {rows:g}"
            )
            return None
    film = FILM_WIDTH_MM if width >= height else FILM_WIDTH_MM * width / height
    return 2 * math.degrees(math.atan(film / 2 / focal))


def _position(exif: Exif, notes: list[str]) -> tuple[float, float] | None:
    """Return the position in EXIF. Warnings do not say it: they may be logged."""
    if not {"GPSLatitude", "GPSLongitude"} & set(exif.values):
        return None
    if exif.letter("GPSStatus") == "V":
        notes.append("EXIF GPSLatitude and GPSLongitude are ignored: GPSStatus=V says that they are not measured")
        return None
    latitude = _angle(exif, "GPSLatitude", "NS", 90, notes)
    longitude = _angle(exif, "GPSLongitude", "EW", 180, notes)
    if latitude is None or longitude is None:
        return None
    if latitude == 0 and longitude == 0:
        notes.append("EXIF GPSLatitude and GPSLongitude are ignored: both are 0, as cameras write without a fix")
        return None
    return latitude, longitude


def _angle(exif: Exif, name: str, letters: str, most: float, notes: list[str]) -> float | None:
    parts, letter = exif.values.get(name), exif.letter(f"{name}Ref")
    if not isinstance(parts, tuple) or not 1 <= len(parts) <= 3 or not math.isfinite(sum(parts)):
        notes.append(f"EXIF {name} is ignored: expected degrees, minutes and seconds")
        return None
    if letter is None or letter not in letters:
        named = "missing" if letter is None else _shown(letter)
        notes.append(f"EXIF {name} is ignored: {name}Ref is {named}, expected {letters[0]} or {letters[1]}")
        return None
    degrees, minutes, seconds = (*parts, 0.0, 0.0)[:3]
    angle = degrees + minutes / 60 + seconds / 3600
    if not (0 <= minutes <= 60 and 0 <= seconds <= 60 and degrees >= 0 and angle <= most):
        notes.append(f"EXIF {name} is ignored: expected 0 to {most:g} degrees, minutes and seconds up to 60")
        return None
    return -angle if letter == letters[1] else angle


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:37]}...")
