"""Images as the model takes them: a panorama turned, cropped and resized; a tile unrolled."""

from __future__ import annotations

import torch
from torch import Tensor

from s2s_ray.config import Contrast, Resize
from s2s_ray.errors import ViewError
from s2s_ray.geo import polar
from s2s_ray.geo.images import Pixels, checked
from s2s_ray.geo.numbers import finite, pair

BEARING = "a compass bearing in degrees"


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
    """Return a panorama as the model takes it: turned to put north in the middle column, cropped, resized.

    Args:
        pixels: h w 3, uint8 RGB.
        heading: compass bearing of the panorama's middle column, in degrees.
        rows: part of the height to keep, as fractions from the top.
        fov: degrees of the horizon that the panorama shows; the remainder becomes black.

    Returns: uint8 3 height width, rounded to nearest.

    Raises:
        ViewError: not h w 3 uint8, a heading that is not finite, a field of view or rows that keep nothing.
    """
    panorama = planes(pixels)
    heading = finite("heading", heading, ViewError, BEARING)
    canvas = polar.panorama_canvas(panorama, finite("fov", fov, ViewError))
    kept = polar.panorama_crop(polar.roll_to_north(canvas, heading % 360), pair("rows", rows, ViewError))
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
    """Return a square north-up tile as the model takes it: unrolled around its centre.

    Args:
        tile: S S 3, uint8 RGB.
        polar_size, polar_contrast, resize: as in `ViewGeometry`.

    Returns: uint8 3 height width, rounded to nearest; black outside the tile.

    Raises:
        ViewError: not S S 3 uint8.
    """
    unrolled = polar.polar_transform(planes(tile).float(), *(polar_size or (height, width)))
    if polar_contrast == "stretch":
        unrolled = _stretched(unrolled)
    if polar_size in (None, (height, width)):
        return rounded(unrolled)
    # docs/model.md, CVUSA: the image between the two steps has 8 bits, by truncation; float32 sums may fall short
    return _resize((unrolled + 1e-3).floor(), height, width, resize)


def prepare_polar(pixels: Pixels, height: int, width: int, *, resize: Resize = "area") -> Tensor:
    """Return an image that is already polar at the model's resolution (unchanged if it has that resolution).

    Returns: uint8 3 height width, rounded to nearest.
    """
    return _resize(planes(pixels).float(), height, width, resize)


def planes(pixels: Pixels) -> Tensor:
    """Return h w 3 pixels as 3 h w, a copy: decoded images are read-only, which PyTorch does not support."""
    return torch.tensor(checked(pixels)).permute(2, 0, 1)


def _resize(image: Tensor, height: int, width: int, how: Resize) -> Tensor:
    """Resize 3 h w in [0, 255] to uint8 3 height width, rounded to nearest."""
    if how == "cubic" and image.shape[-2:] != (height, width):
        return rounded(polar.resize_cubic(image, height, width))
    return rounded(polar.resize_area(image, height, width))


def _stretched(image: Tensor) -> Tensor:
    """Map the minimum and the maximum to 0 and 255; an image of one value becomes black."""
    low, high = image.min(), image.max()
    return (image - low) * (255 / (high - low).clamp(min=1e-6))


def rounded(image: Tensor) -> Tensor:
    return image.round_().clamp_(0, 255).to(torch.uint8).contiguous()
