"""Distances between places: against pyproj's geodesics, everywhere on the Earth."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from pyproj import Geod

from s2s_ray.geo.places import Places

WGS84 = Geod(ellps="WGS84")
BORDERS = [
    (48.1, 12.0),  # UTM zones 32 and 33
    (0.0, 11.3),  # the equator, where northings jump by 10,000 km
    (-17.2, 180.0),  # the date line, zones 60 and 1
    (84.0, 20.0),  # the end of UTM
    (89.999999, 30.0),  # the pole
    (-90.0, 0.0),
    (60.0, 3.0),  # an irregular zone of the grid reference system
]


def around(latitude: float, longitude: float, metres: float, count: int) -> tuple[NDArray[np.float64], Places]:
    """A place and `count` others about `metres` away in all directions: the exact distances, and the places."""
    rng = np.random.default_rng(0)
    distances = metres * rng.uniform(0.99, 1.01, count)
    starts = np.full(count, longitude), np.full(count, latitude)
    longitudes, latitudes, _ = WGS84.fwd(*starts, rng.uniform(0, 360, count), distances)
    rows = np.stack([latitudes, longitudes], axis=-1)
    return distances, Places.on_ellipsoid(np.concatenate([[[latitude, longitude]], rows]))


@pytest.mark.parametrize(("latitude", "longitude"), BORDERS)
@pytest.mark.parametrize("metres", [7.0, 25.0, 1000.0, 50_000.0])
def test_a_radius_decides_as_the_geodesic_does_at_every_border(
    latitude: float, longitude: float, metres: float
) -> None:
    distances, places = around(latitude, longitude, metres, 200)
    near = places[:1].within(places[1:], metres)[0]
    sure = np.abs(distances / metres - 1) > 1e-7
    assert sure.sum() > 190
    assert np.array_equal(near[sure], (distances <= metres)[sure])
    assert places[np.zeros(200, np.int64)].metres_to(places[1:]) == pytest.approx(distances, abs=1e-7)


def test_whole_earths_and_no_distance_are_within_their_radius() -> None:
    places = Places.on_ellipsoid(np.array([[48.0, 11.0], [-48.0, -169.0], [48.0, 11.0]]))
    assert places.within(places, 21_000_000.0).all()
    assert np.array_equal(places.within(places, 0.0), [[1, 0, 1], [0, 1, 0], [1, 0, 1]])
    assert places[:1].metres_to(places[1:2]) == pytest.approx(20_003_931, abs=10)  # half of a meridian's ellipse


@pytest.mark.parametrize(
    "names",
    [[(0, 180), (0, -180)], [(48.1, -180), (48.1, 180)], [(90, 0), (90, 50), (90, -180)], [(-90, 7), (-90, -171.3)]],
)
def test_a_place_with_several_coordinates_is_one_place(names: list[tuple[float, float]]) -> None:
    places = Places.on_ellipsoid(np.array(names, float))
    assert places.within(places, 0.0).all()
    assert not places.metres_to(places[np.zeros(len(names), np.int64)]).any()


def test_a_pole_without_a_longitude_is_unknown() -> None:
    assert Places.on_ellipsoid(np.array([[90.0, np.nan], [np.nan, 180.0]])).frames.tolist() == [0, 0]


def test_unknown_places_are_near_nothing() -> None:
    places = Places.on_ellipsoid(np.array([[48.0, 11.0], [np.nan, np.nan], [48.0, np.nan]]))
    assert places.within(places, 1e9).tolist() == [[True, False, False], [False] * 3, [False] * 3]
    assert np.isnan(places[np.array([0, 1, 1])].metres_to(places[np.array([1, 1, 2])])).all()


def test_places_of_other_zones_are_near_nothing_under_the_rule_of_zones() -> None:
    places = Places(
        np.array([[690_000.0, 6e6], [690_003.0, 6e6 + 4], [690_000.0, 6e6]]), np.array([32755, 32755, 32756])
    )
    assert places.within(places, 5.0).tolist() == [[True, True, False], [True, True, False], [False, False, True]]
    metres = places[np.array([0, 0])].metres_to(places[np.array([1, 2])])
    assert metres[0] == 5.0
    assert np.isnan(metres[1])


def test_the_map_keeps_distances_across_borders() -> None:
    for latitude, longitude in BORDERS:
        distances, places = around(latitude, longitude, 20_000.0, 20)
        plane = places.plane()
        assert np.hypot(*(plane[1:] - plane[0]).T) == pytest.approx(distances, rel=1e-4)
