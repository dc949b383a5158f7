"""Image geometry shared by preparation, training and serving: tensors in, tensors out.

Azimuth grows clockwise with the column; column 0 looks south and north is in the middle column (S, W, N, E), which
is the convention of CVUSA's and CVACT's panoramas.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from s2s_ray.errors import ViewError

MAX_CANVAS_PIXELS = 500_000_000


def polar_transform(tile: Tensor, height: int, width: int) -> Tensor:
    """Unroll a square north-up aerial tile around its centre, as seen from the street.

    The value at row i (0 at the top) and column j samples the tile at radius r = S/(2H) * (H-1-i) and azimuth
    phi = 2*pi*j/W: tile row S/2 + r*cos(phi), tile column S/2 - r*sin(phi), in pixel-index units. Bilinear; samples
    outside the tile count as zero. The bottom row is the tile's centre, the top row its inscribed circle.

    Args:
        tile: ... C S S, floating point.
        height, width: rows and columns of the result.

    Returns: ... C height width, in the tile's dtype and units.

    Raises:
        ViewError: a tile that is not square or not floating point.

    Source: docs/model.md, "Geometry and pixels" (the polar transform of the public CVUSA and CVACT scripts).
    """
    size = tile.shape[-1]
    if tile.ndim < 3 or tile.shape[-2] != size:
        raise ViewError(f"tile has shape {tuple(tile.shape)}: expected ... C S S (square)")
    if not tile.is_floating_point():
        raise ViewError(f"tile has dtype {tile.dtype}: expected floating point")
    grid = _polar_grid(size, height, width).to(tile)
    flat = tile.reshape(1, -1, size, size)
    polar = F.grid_sample(flat, grid, mode="bilinear", padding_mode="zeros", align_corners=True)
    return polar.reshape(*tile.shape[:-2], height, width)


def polar_transform_around(tiles: Tensor, offsets: Tensor, size: int, height: int, width: int) -> Tensor:
    """Unroll a part of each of several tiles around a centre of its own.

    A result equals `polar_transform` of the `size` x `size` pixels around that centre, but for samples beyond these,
    which are those of the larger tile.

    Args:
        tiles: B C S S, floating point, north-up, with S - `size` even.
        offsets: B 2, pixels of a tile by which its centre lies east and north of the middle of the tile.
        size: side in pixels of the part that is unrolled.
        height, width: rows and columns of the results.

    Returns: B C height width, in the tiles' dtype and units; samples outside of the tiles count as zero.
    """
    wide = tiles.shape[-1]
    centre = offsets.to(tiles.device, torch.float64) * torch.tensor([1.0, -1.0], dtype=torch.float64).to(tiles.device)
    centre += (wide - size) / 2
    pixels = (_polar_grid(size, height, width).to(tiles.device) + 1) * ((size - 1) / 2) + centre[:, None, None]
    grid = (pixels * (2 / (wide - 1)) - 1).to(tiles.dtype)
    return F.grid_sample(tiles, grid, mode="bilinear", padding_mode="zeros", align_corners=True)


@lru_cache(maxsize=16)
def _polar_grid(size: int, height: int, width: int) -> Tensor:
    """Return the sampling positions of the polar transform, 1 H W 2 (x, y) in grid_sample's units, float64."""
    radius = size / (2 * height) * (height - 1 - torch.arange(height, dtype=torch.float64))[:, None]
    azimuth = 2 * torch.pi * torch.arange(width, dtype=torch.float64)[None, :] / width
    row = size / 2 + radius * torch.cos(azimuth)
    column = size / 2 - radius * torch.sin(azimuth)
    return torch.stack([column, row], dim=-1).mul_(2 / (size - 1)).sub_(1)[None]


