"""The properties of XMP GPano (Google's Photo Sphere metadata), by their names in that schema."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple
from xml.parsers import expat

from s2s_ray.geo.camera import Crop, Projection

NAMESPACE = "http://ns.google.com/photos/1.0/panorama/"
_PREFIX = NAMESPACE + " "
_MOST_BYTES, _MOST_ELEMENTS, _DEEPEST, _LONGEST = 1 << 20, 20_000, 64, 200
_LARGEST_PANORAMA, _ASPECT_TOLERANCE = 10_000_000.0, 0.02
_SIZES = (
    "FullPanoWidthPixels", "FullPanoHeightPixels", "CroppedAreaImageWidthPixels", "CroppedAreaImageHeightPixels",
    "CroppedAreaLeftPixels", "CroppedAreaTopPixels",
)  # fmt: skip
_PROJECTIONS: dict[str, Projection] = {"equirectangular": "equirectangular", "cylindrical": "cylindrical"}


class _UnsafeError(Exception):
    """A packet with a construction that XMP does not have, or that is too large to be one."""


@dataclass(slots=True)
class _Reader:
    """Collector of the properties in a packet: attributes, or elements with a text."""

    found: dict[str, str] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    elements: int = 0
    text: str = ""

    def start(self, name: str, attributes: dict[str, str]) -> None:
        """Take the properties among an element's attributes."""
        self.elements += 1
        self.names.append(name)
        self.text = ""
        if self.elements > _MOST_ELEMENTS or len(self.names) > _DEEPEST:
            raise _UnsafeError("it has too many elements")
        for key, value in attributes.items():
            self._take(key, value)

    def end(self, name: str) -> None:
        """Take an element's text if the element is a property."""
        self._take(name, self.text)
        self.names.pop()
        self.text = ""

    def characters(self, text: str) -> None:
        """Collect the text of a property."""
        if self.names and self.names[-1].startswith(_PREFIX) and len(self.text) <= _LONGEST:
            self.text += text

    def _take(self, name: str, value: str) -> None:
        value = value.strip()
        if name.startswith(_PREFIX) and value:
            self.found.setdefault(name.removeprefix(_PREFIX), value[:_LONGEST])


def read_gpano(packet: bytes) -> tuple[dict[str, str], list[str]]:
    """Return the texts of the GPano properties of an XMP packet, and in sentences why it was ignored.

    Packets with a document type are refused, so that no entity is ever expanded.
    """
    marker = NAMESPACE.encode()
    if not any(mark in packet for mark in (marker, NAMESPACE.encode("utf-16-le"), NAMESPACE.encode("utf-16-be"))):
        return {}, []
    if len(packet) > _MOST_BYTES:
        return {}, [f"XMP is ignored: it has {len(packet):,} bytes, more than {_MOST_BYTES:,}"]
    reader = _Reader()
    parser = expat.ParserCreate(namespace_separator=" ")
    parser.buffer_text = True
    parser.StartElementHandler = reader.start
    parser.EndElementHandler = reader.end
    parser.CharacterDataHandler = reader.characters
    parser.StartDoctypeDeclHandler = _refuse
    parser.EntityDeclHandler = _refuse
    try:
        parser.Parse(packet.strip(b"\0\t\r\n "), True)
    except (expat.ExpatError, _UnsafeError, ValueError, LookupError) as error:
        return {}, [f"XMP is ignored: it is not a valid packet ({error})"]
    return reader.found, []


def _refuse(*_: object) -> None:
    raise _UnsafeError("it has a document type")


class Panorama(NamedTuple):
    """The content of GPano, as in `PhotoMetadata`."""

    heading: float | None = None
    fov: float | None = None
    projection: Projection | None = None
    pitch: float | None = None
    roll: float | None = None
    crop: Crop | None = None


