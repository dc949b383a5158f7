"""A query: a picture and what is known of it, said by the caller, by the file's metadata and by its shape."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, Self

from s2s_ray.errors import ViewError
from s2s_ray.geo.camera import PROJECTIONS, Camera, Crop, Projection
from s2s_ray.geo.fov import ASPECT_TOLERANCE, Origin, Shape, field_of_view, has_shape
from s2s_ray.geo.images import Pixels, checked
from s2s_ray.geo.metadata import PhotoMetadata
from s2s_ray.geo.numbers import is_number, pair, real
from s2s_ray.geo.seam import ends_meet

__all__ = ["Known", "Origin", "Projection", "Query", "settle"]

UNKNOWN_SPREAD = 180.0


@dataclass(frozen=True, slots=True)
class Query:
    """What a caller says of a picture.

    Attributes:
        heading: compass bearing of the picture's middle column in degrees, -360 to 360; `unknown`; or `auto`: from the
            file's metadata, else for pictures of the whole horizon the release's default, else unknown.
        fov: horizontal field of view in degrees, above 0 and at most 360, below 180 for rectilinear pictures; or
            `auto`: from the file's metadata, else 360 for a picture that has the shape of a full circle. None, not
            said: as `auto`; but a picture with the shape of a full circle is one, and level, whatever its metadata
            say, where a heading is given and nothing else (`heading_alone`).
        projection: how the picture shows directions; or `auto`: from the file's metadata, else by the shape.
        pitch: degrees by which the camera looks above the horizon, -90 to 90. None: from the metadata, else 0.
        roll: degrees by which the camera is turned clockwise, -180 to 180. None: from the metadata, else 0.
        rows: the part of the picture's height to use, as fractions from the top. Of an equirectangular picture it is
            the part that shows the model's range of elevations; of others, what lies outside counts as unseen. None:
            all rows. Those of equirectangular pictures then have the scale of the columns, with the horizon in the
            middle; but of pictures with the model's own shape, or with a heading given alone,
            `ViewGeometry.default_rows` show the model's range of elevations.

    Raises:
        ViewError: a value out of its range; the message names the field and the value.
    """

    heading: float | Literal["auto", "unknown"] = "auto"
    fov: float | Literal["auto"] | None = None
    projection: Projection | Literal["auto"] = "auto"
    pitch: float | None = None
    roll: float | None = None
    rows: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if not _is_word(self.heading, "auto", "unknown"):
            self._set("heading", _within("heading", self.heading, -360, 360, ", unknown or auto"))
        if not _is_word(self.projection, "auto", *PROJECTIONS):
            known = ", ".join(PROJECTIONS)
            raise ViewError(f"projection={_shown(self.projection)}: expected one of {known}, or auto")
        if self.fov is not None and not _is_word(self.fov, "auto"):
            fov = _within("fov", self.fov, 0, 360, ", or auto")
            if fov == 0:
                raise ViewError("fov=0: expected above 0 and at most 360 degrees, or auto")
            if self.projection == "rectilinear" and fov >= 180:
                raise ViewError(
                    f"fov={fov:g} with projection=rectilinear: a plane shows less than 180 degrees; correct one of them"
                )
            self._set("fov", fov)
        if self.pitch is not None:
            self._set("pitch", _within("pitch", self.pitch, -90, 90))
        if self.roll is not None:
            self._set("roll", _within("roll", self.roll, -180, 180))
        if self.rows is not None:
            first, last = pair("rows", self.rows, ViewError)
            if not 0 <= first < last <= 1:
                raise ViewError(f"rows={first:g},{last:g}: expected 0 <= first < last <= 1")
            self._set("rows", (first, last))

    @classmethod
    def parse(cls, values: Mapping[str, object]) -> Self:
        """Return the query of values by field, as texts (of a URL, a table or a command line) or as they are.

        A field that is missing, None or an empty text has its default; `rows` is `FIRST,LAST`; other keys are ignored.

        Raises:
            ViewError: a text that is not a value of its field.
        """
        found: dict[str, Any] = {}
        for field in fields(cls):
            value = values.get(field.name)
            if isinstance(value, str):
                value = value.strip()
            if value is None or value == "":
                continue
            if isinstance(value, str) and field.name == "rows":
                value = [_number("rows", part) for part in value.split(",")]
            elif isinstance(value, str) and field.name != "projection" and value not in ("auto", "unknown"):
                value = _number(field.name, value)
            found[field.name] = value
        return cls(**found)

    @property
    def heading_alone(self) -> bool:
        """Whether the caller gave a heading and left everything else that says what the picture shows."""
        others = (self.fov, self.projection, self.pitch, self.roll)
        return is_number(self.heading) and others == (None, "auto", None, None)

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)


@dataclass(frozen=True, slots=True)
class Known:
    """All that is known of a picture, as it is used, and where it comes from.

    Attributes:
        heading: compass bearing of the middle column in degrees, 0 up to below 360. None: unknown.
        heading_origin: None: unknown.
        heading_spread: degrees by which the heading may be wrong either way (one standard deviation); 180: unknown.
        fov, projection, pitch, roll, rows: as in `Query`.
        position: latitude and longitude in the file. The answer does not depend on it unless the caller asks for that.
        crop: directions of the picture's edges; None: they follow from `fov`, `rows` and the picture's shape.
        warnings: what was ignored in the metadata, and why.
    """

    heading: float | None
    heading_origin: Origin | None
    heading_spread: float
    fov: float
    fov_origin: Origin
    projection: Projection
    projection_origin: Origin
    pitch: float = 0.0
    roll: float = 0.0
    rows: tuple[float, float] | None = None
    position: tuple[float, float] | None = None
    crop: Crop | None = None
    warnings: tuple[str, ...] = ()

    def camera(self, height: int, width: int, elevations: tuple[float, float] | None = None) -> Camera:
        """Return the camera of a picture of that size; an unknown heading counts as 0.

        Args:
            elevations: degrees of the picture's upper and lower edge, where its rows are equal steps of elevation.
        """
        half = self.fov / 2
        across = math.tan(math.radians(half)) if self.projection == "rectilinear" else math.radians(half)
        up = math.degrees(math.atan(across * height / width))
        edges = self.crop or Crop(-half, half, up, -up)
        if elevations is not None:
            edges = Crop(edges.left, edges.right, *elevations)
        axis = (self.heading or 0.0) - (edges.left + edges.right) / 2
        return Camera(self.projection, edges, axis, self.pitch, self.roll)


def settle(
    query: Query,
    pixels: Pixels,
    photo: PhotoMetadata | None = None,
    *,
    release_heading: float | None = None,
    model_shape: tuple[int, int] | None = None,
) -> Known:
    """Return what is known of a picture, from the caller, from its file and from its shape, in this order.

    A heading that is given alone keeps the meaning that it always had: a picture at least twice as wide as high shows
    the whole horizon and is level, whatever its metadata say (a warning names what was not used).

    Args:
        pixels: the picture as it is used, h w 3 uint8.
        photo: its metadata.
        release_heading: the release's default heading, which holds for pictures of the whole horizon.
        model_shape: rows and columns of the model's own images: pictures of that shape may show the whole horizon,
            too, and their rows, or those of a part of such a picture, show the model's range of elevations.

    Raises:
        ViewError: the field of view is unknown, or contradicts the projection or the picture's shape.
    """
    photo = photo or PhotoMetadata()
    height, width = checked(pixels).shape[:2]
    wide = width / height >= 2 * (1 - ASPECT_TOLERANCE)
    of_model = model_shape is not None and has_shape(height, width, *model_shape)
    warnings = list(photo.warnings)
    heading, heading_origin, spread = _heading(query, photo, release_heading)
    if query.heading_alone and (wide or of_model):
        warnings += _unused(photo)
        if not of_model and not ends_meet(pixels):
            warnings.append(
                "the picture's ends do not meet, but it was taken for 360 degrees because heading was given alone; "
                "give fov as well (fov=auto: by the file)"
            )
        return Known(
            heading, heading_origin, spread, 360.0, "assumed", "equirectangular", "assumed",
            rows=query.rows, position=photo.position, warnings=tuple(warnings),
        )  # fmt: skip
    given = None if query.projection == "auto" else query.projection
    fov_given = query.fov if isinstance(query.fov, float) else None
    shape = Shape(height, width, wide, of_model, pixels)
    projection, projection_origin, fov, fov_origin, of_file = field_of_view(given, fov_given, photo, shape, warnings)
    if heading_origin == "release" and fov < 360:  # its panoramas are aligned, other pictures are not
        heading, heading_origin, spread = None, None, UNKNOWN_SPREAD
    crop = photo.crop if of_file else None
    part_of_model = model_shape is not None and has_shape(height, width * 360 / fov, *model_shape)
    if projection == "equirectangular" and crop is None and query.rows is None and not part_of_model:
        crop = _centred(fov, height, width)
    return Known(
        heading, heading_origin, spread, fov, fov_origin, projection, projection_origin,
        pitch=(photo.pitch or 0.0) if query.pitch is None else query.pitch,
        roll=(photo.roll or 0.0) if query.roll is None else query.roll,
        rows=query.rows, position=photo.position, crop=crop, warnings=tuple(warnings),
    )  # fmt: skip


def _centred(fov: float, height: int, width: int) -> Crop:
    """Return the edges of an equirectangular picture whose rows have the scale of its columns. Raises ViewError."""
    vertical = fov * height / width
    if vertical > 180 * (1 + 2 * ASPECT_TOLERANCE):
        raise ViewError(
            f"fov={fov:g}: the picture is {width} x {height} pixels (width x height), so it would show {vertical:.0f} "
            "degrees from top to bottom; correct fov, or give projection or rows"
        )
    if vertical > 180 * (1 - ASPECT_TOLERANCE):  # a sphere, as `ViewGeometry.kind` has it
        vertical = 180.0
    return Crop(-fov / 2, fov / 2, vertical / 2, -vertical / 2)


def _heading(
    query: Query, photo: PhotoMetadata, release_heading: float | None
) -> tuple[float | None, Origin | None, float]:
    if isinstance(query.heading, float):
        return query.heading % 360, "given", 0.0
    if query.heading == "auto" and photo.heading is not None:
        return photo.heading % 360, "file", photo.heading_spread
    if query.heading == "auto" and release_heading is not None:
        return release_heading % 360, "release", 0.0
    return None, None, UNKNOWN_SPREAD


def _unused(photo: PhotoMetadata) -> list[str]:
    """Return warnings about metadata that a heading given alone leaves unused."""
    said = {
        "field of view": photo.fov is not None and photo.fov != 360,
        "projection": photo.projection not in (None, "equirectangular"),
        "pitch": bool(photo.pitch),
        "roll": bool(photo.roll),
    }
    names = [name for name, differs in said.items() if differs]
    if not names:
        return []
    listed = " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
    were = "was" if len(names) == 1 else "were"
    return [f"the file's {listed} {were} not used because heading was given alone; fov=auto uses the file"]


def _is_word(value: object, *words: str) -> bool:
    return isinstance(value, str) and value in words


def _within(name: str, value: object, low: float, high: float, others: str = "") -> float:
    number = real(name, value, ViewError) if is_number(value) else math.nan
    if not low <= number <= high:
        raise ViewError(f"{name}={_shown(value)}: expected {low:g} to {high:g} degrees{others}")
    return number


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ViewError(f"{name}={_shown(text)}: expected a number") from None


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