def panorama_crop(panorama: Tensor, rows: tuple[float, float]) -> Tensor:
    """Keep the rows between two fractions of the height, counted from the top.

    A full sphere (180 degrees over its height) keeps (0.25, 0.75): elevations from +45 to -45 degrees (CVACT's
    rows 208 to 624 of 832).

    Args:
        panorama: ... h w.
        rows: 0 <= first < last <= 1.

    Raises:
        ViewError: rows outside of the panorama, or so few that nothing is left.
    """
    height = panorama.shape[-2]
    first, last = round(rows[0] * height), round(rows[1] * height)
    if not 0 <= first < last <= height:
        raise ViewError(f"panorama_rows={list(rows)} of a panorama of {height} rows: expected 0 <= first < last <= 1")
    return panorama[..., first:last, :]


def roll_to_north(panorama: Tensor, heading: float) -> Tensor:
    """Turn a 360-degree panorama so that north is in the middle column.

    Args:
        panorama: ... h w, the whole horizon.
        heading: compass bearing of the middle column, in degrees, rounded to whole columns; 0 changes nothing, 180 is
            a panorama that starts at north.
    """
    width = panorama.shape[-1]
    return torch.roll(panorama, round(heading / 360 * width), dims=-1)


def resize_area(image: Tensor, height: int, width: int) -> Tensor:
    """Resize by exact area averaging (each result pixel is the mean of the area it covers).

    Args:
        image: ... h w, floating point.

    Returns: ... height width.
    """
    rows, columns = image.shape[-2:]
    if rows % height == 0 and columns % width == 0:  # ten times as fast as the products
        flat = image.reshape(-1, rows, columns)
        return F.avg_pool2d(flat, (rows // height, columns // width)).view(*image.shape[:-2], height, width)
    return _area_weights(rows, height).to(image) @ image @ _area_weights(columns, width).to(image).T


def resize_cubic(image: Tensor, height: int, width: int) -> Tensor:
    """Resize by cubic convolution with a = -0.75 and without antialiasing, as OpenCV's INTER_CUBIC.

    Args:
        image: ... C h w, floating point. Results may overshoot its range.

    Returns: ... C height width.
    """
    flat = image.reshape(-1, *image.shape[-3:])
    resized = F.interpolate(flat, (height, width), mode="bicubic", align_corners=False, antialias=False)
    return resized.reshape(*image.shape[:-2], height, width)


def panorama_canvas(panorama: Tensor, fov: float) -> Tensor:
    """Extend a panorama that shows a part of the horizon to the whole horizon, with black on both sides.

    Args:
        panorama: ... h w, `fov` degrees wide, columns at equal steps of the azimuth.
        fov: above 0, at most 360, which returns the panorama itself.

    Returns: ... h W; W is 360 / fov * w, rounded to the nearest whole number.

    Raises:
        ViewError: a field of view outside of these limits, or so small that the whole horizon has more than
            `MAX_CANVAS_PIXELS` pixels.
    """
    if not 0 < fov <= 360:
        raise ViewError(f"fov={fov:g}: expected a field of view above 0 and at most 360 degrees")
    height, width = panorama.shape[-2:]
    total = width * 360 / fov
    if height * total > MAX_CANVAS_PIXELS:
        raise ViewError(
            f"fov={fov:g} with {width} x {height} pixels makes a horizon of {height * total:.3g} pixels, "
            f"more than {MAX_CANVAS_PIXELS:,}: correct fov or make the image smaller"
        )
    missing = round(total) - width
    return F.pad(panorama, (missing // 2, missing - missing // 2)) if missing else panorama


@lru_cache(maxsize=32)
def _area_weights(source: int, target: int) -> Tensor:
    """Return the share of each source pixel in each target pixel, target x source; rows sum to one."""
    edges = torch.arange(target + 1, dtype=torch.float64) * source / target
    pixels = torch.arange(source, dtype=torch.float64)
    overlap = torch.minimum(edges[1:, None], pixels[None] + 1) - torch.maximum(edges[:-1, None], pixels[None])
    return overlap.clamp_(min=0).mul_(target / source)


def flip_pair(satellite: Tensor, street: Tensor) -> tuple[Tensor, Tensor]:
    """Mirror both images of a pair (polar satellite and panorama, ... H W) left to right together.

    In the polar image column j goes to W-1-j, as in the panorama: the pair then shows the mirrored world.
    """
    return satellite.flip(-1), street.flip(-1)
