"""The model's view of one image, as preparation, evaluation and serving make it.

Pixels in, uint8 at the model's resolution out. One code path is what makes a served descriptor equal the one
that evaluation measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Literal, NamedTuple, Self

from pydantic import Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor

from s2s_ray.config import Contrast, ModelConfig, Resize
from s2s_ray.errors import CheckpointError, ViewError, faults_of
from s2s_ray.geo.fov import ASPECT_TOLERANCE, has_shape
from s2s_ray.geo.images import LAYOUTS, Layout, Pixels, Seen, checked
from s2s_ray.geo.metadata import PhotoMetadata
from s2s_ray.geo.numbers import finite
from s2s_ray.geo.prepare import prepare_polar, prepare_satellite, prepare_street, rounded
from s2s_ray.geo.projection import reproject
from s2s_ray.geo.query import Known, Query, settle

PanoramaKind = Literal["sphere", "cropped", "part"]
"""A full sphere (2:1), the whole horizon cropped above and below, or a part of the horizon."""

FULL_SPHERE_ROWS = (0.25, 0.75)
ALL_ROWS = (0.0, 1.0)
SMALLEST_SIDE = 16
CONVENTION = "column 0 looks south, azimuth clockwise, north in the middle column; bottom row: the tile's centre"
DEFAULT_ELEVATIONS = (45.0, -45.0)
_FLATTEST = 1e-6  # degrees
_LATER = ("elevations", "default_heading")
_NORTH_IN_THE_MIDDLE = ("cvusa", "cvact")


class View(NamedTuple):
    """A picture as the model takes it.

    Attributes:
        pixels: uint8 3 H W, 0 where nothing was seen.
        seen: which of them the picture shows, bool H W; None: all.
    """

    pixels: Tensor
    seen: Tensor | None = None


def with_default_heading(geometry: Mapping[str, Any], kind: object) -> Mapping[str, Any]:
    """Return the stored geometry of a data set with the default heading that version 0.1.0 did not store.

    Args:
        geometry: the tree of a geometry.
        kind: the kind of the data set's source: the panoramas of CVUSA and CVACT have north in the middle.
    """
    return {"default_heading": 0.0, **geometry} if kind in _NORTH_IN_THE_MIDDLE else geometry


def to_pixels(views: Tensor) -> Tensor:
    """Convert views in [-1, 1], as the generator makes them, to uint8 (the inverse of the model's normalisation)."""
    return rounded((views.float() + 1) * 127.5)


@dataclass(frozen=True, slots=True)
class ViewGeometry:
    """How images of any size become views of one model: its resolution and the treatment of its data set's images.

    A data set stores it in `dataset.json`, and every checkpoint trained on that data set in its metadata. North is in
    the middle column of both images of a pair.

    Attributes:
        height, width: rows and columns of both images, the model's resolution.
        panorama_rows: rows of the panorama to keep, as fractions from the top. None decides by the image: a full 2:1
            sphere keeps its middle half, a wider panorama counts as cropped already.
        polar_size: rows and columns at which tiles are unrolled before the resize, as 8-bit pixels with fractions cut
            off; None unrolls at the model's own resolution.
        polar_contrast: `stretch` maps each polar image's minimum and maximum to 0 and 255.
        resize: how both images are resized to the model's resolution: by `area` means, or `cubic` (a = -0.75, without
            antialiasing).
        convention: meaning of columns and rows, in words.
        elevations: degrees of the upper edge of a view's first row and of the lower edge of its last one. None: those
            of `panorama_rows` of a full sphere; +45 and -45 if these are None or all rows.
        default_heading: compass bearing of the middle column of panoramas of the whole horizon whose heading neither
            the caller nor the file says. None: unknown.
    """

    height: int
    width: int
    panorama_rows: tuple[float, float] | None = None
    polar_size: tuple[int, int] | None = None
    polar_contrast: Contrast = "none"
    resize: Resize = "area"
    convention: str = CONVENTION
    elevations: tuple[float, float] | None = None
    default_heading: float | None = Field(default=None, ge=-360, le=360)

    @model_validator(mode="after")
    def _check_elevations(self) -> Self:
        if self.elevations is not None and not 90 >= self.elevations[0] > self.elevations[1] >= -90:
            raise ValueError(f"elevations={list(self.elevations)}: expected 90 >= top > bottom >= -90")
        return self

    @classmethod
    def of_checkpoint(cls, config: ModelConfig, meta: Mapping[str, Any], uri: str) -> Self:
        """Return the views of a checkpoint's model, with images treated as in the data set named in its `meta`.

        Args:
            uri: the checkpoint, for messages.

        Raises:
            CheckpointError: the metadata's `dataset.geometry` is damaged.
        """
        dataset = meta.get("dataset") or {}
        stored = dataset.get("geometry") or {}
        source = (meta.get("config") or {}).get("source") or {}
        kinds = (source.get("kind"), dataset.get("uri"))  # the latter of a released model, see `published_geometry`
        try:
            for kind in kinds:
                stored = with_default_heading(stored, kind)
            return cls.parse({**stored, "height": config.height, "width": config.width})
        except (ValidationError, TypeError) as error:
            faults = faults_of(error) if isinstance(error, ValidationError) else str(error)
            raise CheckpointError(f"checkpoint {uri}: dataset.geometry={stored!r} is damaged ({faults})") from None

    @classmethod
    def parse(cls, tree: Mapping[str, Any]) -> Self:
        """Return the geometry that `tree` made; fields that it lacks have their defaults, unknown ones are ignored.

        Raises:
            pydantic.ValidationError: a field is missing or has the wrong type.
        """
        return TypeAdapter(cls).validate_python(dict(tree))

    def tree(self) -> dict[str, Any]:
        """Return the fields as they are stored in JSON, without the later ones that say nothing."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
            if value is not None or key not in _LATER
        }

    @property
    def span(self) -> tuple[float, float]:
        """Degrees of elevation of the upper and the lower edge of a view."""
        if self.elevations is not None:
            return self.elevations
        if self.panorama_rows is None or self.panorama_rows == ALL_ROWS:
            return DEFAULT_ELEVATIONS
        first, last = self.panorama_rows
        return 90 - 180 * first, 90 - 180 * last

    def settle(self, query: Query, pixels: Pixels, photo: PhotoMetadata | None = None) -> Known:
        """Return what is known of a picture for this model (`s2s_ray.geo.query.settle`). Raises ViewError."""
        shape = (self.height, self.width)
        return settle(query, pixels, photo, release_heading=self.default_heading, model_shape=shape)

    def of_query(self, pixels: Pixels, known: Known, shown: Seen | None = None) -> View:
        """Return the view of a picture by what is known of it; one of unknown heading is prepared as if that were 0.

        A level panorama of the whole horizon becomes `prepare_street` of its rows. Every other picture is projected to
        the view's azimuths and elevations, and what it does not show is marked as unseen.

        Args:
            shown: which pixels of the picture show anything, h w; None: all (`decode_seen`).

        Raises:
            ViewError: not h w 3 uint8, under 16 pixels high or wide, rows that keep nothing, or a picture that shows
                nothing between the view's elevations.
        """
        _require_size(pixels)
        shown = _partly(shown, pixels)
        heading = 0.0 if known.heading is None else known.heading
        height, width = pixels.shape[:2]
        rows = self._rows_of(height, width, known)
        level = known.pitch == 0 and known.roll == 0
        if rows is not None and level and known.fov == 360 and rows[0] >= 0 and rows[1] <= 1 and shown is None:
            return View(prepare_street(pixels, heading, rows, self.height, self.width, resize=self.resize))
        has_edges = rows is None or (known.rows is None and known.crop is not None)
        camera = known.camera(height, width, None if has_edges or rows is None else self._elevations_of(rows))
        kept = (0.0, 1.0) if known.rows is None or rows is not None else known.rows
        projected, seen = reproject(checked(pixels), camera, self.height, self.width, self.span, kept, shown)
        if not seen.any():
            raise ViewError(
                f"the picture covers no pixel of the view, which shows the elevations {self.span[0]:g} to "
                f"{self.span[1]:g} degrees: correct fov={known.fov:g}, pitch={known.pitch:g}, roll={known.roll:g} "
                f"or rows{'' if shown is None else ', or the transparent part'}"
            )
        return View(rounded(projected), None if seen.all() else seen)

    def _rows_of(self, height: int, width: int, known: Known) -> tuple[float, float] | None:
        """Return the rows of an equirectangular picture that show the view's elevations; they may lie outside of it."""
        if known.projection != "equirectangular":
            return None
        if known.rows is not None:
            return known.rows
        if known.crop is None:  # the model's own shape, or a heading given alone
            return self.default_rows(height, _whole_circle(width, known.fov))
        shown = max(known.crop.top - known.crop.bottom, _FLATTEST)
        first, last = ((known.crop.top - edge) / shown for edge in self.span)
        half_a_row = 0.5 / height
        if -half_a_row <= first and last <= 1 + half_a_row:
            return max(first, 0.0), min(last, 1.0)
        return first, last

    def _elevations_of(self, rows: tuple[float, float]) -> tuple[float, float]:
        """Return the elevations of the edges of a panorama some of whose rows show the view's."""
        (top, bottom), (first, last) = self.span, rows
        whole = (top - bottom) / (last - first)
        return top + first * whole, bottom - (1 - last) * whole

    def street(
        self,
        pixels: Pixels,
        heading: float = 0.0,
        rows: tuple[float, float] | None = None,
        *,
        fov: float = 360.0,
        smallest: int = SMALLEST_SIDE,
    ) -> Tensor:
        """Return `prepare_street` of a panorama, with the default rows if `rows` is None.

        Raises:
            ViewError: also for an image said to show the whole horizon that cannot be a 360-degree panorama
                (narrower than 2:1, unless it has the model's own shape), or under `smallest` pixels high or wide.
        """
        _require_size(pixels, smallest)
        fov = finite("fov", fov, ViewError)
        height, width = pixels.shape[:2]
        narrow = width / height < 2 * (1 - ASPECT_TOLERANCE)
        if fov == 360 and narrow and not self._has_model_shape(height, width):
            raise ViewError(
                f"the panorama is {width} x {height} pixels (width x height): expected the whole horizon, "
                "at least twice as wide as high"
            )
        kept = self.default_rows(height, _whole_circle(width, fov)) if rows is None else rows
        return prepare_street(pixels, heading, kept, self.height, self.width, fov=fov, resize=self.resize)

    def satellite(self, pixels: Pixels, layout: Layout = "auto") -> Tensor:
        """Return the view of a north-up tile or a polar image; `layout` says which it is.

        `auto` takes a square image as north-up and one of the model's aspect ratio (within 2%) as polar;
        if the model's own images are square, it takes a square one as north-up.

        Raises:
            ViewError: a shape that is neither, a north-up tile that is not square, an image under 16 pixels
                high or wide.
        """
        if layout not in LAYOUTS:
            raise ViewError(f"layout={layout!r}: expected one of {', '.join(LAYOUTS)}")
        _require_size(pixels)
        height, width = pixels.shape[:2]
        square = height == width
        if layout == "polar" or (layout == "auto" and not square and self._has_model_shape(height, width)):
            return prepare_polar(pixels, self.height, self.width, resize=self.resize)
        if not square:
            also = "" if layout == "north-up" else f", or polar like {self.width} x {self.height}"
            raise ViewError(
                f"the satellite image is {width} x {height} pixels (width x height): expected a square "
                f"north-up tile{also}"
            )
        return self.north_up(pixels)

    def north_up(self, tile: Pixels) -> Tensor:
        """Return `prepare_satellite` of a square tile. Raises ViewError."""
        return prepare_satellite(
            tile,
            self.height,
            self.width,
            polar_size=self.polar_size,
            polar_contrast=self.polar_contrast,
            resize=self.resize,
        )

    def kind(self, height: int, width: int, fov: float = 360.0) -> PanoramaKind:
        """Return the kind that a panorama of that size is taken for."""
        if fov < 360:
            return "part"
        sphere = abs(width / height / 2 - 1) <= ASPECT_TOLERANCE and not self._has_model_shape(height, width)
        return "sphere" if sphere else "cropped"

    def default_rows(self, height: int, width: int) -> tuple[float, float]:
        """Return the rows to keep of a panorama of that size when the caller names none."""
        if self.panorama_rows is not None:
            return self.panorama_rows
        return FULL_SPHERE_ROWS if self.kind(height, width) == "sphere" else ALL_ROWS

    def _has_model_shape(self, height: int, width: int) -> bool:
        return has_shape(height, width, self.height, self.width)


def _whole_circle(width: int, fov: float) -> int:
    """Return the columns of the whole horizon, of which some columns show `fov` degrees; at most a billion."""
    return round(min(width * 360 / fov, 1e9)) if fov > 0 else width


def _partly(shown: Seen | None, pixels: Pixels) -> Seen | None:
    """Return which pixels show anything; None if all do. Raises ViewError if none does, or for another size."""
    if shown is None:
        return None
    if shown.shape != pixels.shape[:2]:
        raise ViewError(f"shown has shape {shown.shape}: expected {pixels.shape[:2]}, that of the picture")
    if not shown.any():
        raise ViewError("the picture shows nothing: all of its pixels are transparent")
    return None if shown.all() else shown


def _require_size(pixels: Pixels, smallest: int = SMALLEST_SIDE) -> None:
    height, width = pixels.shape[:2]
    if min(height, width) < smallest:
        raise ViewError(f"the image is {width} x {height} pixels: expected at least {smallest} in each direction")
