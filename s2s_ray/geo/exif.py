"""The tags of EXIF that say where a picture was taken, where the camera looked, and how wide it sees.

The block is a small TIFF file. It is read here because each damaged tag shall be ignored alone, with its name.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field

Value = tuple[float, ...] | bytes
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8}
_FORMATS = {3: "H", 4: "I", 5: "II", 8: "h", 9: "i", 10: "ii"}
_MOST_TAGS, _MOST_BYTES = 2_000, 1 << 24
_EXIF, _GPS = 0x8769, 0x8825
_NAMES = {
    "main": {0x0112: "Orientation", 0x02BC: "XMP", _EXIF: "Exif IFD", _GPS: "GPS IFD"},
    "exif": {0xA002: "PixelXDimension", 0xA003: "PixelYDimension", 0xA405: "FocalLengthIn35mmFilm"},
    "gps": {
        1: "GPSLatitudeRef", 2: "GPSLatitude", 3: "GPSLongitudeRef", 4: "GPSLongitude", 9: "GPSStatus",
        16: "GPSImgDirectionRef", 17: "GPSImgDirection",
    },
}  # fmt: skip


@dataclass(slots=True)
class Exif:
    """Values of tags by their names in the standard, and what could not be read of them, in sentences.

    Numbers are tuples, NaN where a fraction has the denominator 0; texts and other bytes are `bytes`.
    """

    values: dict[str, Value] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def number(self, name: str) -> float | None:
        """Return a tag of one number; None if it is missing. A tag of another kind is NaN."""
        found = self.values.get(name)
        if found is None:
            return None
        return found[0] if isinstance(found, tuple) and len(found) == 1 else math.nan

    def letter(self, name: str) -> str | None:
        """Return a tag of one letter, in capitals; None if it is missing or empty."""
        found = self.values.get(name)
        if not isinstance(found, bytes):
            return None if found is None else repr(found)
        text = found.split(b"\0")[0].strip().decode("latin-1").upper()
        return text or None


def read_exif(block: bytes) -> Exif:
    """Return the tags of an EXIF block, which may begin with `Exif\\0\\0`, or of a TIFF file."""
    exif = Exif()
    data = block.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(data[:4])
    if order is None or len(data) < 8:
        exif.warnings.append("EXIF is ignored: it does not begin as a TIFF file does")
        return exif
    (start,) = struct.unpack_from(order + "I", data, 4)
    _read_directory(data, order, start, "main", exif)
    for tag, name in ((_EXIF, "exif"), (_GPS, "gps")):
        pointer = exif.number(_NAMES["main"][tag])
        if pointer is not None and math.isfinite(pointer):
            _read_directory(data, order, int(pointer), name, exif)
    return exif


def _read_directory(data: bytes, order: str, start: int, kind: str, exif: Exif) -> None:
    names = _NAMES[kind]
    if not 8 <= start <= len(data) - 2:
        exif.warnings.append(f"EXIF: the {kind} directory is ignored: it begins at byte {start} of {len(data)}")
        return
    (count,) = struct.unpack_from(order + "H", data, start)
    if count > _MOST_TAGS or start + 2 + 12 * count > len(data):
        exif.warnings.append(f"EXIF: the {kind} directory is cut short: it should have {count} tags")
        count = min(count, _MOST_TAGS, (len(data) - start - 2) // 12)
    for number in range(count):
        at = start + 2 + 12 * number
        tag, form, length = struct.unpack_from(order + "HHI", data, at)
        if tag not in names:
            continue
        size = _SIZES.get(form, 0) * length
        if size > 4:
            (at,) = struct.unpack_from(order + "I", data, at + 8)
        else:
            at += 8
        if not 0 < size <= _MOST_BYTES or at + size > len(data):
            exif.warnings.append(f"EXIF {names[tag]} is ignored: it is damaged ({length} values of type {form})")
            continue
        exif.values[names[tag]] = _value(data[at : at + size], order, form, length)


def _value(raw: bytes, order: str, form: int, length: int) -> Value:
    if form not in _FORMATS:
        return raw
    numbers = struct.unpack(order + _FORMATS[form] * length, raw)
    if len(_FORMATS[form]) == 1:
        return tuple(map(float, numbers))
    return tuple(top / bottom if bottom else math.nan for top, bottom in zip(numbers[::2], numbers[1::2], strict=True))
