"""Regular grids of points on the globe; the grids of different regions fit together."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from s2s_ray.errors import PriorError
from s2s_ray.geo.numbers import finite
from s2s_ray.geo.prior import ellipsoid

SMALLEST_M, LARGEST_M = 0.1, 100_000.0
_BAND_M = 10_000.0
_EQUATOR_M, _FLATTENING = 6_378_137.0, 1 / 298.257223563
_ECCENTRICITY2 = _FLATTENING * (2 - _FLATTENING)
_QUARTER_M = 10_001_965.729  # along a meridian, from the equator to a pole

Cells = NDArray[np.int64]
"""Row and column of cells of a lattice, N 2."""


@dataclass(frozen=True, slots=True)
class Lattice:
    """The points of the globe that are `every_m` metres apart, to the north and to the east.

    Row r is the parallel r * `every_m` metres north of the equator along a meridian; column 0 is the meridian of
    Greenwich. The rows of a band of 10 km have their columns at the same longitudes, in steps that are `every_m` metres
    in the band's middle: within a band the points form squares, to 0.15% up to 60 degrees of latitude (0.5% at 80).
    The lattice depends on `every_m` alone, so a cell is the same point whatever region it was asked for.

    Raises:
        PriorError: a spacing that is out of range.
    """

    every_m: float

    def __post_init__(self) -> None:
        every_m = finite("every", self.every_m, PriorError, "metres")
        if not SMALLEST_M <= every_m <= LARGEST_M:
            raise PriorError(f"every={every_m:g}: expected {SMALLEST_M:g} to {LARGEST_M:,.0f} metres")
        object.__setattr__(self, "every_m", every_m)

    def positions(self, cells: Cells) -> NDArray[np.float64]:
        """Return latitudes and longitudes of cells in degrees, N 2; longitudes are from -180 up to below 180."""
        rows, places = np.unique(cells[:, 0], return_inverse=True)
        longitudes = (cells[:, 1] * (360 / self.columns(rows)[places]) + 180) % 360 - 180
        return np.stack([self.latitudes(rows)[places], longitudes], axis=-1)

    def nearest(self, latitudes: NDArray[np.float64], longitudes: NDArray[np.float64]) -> Cells:
        """Return the cells whose row and column are nearest to points in degrees, N 2."""
        zeros = np.zeros_like(latitudes)
        azimuths, _, metres = ellipsoid().inv(zeros, zeros, zeros, latitudes)
        rows = np.rint(np.where(np.abs(azimuths) > 90, -metres, metres) / self.every_m).astype(np.int64)
        most = int(_QUARTER_M / self.every_m)
        rows = rows.clip(-most, most)
        counts = self.columns(rows)
        return np.stack([rows, _wrapped(np.rint(longitudes * (counts / 360)).astype(np.int64), counts)], axis=-1)

    def within(self, west: float, south: float, east: float, north: float) -> Cells:
        """Return all cells between two meridians and two parallels, N 2, by rows from the south.

        `east` is at least `west`, and may be above 180: cells on either side of the date line are found alike.
        """
        most = int(_QUARTER_M / self.every_m)
        ends = self.nearest(np.array([south, north]), np.zeros(2))[:, 0]
        rows = np.arange(max(ends[0] - 1, -most), min(ends[1] + 1, most) + 1)
        latitudes = self.latitudes(rows)
        rows = rows[(latitudes >= south) & (latitudes <= north)]
        counts = self.columns(rows)
        first = np.ceil(west * counts / 360).astype(np.int64)
        last = np.minimum(np.floor(east * counts / 360).astype(np.int64), first + counts - 1)
        lengths = np.maximum(last - first + 1, 0)
        starts = np.repeat(first - (np.cumsum(lengths) - lengths), lengths)
        columns = starts + np.arange(lengths.sum())
        return np.stack([np.repeat(rows, lengths), _wrapped(columns, np.repeat(counts, lengths))], axis=-1)

    def latitudes(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the latitudes of rows in degrees, N."""
        return self._latitudes(rows.astype(np.float64))

    def columns(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return how many columns go around the globe in rows, N."""
        per_band = max(1, round(_BAND_M / self.every_m))
        middles = np.radians(self._latitudes((np.floor_divide(rows, per_band) + 0.5) * per_band - 0.5))
        around = 2 * math.pi * _EQUATOR_M * np.cos(middles) / np.sqrt(1 - _ECCENTRICITY2 * np.sin(middles) ** 2)
        return np.maximum(np.rint(around / self.every_m), 1).astype(np.int64)

    def _latitudes(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        metres = np.clip(rows * self.every_m, -_QUARTER_M, _QUARTER_M)
        zeros = np.zeros(len(rows))
        found: NDArray[np.float64] = ellipsoid().fwd(zeros, zeros, zeros, metres)[1]
        return np.asarray(found)


def _wrapped(columns: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return columns in the range that starts at the date line: -counts // 2 up to below counts // 2."""
    half = counts // 2
    wrapped: NDArray[np.int64] = (columns + half) % counts - half
    return wrapped
