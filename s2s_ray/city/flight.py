"""Imagery of the city as one flight sees it."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from s2s_ray.city.aerial import render_tile
from s2s_ray.city.city import City
from s2s_ray.city.light import SHADOW_REACH_M, draw_light
from s2s_ray.city.noise import generator
from s2s_ray.city.scene import Atlas
from s2s_ray.city.traffic import Boxes, draw_traffic

_PART_M = 256.0  # rendered at once
_BLOCK_M = 60.0  # side of the blocks whose traffic is drawn together
_VEHICLE_M = 3.0  # a vehicle extends no farther from its centre


class Flight:
    """Imagery of one hour and season, with the same vehicles in the same places wherever it is cut.

    Only the grain of the ground differs from cut to cut.
    """

    def __init__(self, city: City, atlas: Atlas) -> None:
        """`atlas` is one of the city."""
        self._city, self._atlas = city, atlas
        self._light = draw_light(generator(city.plan.seed, 9))
        self._traffic = lru_cache(maxsize=1024)(self._draw_traffic)

    def cut(self, x: float, y: float, metres: float, px: int) -> NDArray[np.uint8]:
        """Render a north-up tile around a point, px px 3, as `render_tile` does, of any size."""
        parts = math.ceil(metres / _PART_M)
        side, step = math.ceil(px / parts), metres / px
        starts = [min(part * side, px - side) for part in range(parts)]
        tile = np.empty((px, px, 3), np.uint8)
        for row in starts:
            for column in starts:
                east, north = x + (column + side / 2 - px / 2) * step, y - (row + side / 2 - px / 2) * step
                tile[row : row + side, column : column + side] = self._part(east, north, side, side * step)
        return tile

    def _part(self, x: float, y: float, px: int, metres: float) -> NDArray[np.uint8]:
        scene = self._atlas.scene(x, y, metres / 2 + SHADOW_REACH_M + 2.0)
        reach = metres / 2 + _VEHICLE_M
        blocks = [
            self._traffic(i, j)
            for i in range(math.floor((x - reach) / _BLOCK_M), math.floor((x + reach) / _BLOCK_M) + 1)
            for j in range(math.floor((y - reach) / _BLOCK_M), math.floor((y + reach) / _BLOCK_M) + 1)
        ]
        return render_tile(scene, self._light, Boxes.joined(blocks), x, y, px, metres)

    def _draw_traffic(self, i: int, j: int) -> Boxes:
        """Draw the traffic of one square block."""
        west, south = i * _BLOCK_M, j * _BLOCK_M
        spots = self._city.things(west, south, _BLOCK_M).spots
        rng = generator(self._city.plan.seed, 10, i, j)
        return draw_traffic(rng, spots, west + _BLOCK_M / 2, south + _BLOCK_M / 2, self._city.occlusion)
