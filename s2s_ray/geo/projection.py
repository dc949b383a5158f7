"""Pictures of any projection as a part of the cylinder of elevations and azimuths that the model sees."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from s2s_ray.geo.camera import Camera
from s2s_ray.geo.images import Pixels, Seen

_MOST_SAMPLES = 4
_POOLED_PER_PIXEL = 2.0
_MOST_POOLED = 1 << 23  # pixels


def reproject(
    picture: Pixels,
    camera: Camera,
    height: int,
    width: int,
    elevations: tuple[float, float],
    shown_rows: tuple[float, float] = (0.0, 1.0),
    shown: Seen | None = None,
) -> tuple[Tensor, Tensor]:
    """Return a picture on the whole horizon, and which pixels of it the picture shows.

    Columns are equal steps of azimuth, with north in the middle; rows are equal steps of elevation. Each pixel is the
    mean over the part of its area that the picture shows (an area is sampled at up to 4 x 4 places, in a copy of the
    picture that has about two pixels per sample); it counts as seen where that is half of it or more.

    Args:
        picture: h w 3, uint8.
        camera: what it shows.
        height, width: rows and columns of the result.
        elevations: degrees of the upper edge of the first row and of the lower edge of the last one.
        shown_rows: the part of the picture's height that shows anything, as fractions from the top.
        shown: which pixels of the picture show anything, h w; None: all.

    Returns: float32 3 height width in [0, 255], 0 where unseen; bool height width.
    """
    across, down, inside = directions(camera, _azimuths(width, 1), _elevations(height, 1, elevations))
    inside &= (down >= shown_rows[0]) & (down <= shown_rows[1])
    view = torch.zeros(3, height, width)
    seen = torch.zeros(height, width, dtype=torch.bool)
    rows, columns = _around(inside.any(1), cyclic=False), _around(inside.any(0), cyclic=True)
    if not len(rows):
        return view, seen
    steps = _steps(across, down, inside, camera.closed, *picture.shape[:2])
    channels = picture if shown is None else np.dstack([picture * shown[..., None], shown * np.uint8(255)])
    pooled, (columns_in, rows_in), (beside, above) = _pooled(channels, steps, camera.closed)
    azimuths = _azimuths(width, beside).view(width, beside)[columns].flatten()
    tilts = _elevations(height, above, elevations).view(height, above)[rows].flatten()
    across, down, inside = directions(camera, azimuths, tilts)
    inside &= (down >= shown_rows[0]) & (down <= shown_rows[1])
    # in grid_sample's units, where -1 and 1 are the outer edges
    x = across.mul_(2 * columns_in / pooled.shape[-1]).add_(2 * camera.closed / pooled.shape[-1] - 1)
    y = down.mul_(2 * rows_in / pooled.shape[-2]).sub_(1)
    grid = torch.stack([x, y], dim=-1)
    values = F.grid_sample(pooled[None], grid[None], mode="bilinear", padding_mode="border", align_corners=False)[0]
    weights = inside.to(values.dtype)
    sums = _sums(values.mul_(weights), beside, above)
    counts = _sums(weights, beside, above) if shown is None else sums[3] / 255
    enough = counts * 2 >= beside * above
    view[:, rows[:, None], columns] = sums[:3] / counts.clamp(min=1) * enough
    seen[rows[:, None], columns] = enough
    return view, seen


def directions(camera: Camera, azimuths: Tensor, elevations: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return where a picture shows the directions of W compass bearings and H elevations, in degrees.

    Returns: columns and rows as fractions of the width and the height, and whether they are inside; H W each.
        Fractions outside of the picture have no meaning.
    """
    right, forward, up = _seen_from(camera, torch.deg2rad(azimuths - camera.heading), torch.deg2rad(elevations))
    left, last, top, bottom = (math.radians(edge) for edge in camera.edges)
    if camera.projection == "rectilinear":
        before = forward > 1e-6
        depth = torch.where(before, forward, 1e-6)
        across = (right / depth - math.tan(left)) / (math.tan(last) - math.tan(left))
        down = (math.tan(top) - up / depth) / (math.tan(top) - math.tan(bottom))
    else:
        angles = torch.atan2(right, forward)
        middle = (left + last) / 2
        angles = middle + torch.remainder(angles - middle + math.pi, 2 * math.pi) - math.pi
        across = (angles - left) / (last - left)
        if camera.projection == "cylindrical":
            level = torch.hypot(right, forward).clamp_(min=1e-6)
            down = (math.tan(top) - up / level) / (math.tan(top) - math.tan(bottom))
        else:
            down = (top - torch.asin(up.clamp(-1, 1))) / (top - bottom)
        before = torch.ones_like(down, dtype=torch.bool)
    beside = before if camera.closed else before & (across >= 0) & (across <= 1)
    return across, down, beside & (down >= 0) & (down <= 1)


