"""UTM: conversion between WGS 84 degrees and metres in a zone."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pyproj import Transformer


def utm_zone(latitude: float, longitude: float) -> int:
    """Return the EPSG code of the UTM zone (326xx north, 327xx south of the equator) by the plain 6-degree rule."""
    number = min(int((longitude + 180.0) // 6.0) + 1, 60)
    return (32600 if latitude >= 0 else 32700) + number


def to_utm(latitude: ArrayLike, longitude: ArrayLike, zone: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Convert WGS 84 degrees to easting and northing in metres, float64, in the zone with this EPSG code."""
    easting, northing = _transformer(zone).transform(
        np.asarray(longitude, dtype=np.float64), np.asarray(latitude, dtype=np.float64)
    )
    return np.asarray(easting, dtype=np.float64), np.asarray(northing, dtype=np.float64)


def to_degrees(easting: ArrayLike, northing: ArrayLike, zone: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Convert UTM metres in the zone with this EPSG code to WGS 84 latitude and longitude in degrees, float64."""
    longitude, latitude = _transformer(zone).transform(
        np.asarray(easting, dtype=np.float64), np.asarray(northing, dtype=np.float64), direction="INVERSE"
    )
    return np.asarray(latitude, dtype=np.float64), np.asarray(longitude, dtype=np.float64)


@lru_cache(maxsize=64)
def _transformer(zone: int) -> Transformer:
    return Transformer.from_crs("EPSG:4326", f"EPSG:{zone}", always_xy=True)
