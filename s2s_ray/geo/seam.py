"""The seam of a panorama: whether the left and the right end of a picture meet."""

from __future__ import annotations

import numpy as np
from PIL import Image

from s2s_ray.geo.images import Pixels

_ROWS, _COLUMNS, _SAMPLED_ROWS = 64, 512, 256
_QUANTILE, _SLACK, _SMALLEST = 0.95, 1.25, 2.0


def ends_meet(pixels: Pixels) -> bool:
    """Return whether a picture, h w 3 uint8, continues from its right end to its left end, as a full circle does.

    The first and the last column, of at most 512, are compared as neighbours are: by their mean absolute difference.
    The ends meet if they differ at most 1.25 times as much as 95% of all neighbours do, or by less than 2 levels of
    255. Measured on six real panoramas that were cut at every place: 99% of the full circles meet, and 2% of those
    with 5 to 70% of the circle missing.
    """
    height, width = pixels.shape[:2]
    size = min(width, _COLUMNS), min(height, _ROWS)
    some = pixels[:: max(1, height // _SAMPLED_ROWS)]
    columns = np.asarray(Image.fromarray(some).resize(size, Image.Resampling.BOX), np.float32)
    neighbours = np.abs(np.diff(columns, axis=1)).mean((0, 2))
    ends = np.abs(columns[:, -1] - columns[:, 0]).mean()
    usual = np.quantile(neighbours, _QUANTILE) if len(neighbours) else ends
    return bool(ends <= max(_SLACK * usual, _SMALLEST))