def _seen_from(camera: Camera, azimuths: Tensor, elevations: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return unit vectors along the camera's right, its axis and its upper side, H W each; angles in radians."""
    level = torch.cos(elevations)[:, None]
    right, forward = level * torch.sin(azimuths), level * torch.cos(azimuths)
    up = torch.sin(elevations)[:, None].expand_as(right)
    if camera.pitch:
        cosine, sine = math.cos(math.radians(camera.pitch)), math.sin(math.radians(camera.pitch))
        forward, up = cosine * forward + sine * up, cosine * up - sine * forward
    if camera.roll:
        cosine, sine = math.cos(math.radians(camera.roll)), math.sin(math.radians(camera.roll))
        right, up = cosine * right - sine * up, sine * right + cosine * up
    return right, forward, up


def _azimuths(width: int, samples: int) -> Tensor:
    """Return the bearings of the centres of `samples` parts of each column, in degrees."""
    count = width * samples
    return (torch.arange(count, dtype=torch.float32) + 0.5) * (360 / count) - 180


def _elevations(height: int, samples: int, elevations: tuple[float, float]) -> Tensor:
    """Return the elevations of the centres of `samples` parts of each row, in degrees."""
    top, bottom = elevations
    count = height * samples
    return top + (torch.arange(count, dtype=torch.float32) + 0.5) * ((bottom - top) / count)


def _around(hit: Tensor, *, cyclic: bool) -> Tensor:
    """Return the places of a line that are hit or have a neighbour that is."""
    near = hit.clone()
    near[1:] |= hit[:-1]
    near[:-1] |= hit[1:]
    if cyclic:
        near[0] |= hit[-1]
        near[-1] |= hit[0]
    return near.nonzero().flatten()


class _Steps(NamedTuple):
    """Pixels of the picture between neighbouring pixels of the view: the smaller and the larger ones."""

    across: tuple[float, float]
    down: tuple[float, float]


def _steps(across: Tensor, down: Tensor, inside: Tensor, closed: bool, height: int, width: int) -> _Steps:
    both = inside[1:, 1:] & inside[1:, :-1] & inside[:-1, 1:]
    if not both.any():  # narrower than two pixels: the one nearest to its middle
        away = torch.hypot(across[1:, 1:] - 0.5, down[1:, 1:] - 0.5)
        both = away == away.min()
    sizes = []
    for places, scale, wraps in ((across, width, closed), (down, height, False)):
        along, upright = places[1:, 1:] - places[1:, :-1], places[1:, 1:] - places[:-1, 1:]
        if wraps:
            along, upright = along - along.round(), upright - upright.round()
        found = torch.hypot(along[both], upright[both]) * scale
        # every so many are enough, and quantile() limits their number
        found = found[:: 1 + len(found) // 10_000]
        smaller, larger = torch.quantile(found, torch.tensor([0.2, 0.95])).tolist()
        sizes.append((smaller, larger))
    return _Steps(*sizes)


def _pooled(picture: Pixels, steps: _Steps, closed: bool) -> tuple[Tensor, tuple[float, float], tuple[int, int]]:
    """Return a smaller picture that keeps what the view shows, and how it is sampled.

    Returns: float32 c h w, with one more column on both sides of a closed picture; its columns and rows that the width
        and the height of the picture take; the samples of a pixel of the view, beside and above each other.
    """
    factors = [max(1, round(smaller / _POOLED_PER_PIXEL)) for smaller, _ in (steps.across, steps.down)]
    height, width = picture.shape[:2]
    excess = math.sqrt(height * width / (factors[0] * factors[1] * _MOST_POOLED))
    if excess > 1:  # a huge picture that shows nearly a whole plane
        factors = [math.ceil(factor * excess) for factor in factors]
    small = picture
    if max(factors) > 1:  # each alone: Pillow takes a fourth channel for opacity
        bands = [Image.fromarray(np.ascontiguousarray(band)) for band in np.moveaxis(picture[..., 3:], -1, 0)]
        whole = (Image.fromarray(np.ascontiguousarray(picture[..., :3])), *bands)
        small = np.dstack([np.asarray(image.reduce((factors[0], factors[1]))) for image in whole])
    pooled = torch.tensor(small).permute(2, 0, 1).float().contiguous()
    if closed:
        pooled = torch.cat([pooled[..., -1:], pooled, pooled[..., :1]], dim=-1)
    beside, above = (
        min(max(math.ceil(larger / factor), 2), _MOST_SAMPLES)
        for (_, larger), factor in zip(steps, factors, strict=True)
    )
    return pooled, (width / factors[0], height / factors[1]), (beside, above)


def _sums(values: Tensor, across: int, down: int) -> Tensor:
    """Return the sums over down x across parts of each pixel: ... H*down W*across to ... H W."""
    parts = [values[..., i::down, j::across] for i in range(down) for j in range(across)]
    total = parts[0].clone()
    for part in parts[1:]:
        total += part
    return total
