"""Latitude and longitude to UTM metres, and back."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pyproj import Transformer


def utm_zone(latitude: float, longitude: float) -> int:
    """EPSG code of the UTM zone (326xx north, 327xx south of the equator) by the 6-degree rule, without exceptions."""
    number = min(int((longitude + 180.0) // 6.0) + 1, 60)
    return (32600 if latitude >= 0 else 32700) + number


def to_utm(latitude: ArrayLike, longitude: ArrayLike, zone: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Easting and northing in metres, float64, of WGS 84 degrees in a zone given by its EPSG code."""
    easting, northing = _transformer(zone).transform(
        np.asarray(longitude, dtype=np.float64), np.asarray(latitude, dtype=np.float64)
    )
    return np.asarray(easting, dtype=np.float64), np.asarray(northing, dtype=np.float64)


def to_degrees(easting: ArrayLike, northing: ArrayLike, zone: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """WGS 84 latitude and longitude in degrees of UTM metres in a zone given by its EPSG code."""
    longitude, latitude = _transformer(zone).transform(
        np.asarray(easting, dtype=np.float64), np.asarray(northing, dtype=np.float64), direction="INVERSE"
    )
    return np.asarray(latitude, dtype=np.float64), np.asarray(longitude, dtype=np.float64)


@lru_cache(maxsize=64)
def _transformer(zone: int) -> Transformer:
    return Transformer.from_crs("EPSG:4326", f"EPSG:{zone}", always_xy=True)
