"""A district: its streets and the kind of each block."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from s2s_ray.city.noise import Floats, generator

CELL_M = 360.0  # lattice of district centres
REACH_M = 620.0  # half the extent of a district's street tables
AVENUE_M = 6.2  # half the width of an avenue's carriageway
PAVEMENT_M = 2.4
FAR = 1e6

OLD, SUBURB, MODERN, MIXED = range(4)
HOUSES, ROWS, SLABS, TOWERS, MARKET, PARK, SQUARE, FARM = range(8)

_STRIP_M = {OLD: (50.0, 66.0), SUBURB: (56.0, 70.0), MODERN: (72.0, 100.0), MIXED: (54.0, 80.0)}
_BLOCK_M = {OLD: (50.0, 95.0), SUBURB: (80.0, 150.0), MODERN: (70.0, 120.0), MIXED: (60.0, 120.0)}
_HALF_M = {OLD: 3.0, SUBURB: 3.4, MODERN: 4.2, MIXED: 3.7}
_BLOCKS = {  # shares of HOUSES, ROWS, SLABS, TOWERS, MARKET, PARK, SQUARE, FARM
    OLD: (0.10, 0.58, 0.04, 0.0, 0.05, 0.09, 0.12, 0.02),
    SUBURB: (0.68, 0.10, 0.02, 0.0, 0.06, 0.08, 0.01, 0.05),
    MODERN: (0.08, 0.10, 0.30, 0.22, 0.12, 0.12, 0.06, 0.0),
    MIXED: (0.28, 0.28, 0.14, 0.06, 0.12, 0.08, 0.03, 0.01),
}


@dataclass(frozen=True, eq=False)
class District:
    """Streets and blocks of one district, in local coordinates: `u` across the long streets, `v` along them.

    Strip i lies between `lines[i]` and `lines[i + 1]`; block (i, j) of it between `cross[i, j]` and
    `cross[i, j + 1]`. The halves are half widths of carriageways in metres.
    """

    key: tuple[int, int]
    x: float
    y: float
    cosine: float
    sine: float
    kind: int
    lines: Floats
    line_half: Floats
    cross: Floats
    cross_half: Floats
    blocks: NDArray[np.int64]

    def local(self, dx: Floats, dy: Floats) -> tuple[Floats, Floats]:
        """Convert offsets from the district's centre in the bent plane to local (u, v)."""
        cosine, sine = np.float32(self.cosine), np.float32(self.sine)
        return cosine * dx + sine * dy, cosine * dy - sine * dx

    def bent(self, u: Floats, v: Floats) -> tuple[Floats, Floats]:
        """Convert local (u, v) to the bent plane."""
        return self.x + self.cosine * u - self.sine * v, self.y + self.sine * u + self.cosine * v


def draw_district(seed: int, i: int, j: int) -> District:
    """Draw the district of cell (i, j) of the lattice."""
    rng = generator(seed, 2, i, j)
    x, y = ((k + 0.5 + rng.uniform(-0.32, 0.32)) * CELL_M for k in (i, j))
    angle = rng.uniform(0, np.pi)
    kind = int(rng.choice(4, p=(0.27, 0.33, 0.17, 0.23)))
    lines = _uneven(rng, *_STRIP_M[kind], 1)[0]
    cross = _uneven(rng, *_BLOCK_M[kind], len(lines) - 1)
    half = _HALF_M[kind]
    return District(
        key=(i, j),
        x=x,
        y=y,
        cosine=float(np.cos(angle)),
        sine=float(np.sin(angle)),
        kind=kind,
        lines=lines,
        line_half=half + rng.uniform(-0.3, 0.9, lines.shape),
        cross=cross,
        cross_half=half + rng.uniform(-0.5, 0.4, cross.shape),
        blocks=rng.choice(8, (len(lines) - 1, cross.shape[1] - 1), p=_BLOCKS[kind]),
    )


def _uneven(rng: np.random.Generator, low: float, high: float, rows: int) -> Floats:
    """Return sorted positions over the whole extent with steps between `low` and `high`; rows x count."""
    count = int(2 * REACH_M / low) + 2
    steps = rng.uniform(low, high, (rows, count))
    middle = np.cumsum(steps, 1) - np.cumsum(steps, 1)[:, count // 2, None]
    return np.asarray(middle + rng.uniform(-0.5, 0.5, (rows, 1)) * low)
