"""Prior knowledge of where a panorama was taken: a circle or a box, in WGS 84 degrees and metres."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from s2s_ray.errors import PriorError
from s2s_ray.geo.numbers import real

if TYPE_CHECKING:
    from pyproj import Geod

_METRES_PER_DEGREE = 110_500.0  # of latitude, a little less than anywhere on the ellipsoid
LARGEST_RADIUS_M = 20_100_000.0  # half of the circumference


@dataclass(frozen=True, slots=True)
class Circle:
    """All points within `radius_m` metres, along the ellipsoid, of a point."""

    latitude: float
    longitude: float
    radius_m: float

    def __post_init__(self) -> None:
        _as_floats(self)
        check_position(self.latitude, self.longitude)
        if not 0 < self.radius_m <= LARGEST_RADIUS_M:
            raise PriorError(f"radius {self.radius_m:g} m: expected above 0 and at most {LARGEST_RADIUS_M:,.0f}")

    def mask(self, latitudes: NDArray[np.float64], longitudes: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return a mask of the N points that lie inside; unknown points (NaN) do not."""
        # The band of latitude is cheap and avoids the geodesic for nearly all points.
        inside = np.abs(latitudes - self.latitude) <= self.radius_m / _METRES_PER_DEGREE
        rows = np.flatnonzero(inside & np.isfinite(longitudes))
        metres = distances_m(self.latitude, self.longitude, latitudes[rows], longitudes[rows])
        inside[:] = False
        inside[rows[metres <= self.radius_m]] = True
        return inside


@dataclass(frozen=True, slots=True)
class Box:
    """All points between two meridians and two parallels; `west` > `east` spans the date line."""

    west: float
    south: float
    east: float
    north: float

    def __post_init__(self) -> None:
        _as_floats(self)
        check_position(self.south, self.west)
        check_position(self.north, self.east)
        if self.south > self.north:
            raise PriorError(f"south={self.south:g} is above north={self.north:g}: expected west,south,east,north")

    def mask(self, latitudes: NDArray[np.float64], longitudes: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return a mask of the N points that lie inside or on the edge; unknown points (NaN) do not."""
        # Degrees east of the western edge, so that -180 and 180 are one meridian.
        width = self.east - self.west if self.west <= self.east else self.east - self.west + 360
        across = (longitudes - self.west) % 360 <= width
        inside: NDArray[np.bool_] = across & (latitudes >= self.south) & (latitudes <= self.north)
        return inside


Prior = Circle | Box


@dataclass(frozen=True, slots=True)
class FileCircle:
    """The circle around the position that a picture's own metadata names."""

    radius_m: float = 2000.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "radius_m", self.around((0.0, 0.0)).radius_m)

    @classmethod
    def parse(cls, text: str) -> FileCircle:
        """Return the circle that `file` or `file,METRES` stands for. Raises PriorError."""
        word, comma, metres = text.partition(",")
        try:
            if word == "file":
                return cls(float(metres)) if comma else cls()
        except ValueError as error:
            if isinstance(error, PriorError):
                raise
        raise PriorError(f"{_shown(text)}: expected file or file,METRES")

    def around(self, position: tuple[float, float]) -> Circle:
        """Return the circle around a latitude and longitude. Raises PriorError."""
        return Circle(*position, self.radius_m)


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:40]}...")


def _as_floats(prior: Prior) -> None:
    """Make the numbers of a new area Python's own, whose text is the same for every version of NumPy."""
    for field in fields(prior):
        object.__setattr__(prior, field.name, real(field.name, getattr(prior, field.name), PriorError))


def check_position(latitude: float, longitude: float) -> None:
    """Raise `PriorError` for coordinates that are not a position on Earth."""
    if not -90 <= latitude <= 90:
        raise PriorError(f"latitude {latitude:g}: expected -90 to 90")
    if not -180 <= longitude <= 180:
        raise PriorError(f"longitude {longitude:g}: expected -180 to 180")


def distances_m(
    latitude: float, longitude: float, latitudes: NDArray[np.float64], longitudes: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the metres along the WGS 84 ellipsoid from a point to each of N points; NaN for unknown points."""
    count = len(latitudes)
    known = np.isfinite(latitudes) & np.isfinite(longitudes)
    metres = np.full(count, math.nan)
    if known.any():
        start = np.full(int(known.sum()), longitude), np.full(int(known.sum()), latitude)
        metres[known] = ellipsoid().inv(*start, longitudes[known], latitudes[known])[2]
    return metres


@lru_cache(maxsize=1)
def ellipsoid() -> Geod:
    """Return the WGS 84 ellipsoid, for geodesics."""
    from pyproj import Geod  # slow to import, and most processes need no distances

    return Geod(ellps="WGS84")
