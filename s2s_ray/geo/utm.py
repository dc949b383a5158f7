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


def with_degrees(
    degrees: NDArray[np.float64], positions: NDArray[np.float64], zones: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return latitudes and longitudes, computed from easting and northing where only these are known.

    Args:
        degrees: latitude and longitude in degrees, N 2; NaN if unknown.
        positions: easting and northing in metres, N 2; NaN if unknown.
        zones: EPSG code of each zone, N; 0 if unknown.
    """
    latlon = degrees.copy()
    planar = np.isnan(latlon).any(axis=1) & (zones != 0)
    for zone in np.unique(zones[planar]):
        rows = planar & (zones == zone)
        latlon[rows] = np.stack(to_degrees(positions[rows, 0], positions[rows, 1], int(zone)), axis=-1)
    return np.where(np.isfinite(latlon), latlon, np.nan)


@lru_cache(maxsize=64)
def _transformer(zone: int) -> Transformer:
    return Transformer.from_crs("EPSG:4326", f"EPSG:{zone}", always_xy=True)