def panorama_of(properties: dict[str, str], width: int, height: int, notes: list[str]) -> Panorama:
    """Return what GPano says of a picture that is `width` x `height` pixels."""
    pitch = _property(properties, "PosePitchDegrees", -90, 90, notes)
    roll = _property(properties, "PoseRollDegrees", -180, 180, notes)
    heading = _property(properties, "PoseHeadingDegrees", -180, 360, notes)
    name = properties.get("ProjectionType", "equirectangular").lower()
    projection = _PROJECTIONS.get(name)
    if projection is None:
        notes.append(f"GPano ProjectionType={name!r} is ignored: expected equirectangular or cylindrical")
        return _without_edges(Panorama(heading, None, None, pitch, roll), properties, width, height, notes)
    crop = _area(properties, projection, width, height, notes)
    if crop is None:
        stated = projection if "ProjectionType" in properties else None
        return _without_edges(Panorama(heading, None, stated, pitch, roll), properties, width, height, notes)
    # The heading is that of the middle of the full panorama.
    middle = None if heading is None else heading + (crop.left + crop.right) / 2
    return Panorama(middle, crop.right - crop.left, projection, pitch, roll, crop)


def _without_edges(
    panorama: Panorama, properties: dict[str, str], width: int, height: int, notes: list[str]
) -> Panorama:
    """Return a panorama of unknown edges without its pose, unless the picture can be the full panorama.

    The pose is that of the full panorama's middle, which need not lie in the middle of a part of it.
    """
    posed = any(value is not None for value in (panorama.heading, panorama.pitch, panorama.roll))
    sizes = [name for name in _SIZES if name in properties]
    if not posed or (not sizes and width / height >= 2 * (1 - _ASPECT_TOLERANCE)):
        return panorama
    reason = "its sizes are not usable" if sizes else f"it has no sizes, and the picture is {width} x {height} pixels"
    notes.append(f"GPano's pose is ignored: {reason}, so which part of the panorama the picture shows is unknown")
    return Panorama(projection=panorama.projection)


def _area(properties: dict[str, str], projection: Projection, width: int, height: int, notes: list[str]) -> Crop | None:
    """Return the directions of the edges of a panorama; None if GPano does not say them, or contradicts itself."""
    full_width, full_height, area_width, area_height, left, top = (
        _property(properties, name, low, _LARGEST_PANORAMA, notes)
        for name, low in zip(_SIZES, (1, 1, 1, 1, 0, 0), strict=True)
    )
    if full_width is None or full_height is None:
        return None
    area_width = full_width if area_width is None else area_width
    area_height = full_height if area_height is None else area_height
    left = (full_width - area_width) / 2 if left is None else left
    top = (full_height - area_height) / 2 if top is None else top
    for side, offset, part, full in (
        ("Width", left, area_width, full_width), ("Height", top, area_height, full_height)
    ):  # fmt: skip
        if not 0 <= offset <= full - part:
            notes.append(
                f"GPano's sizes are ignored: CroppedAreaImage{side}Pixels={part:g} at {offset:g} does not lie within "
                f"FullPano{side}Pixels={full:g}"
            )
            return None
    if abs(width * area_height / (height * area_width) - 1) > _ASPECT_TOLERANCE:
        notes.append(
            f"GPano's sizes are ignored: the picture is {width} x {height} pixels, but the cropped area has another "
            f"shape, {area_width:g} x {area_height:g}; it was edited later"
        )
        return None
    edges = (left / full_width - 0.5) * 360, ((left + area_width) / full_width - 0.5) * 360
    up, down = full_height / 2 - top, full_height / 2 - top - area_height
    if projection == "cylindrical":
        radius = full_width / (2 * math.pi)
        return Crop(*edges, math.degrees(math.atan(up / radius)), math.degrees(math.atan(down / radius)))
    scale = 180 / full_height
    if abs(full_width / full_height / 2 - 1) > _ASPECT_TOLERANCE:
        notes.append(
            f"GPano's full size, {full_width:g} x {full_height:g}, is not twice as wide as high: heights were taken to "
            "have the scale of widths"
        )
        scale = 360 / full_width
    if max(abs(up), abs(down)) * scale > 90 * (1 + _ASPECT_TOLERANCE):
        notes.append(f"GPano's sizes are ignored: FullPanoHeightPixels={full_height:g} is more than a sphere has")
        return None
    return Crop(*edges, min(up * scale, 90.0), max(down * scale, -90.0))


def _property(properties: dict[str, str], name: str, low: float, high: float, notes: list[str]) -> float | None:
    text = properties.get(name)
    if text is None:
        return None
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if low <= number <= high:
        return number
    notes.append(f"GPano {name}={_shown(text)} is ignored: expected a number from {low:g} to {high:,.0f}")
    return None


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:37]}...")
