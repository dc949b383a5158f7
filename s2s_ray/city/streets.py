"""The plan of the city: districts with their streets, avenues between them, a river.

Everything is a function of the seed and the position, so the city has no borders. Positions are first bent by a
smooth warp. In the bent plane, districts are the Voronoi cells of a jittered lattice, their borders are
avenues, and each district has straight streets in one direction at uneven distances, with cross streets
that differ from strip to strip. In world coordinates no street is straight and no block repeats.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
from numpy.typing import NDArray

from s2s_ray.city import surface
from s2s_ray.city.district import CELL_M, FAR, District, draw_district
from s2s_ray.city.noise import Floats, generator
from s2s_ray.city.survey import survey

RIVER_M = 11.0  # half of its width


@dataclass(frozen=True, eq=False)
class Places:
    """Properties of points in the plan: arrays of one shape.

    `edge` is the distance to the nearest kerb in metres, negative on a carriageway; `ground` the surface code;
    `district` an index into `districts`; `along` the direction of the nearest street in the bent plane.
    """

    edge: NDArray[np.float32]
    ground: NDArray[np.uint8]
    district: NDArray[np.uint8]
    along: NDArray[np.float32]
    districts: tuple[District, ...]


class Streets:
    """The street plan of one seed."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        rng = generator(seed, 1)
        lengths = np.array([260.0, 430.0, 900.0])
        turn = rng.uniform(0, 2 * np.pi, (2, 3))
        self._waves = np.stack([np.cos(turn), np.sin(turn)], -1) * (2 * np.pi / lengths)[:, None]
        self._phases = rng.uniform(0, 2 * np.pi, (2, 3))
        self._amplitudes = np.array([6.0, 11.0, 22.0])
        angle = rng.uniform(0, 2 * np.pi)
        self._river = (np.cos(angle), np.sin(angle), rng.uniform(0, 1))
        self.district = lru_cache(maxsize=256)(partial(draw_district, seed))

    def bend(self, x: Floats, y: Floats) -> tuple[Floats, Floats]:
        """Convert world metres to the bent plane; a row `x` and a column `y` make a grid, other shapes are equal."""
        moved = []
        for axis, base in enumerate((x, y)):
            waves, phases, amplitudes = self._waves[axis], self._phases[axis], self._amplitudes
            if x.shape == y.shape:
                angles = waves[:, 0] * x[..., None] + waves[:, 1] * y[..., None] + phases
                moved.append(base + np.sin(angles) @ amplitudes)
            else:  # by the sine of a sum, sines of a row and a column are enough
                a, b = waves[:, :1] * x + phases[:, None], y * waves[:, 1]
                row = np.concatenate([np.sin(a), np.cos(a)]) * np.tile(amplitudes, 2)[:, None]
                moved.append(np.concatenate([np.cos(b), np.sin(b)], 1) @ row + base)
        return moved[0], moved[1]

    def straighten(self, qx: Floats, qy: Floats) -> tuple[Floats, Floats]:
        """Invert `bend` for lists of points by fixed-point iteration (the warp is a contraction)."""
        x, y = qx, qy
        for _ in range(9):
            bx, by = self.bend(x, y)
            x, y = x + qx - bx, y + qy - by
        return x, y

    def unbend(self, x: Floats, y: Floats, along: Floats) -> tuple[Floats, Floats]:
        """Convert directions `along` in the bent plane to world angles, counter-clockwise from east.

        Returns: the angles, and the world metres per metre of the bent plane in these directions.
        """
        step = 0.5
        east, west, north, south = (
            self.bend(x + dx, y + dy) for dx, dy in ((step, 0.0), (-step, 0.0), (0.0, step), (0.0, -step))
        )
        xx, yx, xy, yy = east[0] - west[0], east[1] - west[1], north[0] - south[0], north[1] - south[1]
        c, s = np.cos(along), np.sin(along)
        dx, dy, scale = yy * c - xy * s, xx * s - yx * c, xx * yy - xy * yx
        return np.arctan2(dy, dx), np.hypot(dx, dy) / scale

    def owners(self, x: Floats, y: Floats) -> list[tuple[int, int]]:
        """Return the keys of the districts that own the points."""
        qx, qy = (part.ravel() for part in self.bend(x, y))
        districts = self._near(qx, qy)
        own = np.stack([(qx - d.x) ** 2 + (qy - d.y) ** 2 for d in districts]).argmin(0)
        return [districts[k].key for k in np.unique(own)]

    def locate(self, x: Floats, y: Floats, *, only: tuple[int, int] | None = None) -> Places:
        """Return the properties of world points, shaped as for `bend`, which span at most a few hundred metres.

        If `only` is the key of a district, all points of other districts count as carriageway, which is faster.
        """
        qx, qy = self.bend(x, y)
        shape = qx.shape
        qx, qy = qx.ravel(), qy.ravel()
        districts = self._near(qx, qy)
        offsets = [_offsets(district, qx, qy) for district in districts]
        border, facing = np.full(qx.shape, FAR, np.float32), np.zeros(qx.shape, np.float32)
        own = np.zeros(qx.shape, np.uint8)
        if len(districts) > 1:
            squares = [dx * dx + dy * dy for dx, dy in offsets]
            own = _nearest(squares)
        edge, along = np.full(qx.shape, -FAR, np.float32), np.zeros(qx.shape, np.float32)
        ground = np.full(qx.shape, surface.ASPHALT, np.uint8)
        present = np.flatnonzero(np.bincount(own)).tolist()
        for index in present:
            district = districts[index]
            if only not in (None, district.key):
                continue
            inside = slice(None) if len(present) == 1 else np.flatnonzero(own == index)
            if len(districts) > 1:
                border[inside], facing[inside] = _border(districts, index, [square[inside] for square in squares])
            dx, dy = offsets[index]
            parts = (*district.local(dx[inside], dy[inside]), border[inside], facing[inside])
            edge[inside], ground[inside], along[inside] = survey(district, *parts)
        self._flood(qx, qy, edge, ground)
        return Places(edge.reshape(shape), ground.reshape(shape), own.reshape(shape), along.reshape(shape), districts)

    def _flood(self, qx: Floats, qy: Floats, edge: Floats, ground: NDArray[np.uint8]) -> None:
        """Add the river where no street crosses it."""
        reach = np.hypot(np.ptp(qx), np.ptp(qy))  # the distance grows at most 1.07 times as fast as the position moves
        if self._river_distance(qx[:1], qy[:1])[0] < RIVER_M + 1.1 * reach:
            ground[(self._river_distance(qx, qy) < RIVER_M) & (edge > 0.6)] = surface.WATER

    def _river_distance(self, qx: Floats, qy: Floats) -> Floats:
        cosine, sine, phase = self._river
        across = cosine * qx + sine * qy + 70.0 * np.sin((cosine * qy - sine * qx) / 190.0)
        return np.asarray(np.abs((across / 1300.0 + phase) % 1.0 - 0.5) * 1300.0)

    def _near(self, qx: Floats, qy: Floats) -> tuple[District, ...]:
        """Return the districts that own one of the points or whose border is within 60 m of them."""
        x0, x1, y0, y1 = qx.min(), qx.max(), qy.min(), qy.max()
        columns = range(int(x0 // CELL_M) - 1, int(x1 // CELL_M) + 2)
        rows = range(int(y0 // CELL_M) - 1, int(y1 // CELL_M) + 2)
        found = [self.district(i, j) for i in columns for j in rows]
        far = np.array([np.hypot(d.x - (x0 + x1) / 2, d.y - (y0 + y1) / 2) for d in found])
        limit = far.min() + np.hypot(x1 - x0, y1 - y0) + 60.0
        return tuple(d for d, distance in zip(found, far, strict=True) if distance <= limit)


def _offsets(district: District, qx: Floats, qy: Floats) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return offsets from a district's centre, which are short enough for float32."""
    return (qx - district.x).astype(np.float32), (qy - district.y).astype(np.float32)


def _nearest(squares: list[NDArray[np.float32]]) -> NDArray[np.uint8]:
    """Return the index of the smallest number at each point (much faster than argmin over a short axis)."""
    nearest, least = np.zeros(squares[0].shape, np.uint8), squares[0].copy()
    for index, square in enumerate(squares[1:], 1):
        np.copyto(nearest, np.uint8(index), where=square < least)
        np.minimum(least, square, out=least)
    return nearest


def _border(districts: tuple[District, ...], own: int, squares: list[NDArray[np.float32]]) -> tuple[Floats, Floats]:
    """Return the distance to the centre line of the nearest avenue, and the avenue's direction."""
    border, facing = np.full(squares[own].shape, FAR, np.float32), np.zeros(squares[own].shape, np.float32)
    home = districts[own]
    for index, other in enumerate(districts):
        if index != own:
            dx, dy = other.x - home.x, other.y - home.y
            distance = (squares[index] - squares[own]) * np.float32(0.5 / np.hypot(dx, dy))
            nearer = distance < border
            np.copyto(border, distance, where=nearer)
            np.copyto(facing, np.float32(np.arctan2(dx, -dy) % np.pi), where=nearer)
    return border, facing
