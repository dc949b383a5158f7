"""The model's view of one image: preparation, evaluation and serving all come through here.

Pixels in, uint8 at the model's resolution out. One code path is what makes a served descriptor equal the one
that evaluation measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from torch import Tensor

from s2s_ray.config import Contrast, ModelConfig, Resize
from s2s_ray.errors import ViewError
from s2s_ray.geo import polar as geometry
from s2s_ray.geo.images import LAYOUTS, Layout, Pixels

PanoramaKind = Literal["sphere", "cropped", "part"]
"""A full sphere (2:1), all of the horizon cropped above and below, or a part of the horizon."""

FULL_SPHERE_ROWS = (0.25, 0.75)
ALL_ROWS = (0.0, 1.0)
SMALLEST_SIDE = 16
_ASPECT_TOLERANCE = 0.02


def prepare_street(
    pixels: Pixels,
    heading: float,
    rows: tuple[float, float],
    height: int,
    width: int,
    *,
    fov: float = 360.0,
    resize: Resize = "area",
) -> Tensor:
    """A panorama as the model takes it: north turned to the middle column, cropped, resized.

    Args:
        pixels: h w 3, uint8 RGB.
        heading: compass bearing of the panorama's middle column, in degrees.
        rows: part of the height to keep, as fractions from the top.
        fov: degrees of the horizon that it shows; the rest of it becomes black.

    Returns: uint8 3 height width, rounded to nearest.

    Raises:
        ViewError: not h w 3 uint8, a heading that is not finite, a field of view or rows that keep nothing.
    """
    panorama = _planes(pixels)
    if not math.isfinite(heading):
        raise ViewError(f"heading={heading}: expected a compass bearing in degrees")
    try:
        canvas = geometry.panorama_canvas(panorama, fov)
        kept = geometry.panorama_crop(geometry.roll_to_north(canvas, heading % 360), rows)
    except ValueError as error:
        raise ViewError(str(error)) from None
    return _resize(kept.float(), height, width, resize)


def prepare_satellite(
    tile: Pixels,
    height: int,
    width: int,
    *,
    polar_size: tuple[int, int] | None = None,
    polar_contrast: Contrast = "none",
    resize: Resize = "area",
) -> Tensor:
    """A square north-up tile as the model takes it: unrolled around its centre.

    Args:
        tile: S S 3, uint8 RGB.
        polar_size, polar_contrast, resize: as in `schema.Treatment`.

    Returns: uint8 3 height width, rounded to nearest; black outside the tile.

    Raises:
        ViewError: not S S 3 uint8.
    """
    try:
        polar = geometry.polar_transform(_planes(tile).float(), *(polar_size or (height, width)))
    except ValueError as error:
        raise ViewError(str(error)) from None
    if polar_contrast == "stretch":
        polar = _stretched(polar)
    if polar_size in (None, (height, width)):
        return _round(polar)
    # MODEL_SPEC, CVUSA: the image between the two steps is one of 8 bits, by truncation; float32 sums may fall short
    return _resize((polar + 1e-3).floor(), height, width, resize)


def prepare_polar(pixels: Pixels, height: int, width: int, *, resize: Resize = "area") -> Tensor:
    """An image that is polar already, brought to the model's resolution (unchanged where it has it).

    Returns: uint8 3 height width, rounded to nearest.
    """
    return _resize(_planes(pixels).float(), height, width, resize)


def to_pixels(views: Tensor) -> Tensor:
    """Views in [-1, 1], as the generator makes them, to uint8 (the inverse of the model's normalisation)."""
    return _round((views.float() + 1) * 127.5)


@dataclass(frozen=True, slots=True)
class ViewGeometry:
    """How images of any size become views of one model: its resolution and the treatment of its data set's images.

    `panorama_rows` is the data set's crop, which applies to panoramas as that data set has them. None (a
    checkpoint that does not say) goes by the image: a full 2:1 sphere keeps its middle half, wider ones are
    taken as cropped already. The others are as in `schema.Treatment`.
    """

    height: int
    width: int
    panorama_rows: tuple[float, float] | None = None
    polar_size: tuple[int, int] | None = None
    polar_contrast: Contrast = "none"
    resize: Resize = "area"

    @classmethod
    def of_checkpoint(cls, config: ModelConfig, meta: Mapping[str, Any]) -> Self:
        """Views of a checkpoint's model, images treated as in the data set that its `meta` names, if any."""
        told = (meta.get("dataset") or {}).get("geometry") or {}
        rows, size = told.get("panorama_rows"), told.get("polar_size")
        return cls(
            config.height,
            config.width,
            None if rows is None else (float(rows[0]), float(rows[1])),
            None if size is None else (int(size[0]), int(size[1])),
            told.get("polar_contrast", "none"),
            told.get("resize", "area"),
        )

    def street(
        self,
        pixels: Pixels,
        heading: float = 0.0,
        rows: tuple[float, float] | None = None,
        *,
        fov: float = 360.0,
        smallest: int = SMALLEST_SIDE,
    ) -> Tensor:
        """`prepare_street` with the default rows where none are given.

        Raises:
            ViewError: also for an image said to show all of the horizon that cannot be a 360-degree panorama
                (narrower than 2:1, unless it has the model's own shape), or under `smallest` pixels high or wide.
        """
        _require_size(pixels, smallest)
        height, width = pixels.shape[:2]
        narrow = width / height < 2 * (1 - _ASPECT_TOLERANCE)
        if fov == 360 and narrow and not self._has_model_shape(height, width):
            raise ViewError(
                f"the panorama is {width} x {height} pixels (width x height): expected all of the horizon, "
                "at least twice as wide as high"
            )
        kept = rows or self.default_rows(height, round(width * 360 / fov) if fov > 0 else width)
        return prepare_street(pixels, heading, kept, self.height, self.width, fov=fov, resize=self.resize)

    def satellite(self, pixels: Pixels, layout: Layout = "auto") -> Tensor:
        """A north-up tile or a polar image, told apart by `layout`.

        `auto` takes a square image as north-up and one of the model's aspect ratio (within 2%) as polar;
        where the model's own images are square, it takes a square one as north-up.

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
        """`prepare_satellite` of a square tile. Raises ViewError."""
        return prepare_satellite(
            tile,
            self.height,
            self.width,
            polar_size=self.polar_size,
            polar_contrast=self.polar_contrast,
            resize=self.resize,
        )

    def kind(self, height: int, width: int, fov: float = 360.0) -> PanoramaKind:
        """What a panorama of that size is taken for."""
        if fov < 360:
            return "part"
        sphere = abs(width / height / 2 - 1) <= _ASPECT_TOLERANCE and not self._has_model_shape(height, width)
        return "sphere" if sphere else "cropped"

    def default_rows(self, height: int, width: int) -> tuple[float, float]:
        """Rows kept of a panorama of that size when the caller names none."""
        if self.panorama_rows is not None:
            return self.panorama_rows
        return FULL_SPHERE_ROWS if self.kind(height, width) == "sphere" else ALL_ROWS

    def _has_model_shape(self, height: int, width: int) -> bool:
        return abs(width * self.height / (height * self.width) - 1) <= _ASPECT_TOLERANCE


def _planes(pixels: Pixels) -> Tensor:
    """h w 3 -> 3 h w, a copy: decoded images are read-only, which PyTorch does not know."""
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != "uint8" or not pixels.size:
        raise ViewError(f"image has shape {pixels.shape} and dtype {pixels.dtype}: expected h w 3, uint8")
    return torch.tensor(pixels).permute(2, 0, 1)


def _resize(image: Tensor, height: int, width: int, how: Resize) -> Tensor:
    """3 h w in [0, 255] -> uint8 3 height width, rounded to nearest."""
    if how == "cubic" and image.shape[-2:] != (height, width):
        return _round(geometry.resize_cubic(image, height, width))
    return _round(geometry.resize_area(image, height, width))


def _stretched(image: Tensor) -> Tensor:
    """The least and the greatest value at 0 and 255; an image of one value becomes black."""
    low, high = image.min(), image.max()
    return (image - low) * (255 / (high - low).clamp(min=1e-6))


def _round(image: Tensor) -> Tensor:
    return image.round_().clamp_(0, 255).to(torch.uint8).contiguous()


def _require_size(pixels: Pixels, smallest: int = SMALLEST_SIDE) -> None:
    height, width = pixels.shape[:2]
    if min(height, width) < smallest:
        raise ViewError(f"the image is {width} x {height} pixels: expected at least {smallest} each way")
