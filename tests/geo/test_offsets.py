"""Metres and bearings around a point, against geodesics and flat arithmetic."""

from __future__ import annotations

import math

import numpy as np
import pytest
from pyproj import Geod

from s2s_ray.errors import PriorError
from s2s_ray.geo.offsets import circle_ring, destination, east_north, moved

GEOD = Geod(ellps="WGS84")


def test_a_destination_lies_at_its_distance_and_bearing() -> None:
    latitudes, longitudes = destination(47.0, 8.0, [[0, 90], [180, 300]], 250.0)
    assert latitudes.shape == longitudes.shape == (2, 2)
    starts = np.full(4, 8.0), np.full(4, 47.0)
    bearings, _, metres = GEOD.inv(*starts, longitudes.ravel(), latitudes.ravel())
    assert metres == pytest.approx([250] * 4)
    assert bearings % 360 == pytest.approx([0, 90, 180, 300], abs=1e-6)


def test_small_offsets_are_flat() -> None:
    """By the radii of curvature of the ellipsoid at the latitude."""
    latitude, e2 = math.radians(47.0), 0.00669437999014
    across = 6_378_137 / math.sqrt(1 - e2 * math.sin(latitude) ** 2)
    along = across * (1 - e2) / (1 - e2 * math.sin(latitude) ** 2)
    latitudes, longitudes = moved(47.0, 8.0, [30.0, -4.0], [40.0, 3.0])
    assert np.radians(latitudes - 47) * along == pytest.approx([40, 3], rel=1e-4)
    assert np.radians(longitudes - 8) * across * math.cos(latitude) == pytest.approx([30, -4], rel=1e-4)


def test_offsets_and_points_are_inverse_even_at_the_date_line() -> None:
    offsets = np.random.default_rng(0).uniform(-500, 500, (20, 2))
    latitudes, longitudes = moved(-17.0, 179.9999, *offsets.T)
    assert longitudes.min() < -179 < 179 < longitudes.max()
    np.testing.assert_allclose(east_north(-17.0, 179.9999, latitudes, longitudes), offsets, atol=1e-6)


def test_unknown_points_have_unknown_offsets() -> None:
    plane = east_north(0, 0, np.array([np.nan, 0.0]), np.array([0.0, 0.001]))
    assert np.isnan(plane[0]).all()
    assert plane[1] == pytest.approx([111.32, 0], abs=0.01)


@pytest.mark.parametrize("longitude", [8.0, 180.0, -179.9999])
def test_a_circle_is_a_closed_ring_in_one_piece(longitude: float) -> None:
    ring = circle_ring(47.0, longitude, 300.0, corners=12)
    longitudes, latitudes = np.array(ring).T
    assert len(ring) == 13
    assert ring[0] == ring[-1]
    assert np.abs(np.diff(longitudes)).max() < 0.01
    metres = GEOD.inv(np.full(13, longitude), np.full(13, 47.0), longitudes, latitudes)[2]
    assert metres == pytest.approx([300] * 13)
    doubled_area = np.sum(longitudes[:-1] * latitudes[1:] - longitudes[1:] * latitudes[:-1])
    assert doubled_area > 0  # anticlockwise


@pytest.mark.parametrize(("latitude", "radius"), [(91, 10), (0, 0), (0, math.nan), (math.nan, 1)])
def test_circles_that_cannot_be_are_refused(latitude: float, radius: float) -> None:
    with pytest.raises(PriorError, match="expected"):
        circle_ring(latitude, 0, radius)
