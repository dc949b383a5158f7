"""Areas against independent arithmetic."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyproj import Geod

from s2s_ray.errors import PriorError
from s2s_ray.geo.prior import (
    Box,
    Circle,
    distances_m,
)

LATITUDES, LONGITUDES = st.floats(-90, 90), st.floats(-180, 180)


@given(st.tuples(LATITUDES, LONGITUDES), st.floats(1, 2e7), st.lists(st.tuples(LATITUDES, LONGITUDES), max_size=8))
def test_a_circle_contains_the_points_within_the_geodesic_distance(
    centre: tuple[float, float], radius: float, points: list[tuple[float, float]]
) -> None:
    latitudes, longitudes = np.array(points, np.float64).reshape(-1, 2).T
    inside = Circle(*centre, radius).mask(latitudes, longitudes)
    for (latitude, longitude), found in zip(points, inside, strict=True):
        metres = Geod(ellps="WGS84").inv(centre[1], centre[0], longitude, latitude)[2]
        assert found == (metres <= radius)


def test_boxes_have_edges_and_cross_the_date_line() -> None:
    latitudes = np.array([0.0, 1.0, -1.0, 0.0, math.nan, 0.0])
    longitudes = np.array([179.5, 170, -175, 0, 175, math.nan])
    assert Box(170, -1, -170, 1).mask(latitudes, longitudes).tolist() == [True, True, True, False, False, False]
    assert Box(170, -1, 180, 1).mask(np.zeros(2), np.array([-180.0, 180.0])).all()  # one meridian
    assert Box(-180, -1, -170, 1).mask(np.zeros(2), np.array([-180.0, 180.0])).all()
    assert Box(-180, -1, 180, 1).mask(np.zeros(3), np.array([-180.0, 0.0, 180.0])).all()
    assert Box(-10, 0, 170, 1).mask(latitudes, longitudes).tolist() == [False, True, False, True, False, False]


def test_unknown_positions_are_outside_and_without_distance() -> None:
    latitudes, longitudes = np.array([math.nan, 0.0, 0.0]), np.array([0.0, math.nan, 0.0])
    assert Circle(0, 0, 1000).mask(latitudes, longitudes).tolist() == [False, False, True]
    found = distances_m(0.0, 0.001, latitudes, longitudes)
    assert np.isnan(found[:2]).all()
    assert found[2] == pytest.approx(111.32, abs=0.01)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Circle(0, 0, 0), "radius 0 m"),
        (lambda: Circle(0, 0, math.nan), "radius nan m"),
        (lambda: Circle(math.nan, 0, 1), "latitude nan"),
        (lambda: Box(0, 2, 1, 1), "south=2 is above north=1"),
        (lambda: Box(0, 0, 181, 1), "longitude 181"),
    ],
)
def test_invalid_areas_are_refused(make: object, words: str) -> None:
    with pytest.raises(PriorError, match=words):
        make()  # type: ignore[operator]
