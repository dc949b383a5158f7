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

from s2s_ray import geometry
from s2s_ray.config import ModelConfig
from s2s_ray.data.schema import Pixels

Layout = Literal["auto", "north-up", "polar"]
LAYOUTS: tuple[Layout, ...] = ("auto", "north-up", "polar")

FULL_SPHERE_ROWS = (0.25, 0.75)
ALL_ROWS = (0.0, 1.0)
SMALLEST_SIDE = 16
_ASPECT_TOLERANCE = 0.02


class ViewError(ValueError):
    """An image or a parameter that cannot become a view; the message says what is expected instead."""


def prepare_street(pixels: Pixels, heading: float, rows: tuple[float, float], height: int, width: int) -> Tensor:
    """A panorama as the model takes it: north turned to the middle column, cropped, averaged over areas.

    Args:
        pixels: h w 3, uint8 RGB, all of the horizon.
        heading: compass bearing of the panorama's middle column, in degrees.
        rows: part of the height to keep, as fractions from the top.

    Returns: uint8 3 height width, rounded to nearest.

    Raises:
        ViewError: not h w 3 uint8, a heading that is not finite, rows that keep nothing.
    """
    panorama = _planes(pixels)
    if not math.isfinite(heading):
        raise ViewError(f"heading={heading}: expected a compass bearing in degrees")
    try:
        kept = geometry.panorama_crop(geometry.roll_to_north(panorama, heading % 360), rows)
    except ValueError as error:
        raise ViewError(str(error)) from None
    return _round(geometry.resize_area(kept.float(), height, width))


def prepare_satellite(tile: Pixels, height: int, width: int) -> Tensor:
    """A square north-up tile as the model takes it: unrolled around its centre.

    Args:
        tile: S S 3, uint8 RGB.

    Returns: uint8 3 height width, rounded to nearest; black outside the tile.

    Raises:
        ViewError: not S S 3 uint8.
    """
    try:
        return _round(geometry.polar_transform(_planes(tile).float(), height, width))
    except ValueError as error:
        raise ViewError(str(error)) from None


def prepare_polar(pixels: Pixels, height: int, width: int) -> Tensor:
    """An image that is polar already, brought to the model's resolution (unchanged where it has it).

    Returns: uint8 3 height width, rounded to nearest.
    """
    return _round(geometry.resize_area(_planes(pixels).float(), height, width))


def to_pixels(views: Tensor) -> Tensor:
    """Views in [-1, 1], as the generator makes them, to uint8 (the inverse of the model's normalisation)."""
    return _round((views.float() + 1) * 127.5)


@dataclass(frozen=True, slots=True)
class ViewGeometry:
    """How images of any size become views of one model: its resolution and the default crop of panoramas.

    `panorama_rows` is the data set's crop, which applies to panoramas as that data set has them. None (a
    checkpoint that does not say) goes by the image: a full 2:1 sphere keeps its middle half, wider ones are
    taken as cropped already.
    """

    height: int
    width: int
    panorama_rows: tuple[float, float] | None = None

    @classmethod
    def of_checkpoint(cls, config: ModelConfig, meta: Mapping[str, Any]) -> Self:
        """Views of a checkpoint's model, panoramas cropped as in the data set that its `meta` names, if any."""
        rows = ((meta.get("dataset") or {}).get("geometry") or {}).get("panorama_rows")
        return cls(config.height, config.width, None if rows is None else (float(rows[0]), float(rows[1])))

    def street(self, pixels: Pixels, heading: float = 0.0, rows: tuple[float, float] | None = None) -> Tensor:
        """`prepare_street` with the default rows where none are given.

        Raises:
            ViewError: also for an image that cannot be a 360-degree panorama (narrower than 2:1, unless it
                has the model's own shape) or is under 16 pixels high or wide.
        """
        _require_size(pixels)
        height, width = pixels.shape[:2]
        if width / height < 2 * (1 - _ASPECT_TOLERANCE) and not self._has_model_shape(height, width):
            raise ViewError(
                f"the panorama is {width} x {height} pixels (width x height): expected all of the horizon, "
                "at least twice as wide as high"
            )
        return prepare_street(pixels, heading, rows or self.default_rows(height, width), self.height, self.width)

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
            return prepare_polar(pixels, self.height, self.width)
        if not square:
            also = "" if layout == "north-up" else f", or polar like {self.width} x {self.height}"
            raise ViewError(
                f"the satellite image is {width} x {height} pixels (width x height): expected a square "
                f"north-up tile{also}"
            )
        return prepare_satellite(pixels, self.height, self.width)

    def default_rows(self, height: int, width: int) -> tuple[float, float]:
        """Rows kept of a panorama of that size when the caller names none."""
        if self.panorama_rows is not None:
            return self.panorama_rows
        sphere = abs(width / height / 2 - 1) <= _ASPECT_TOLERANCE and not self._has_model_shape(height, width)
        return FULL_SPHERE_ROWS if sphere else ALL_ROWS

    def _has_model_shape(self, height: int, width: int) -> bool:
        return abs(width * self.height / (height * self.width) - 1) <= _ASPECT_TOLERANCE


def _planes(pixels: Pixels) -> Tensor:
    """h w 3 -> 3 h w, a copy: decoded images are read-only, which PyTorch does not know."""
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != "uint8" or not pixels.size:
        raise ViewError(f"image has shape {pixels.shape} and dtype {pixels.dtype}: expected h w 3, uint8")
    return torch.tensor(pixels).permute(2, 0, 1)


def _round(image: Tensor) -> Tensor:
    return image.round_().clamp_(0, 255).to(torch.uint8).contiguous()


def _require_size(pixels: Pixels) -> None:
    height, width = pixels.shape[:2]
    if min(height, width) < SMALLEST_SIDE:
        raise ViewError(f"the image is {width} x {height} pixels: expected at least {SMALLEST_SIDE} each way")
