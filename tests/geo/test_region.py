"""Regions against point-by-point evaluations, and their grids against geodesics."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pyproj import Geod

from s2s_ray.errors import PriorError
from s2s_ray.geo.lattice import Lattice
from s2s_ray.geo.prior import Box
from s2s_ray.geo.region import Region

GEOD = Geod(ellps="WGS84")
Corners = list[tuple[float, float]]


def ring(corners: Corners) -> list[list[float]]:
    return [list(corner) for corner in [*corners, corners[0]]]


def polygon(*rings: Corners) -> dict[str, Any]:
    return {"type": "Polygon", "coordinates": [ring(one) for one in rings]}


def star(seed: int, longitude: float, latitude: float, size: float, corners: int = 9) -> Corners:
    """A ring around a point whose corners are at random distances."""
    rng = np.random.default_rng(seed)
    angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
    radii = size * rng.uniform(0.3, 1, corners)
    return [
        (longitude + r * math.cos(a), latitude + r * math.sin(a)) for a, r in zip(angles, radii, strict=True)
    ]  # fmt: skip


def winds_around(x: float, y: float, corners: Corners) -> bool:
    """Whether the angles under which a point sees the ring's lines add up to a turn."""
    total = 0.0
    for (x1, y1), (x2, y2) in zip(corners, [*corners[1:], corners[0]], strict=True):
        one, two = math.atan2(y1 - y, x1 - x), math.atan2(y2 - y, x2 - x)
        total += (two - one + math.pi) % (2 * math.pi) - math.pi
    return abs(total) > math.pi


def points_around(seed: int, longitude: float, latitude: float, size: float) -> NDArray[np.float64]:
    return np.random.default_rng(seed).uniform(-size, size, (300, 2)) + np.array([longitude, latitude])


@pytest.mark.parametrize("seed", range(8))
def test_a_polygon_with_a_hole_contains_the_points_that_it_winds_around(seed: int) -> None:
    outline, hole = star(seed, 8.5, 47.3, 0.02), star(seed + 50, 8.5, 47.3, 0.005)
    longitudes, latitudes = points_around(seed + 100, 8.5, 47.3, 0.02).T
    found = Region.of_geojson(polygon(outline, hole)).mask(latitudes, longitudes)
    expected = [
        winds_around(x, y, outline) != winds_around(x, y, hole) for x, y in zip(longitudes, latitudes, strict=True)
    ]  # fmt: skip
    assert found.tolist() == expected
    assert 0 < sum(expected) < len(expected)


@pytest.mark.parametrize("seed", range(3))
def test_the_date_line_changes_nothing(seed: int) -> None:
    corners = star(seed, 0.0, -17.0, 0.3)
    away = [((x + 360) % 360 - 180, y) for x, y in corners]  # around 180, written from -180 to 180
    longitudes, latitudes = points_around(seed, 0.0, -17.0, 0.3).T
    here, there = Region.of_geojson(polygon(corners)), Region.of_geojson(polygon(away))
    inside = here.mask(latitudes, longitudes)
    np.testing.assert_array_equal(there.mask(latitudes, (longitudes + 360) % 360 - 180), inside)
    assert inside.any()
    assert there.bounds.west > 179 > -179 > there.bounds.east
    assert there.area_m2 == pytest.approx(here.area_m2)
    assert abs(len(there.grid(500)) - len(here.grid(500))) < 100
    assert Region.of_geojson(there.geojson()) == there


def test_a_box_is_its_text_its_polygon_and_its_bounds() -> None:
    region = Region.parse(" 8.50, 47.30,8.56,47.34\n")
    assert region.bounds == Box(8.5, 47.3, 8.56, 47.34)
    text = json.dumps(polygon([(8.5, 47.3), (8.56, 47.3), (8.56, 47.34), (8.5, 47.34)]))
    assert Region.parse("\ufeff" + text) == region
    longitudes, latitudes = points_around(0, 8.53, 47.32, 0.04).T
    np.testing.assert_array_equal(region.mask(latitudes, longitudes), region.bounds.mask(latitudes, longitudes))
    assert not region.mask(np.array([np.nan, 47.31]), np.array([8.51, np.nan])).any()


@pytest.mark.parametrize("text", ["-180,-90,180,90", "-100,-10,100,10", "170,0,-170,1", "0,0,180,1", "-180,0,0,1"])
def test_wide_boxes_and_those_across_the_date_line(text: str) -> None:
    box = Box(*map(float, text.split(",")))
    region = Region.parse(text)
    assert region.bounds == box
    assert Region.of_geojson(region.geojson()) == region
    rng = np.random.default_rng(0)
    latitudes, longitudes = rng.uniform(-90, 90, 500), rng.uniform(-180, 180, 500)
    np.testing.assert_array_equal(region.mask(latitudes, longitudes), box.mask(latitudes, longitudes))


def test_bounds_leave_out_the_largest_gap() -> None:
    def bounds(*boxes: tuple[float, float]) -> Box:
        parts = [[ring([(west, 0), (east, 0), (east, 1), (west, 1)])] for west, east in boxes]
        return Region.of_geojson({"type": "MultiPolygon", "coordinates": parts}).bounds

    assert bounds((10, 20), (30, 40)) == Box(10, 0, 40, 1)
    assert bounds((170, 175), (-178, -170)) == Box(170, 0, -170, 1)
    assert bounds((-100, 0), (0, 100), (100, 190), (-175, -90)) == Box(-180, 0, 180, 1)
    assert bounds((10, 40), (20, 30)) == Box(10, 0, 40, 1)


@pytest.mark.parametrize("latitude", [0.0, 47.0, -70.0])
def test_the_area_is_that_of_the_ellipsoid(latitude: float) -> None:
    outline, hole = star(1, 20.0, latitude, 0.4), star(2, 20.0, latitude, 0.1)

    def by_geodesics(corners: Corners) -> float:
        steps = np.linspace(0, 1, 200, endpoint=False)[:, None]
        lines = zip(np.array(corners), np.roll(np.array(corners), -1, 0), strict=True)
        dense = np.concatenate([a + (b - a) * steps for a, b in lines])
        return abs(float(GEOD.polygon_area_perimeter(dense[:, 0], dense[:, 1])[0]))

    found = Region.of_geojson(polygon(outline, hole)).area_m2
    assert found == pytest.approx(by_geodesics(outline) - by_geodesics(hole), rel=1e-6)


def test_features_and_collections_are_the_same_region() -> None:
    one, two = polygon([(0, 0), (1, 0), (1, 1)]), polygon([(2, 0), (3, 0), (3, 1)])
    both = Region.of_geojson({"type": "MultiPolygon", "coordinates": [one["coordinates"], two["coordinates"]]})
    feature = {"type": "Feature", "properties": {}, "geometry": one}
    collection = {"type": "FeatureCollection", "features": [feature, {**feature, "geometry": two}]}
    assert Region.of_geojson(collection) == both
    assert Region.of_geojson(feature).joined(Region.of_geojson(two)).joined(Region.of_geojson(one)) == both


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1,2,3", "expected WEST,SOUTH,EAST,NORTH"),
        ("a,b,c,d", "expected four numbers"),
        ("0,2,1,1", "south=2 is above north=1"),
        ("0,0,0,1", "no area"),
        ("0,0,nan,1", "longitude nan"),
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "expected a Polygon"),
        ('{"type": "Point", "coordinates": [1, 2]}', "type='Point': expected a Polygon"),
        ('{"type": "FeatureCollection", "features": []}', "no polygon"),
        ('{"type": "Feature", "geometry": null}', r"region\.geometry=None"),
        ('{"type": "Polygon"}', "coordinates=None: expected a list"),
        ('{"type": "Polygon", "coordinates": []}', "expected a polygon's outline"),
        ('{"type": "Polygon", "coordinates": [[[0, 0], [1, 0], [0, 0]]]}', "3 positions .* at least four"),
        ('{"type": "Polygon", "coordinates": [[[0, 0], [1, 0], [1, 1], [0, 1]]]}', "closed ring"),
        ('{"type": "Polygon", "coordinates": [[[0, 0], [1, 1], [2, 2], [0, 0]]]}', "no area"),
        ('{"type": "Polygon", "coordinates": [[[0, 0], [1, 1], [0, 0], [1, 1], [0, 0]]]}', "at least three different"),
        (
            '{"type": "Polygon", "coordinates": [[[7, 47], [7.1, 47.3], [7.2, 47.6], [7.3, 47.9], [7, 47]]]}',
            "all of its positions lie on one line",
        ),
        (
            '{"type": "Polygon", "coordinates": [[[0, 0], [1, 1], [0, 1], [1, 0], [0, 0]]]}',
            r"region\.coordinates\[0\]: the ring crosses or touches itself: "
            r"the line region\.coordinates\[0\], 0,0 to 1,1, and the line region\.coordinates\[0\], 0,1 to 1,0",
        ),
        (
            '{"type": "Polygon", "coordinates": [[[179, 0], [-179, 2], [-179, 0], [179, 2], [179, 0]]]}',
            "179,0 to 181,2, and the line .* 181,0 to 179,2",
        ),
        ('{"type": "Polygon", "coordinates": [[[0, 0], [2, 0], [2, 2], [2, 1], [0, 0]]]}', "touches itself"),
        (
            '{"type": "MultiPolygon", "coordinates": [[[[0, 0], [9, 0], [9, 9], [0, 0]], '
            "[[1, 2], [1, 3], [2, 3], [1, 2]]]]}",
            r"region\.coordinates\[0\]\[1\]: the hole lies outside of its outline, region\.coordinates\[0\]\[0\]",
        ),
        (
            '{"type": "Polygon", "coordinates": [[[0, 0], [9, 0], [9, 9], [0, 0]], [[5, 1], [8, 1], [5, 8], [5, 1]]]}',
            r"two rings of a polygon cross: the line region.coordinates\[0\], 9,9 to 0,0, and the line .*\[1\], ",
        ),
        (
            '{"type": "Polygon", "coordinates": [[[0, 0], [9, 0], [9, 9], [0, 0]], [[0, 0], [9, 9], [9, 0], [0, 0]]]}',
            "leave nothing of the outline",
        ),
        (
            '{"type": "Polygon", "coordinates": [[[0, 0], [1], [1, 1], [0, 0]]]}',
            r"\[0\]\[1\]=\[1\]: expected longitude",
        ),
        ('{"type": "Polygon", "coordinates": [[[0, 0], ["1", 0], [1, 1], [0, 0]]]}', r"\[1\]\[0\]='1': expected a num"),
        ('{"type": "Polygon", "coordinates": [[[0, 0], [NaN, 0], [1, 1], [0, 0]]]}', "expected a longitude"),
        ('{"type": "Polygon", "coordinates": [[[0, 0], [0, 120], [1, 1], [0, 0]]]}', "longitude first"),
        ('{"type": "Polygon", "coordinates": [[[0, 0], [690000, 0], [1, 1], [0, 0]]]}', "WGS 84 degrees"),
        (
            '{"type": "Polygon", "coordinates": [[[0, 80], [120, 80], [240, 80], [360, 80], [0, 80]]]}',
            "goes around a pole",
        ),
    ],
)
def test_what_is_no_region_is_refused(text: str, words: str) -> None:
    with pytest.raises(PriorError, match=words):
        Region.parse(text)


def test_repeated_positions_and_holes_that_touch_are_allowed() -> None:
    outline = [(0, 0), (0, 0), (9, 0), (9, 9), (9, 9), (0, 9)]
    region = Region.of_geojson(polygon(outline, [(0, 4), (3, 3), (3, 5)]))
    assert region.polygons[0][0] == ((0, 0), (9, 0), (9, 9), (0, 9))
    assert Region.of_geojson(region.geojson()) == region
    assert region.mask(np.array([4.0, 8.0]), np.array([2.0, 2.0])).tolist() == [False, True]


class TestGrid:
    region = Region.parse("8.50,47.30,8.51,47.31")

    def test_it_has_the_points_inside_at_the_spacing(self) -> None:
        points = self.region.grid(40)
        assert len(points) == pytest.approx(self.region.area_m2 / 40**2, rel=0.03)
        assert self.region.mask(points[:, 0], points[:, 1]).all()
        for latitude, longitude in points[[0, 50, 200]]:
            starts = np.full(len(points), longitude), np.full(len(points), latitude)
            metres = GEOD.inv(*starts, points[:, 1], points[:, 0])[2]
            assert np.sort(metres)[1:3] == pytest.approx(40, rel=2e-3)

    def test_the_order_is_by_row_then_by_column(self) -> None:
        cells = self.region.grid_cells(40)
        assert [tuple(cell) for cell in cells] == sorted({tuple(cell) for cell in cells.tolist()})
        np.testing.assert_array_equal(Lattice(40).positions(cells), self.region.grid(40))

    def test_another_region_continues_the_same_lattice(self) -> None:
        other = Region.parse("8.505,47.305,8.52,47.32")
        mine, others = (set(map(tuple, one.grid_cells(40).tolist())) for one in (self.region, other))
        assert set(map(tuple, self.region.joined(other).grid_cells(40).tolist())) == mine | others
        assert mine & others

    def test_every_point_is_within_half_a_cell_of_the_lattice(self) -> None:
        rng = np.random.default_rng(0)
        latitudes, longitudes = rng.uniform(-80, 80, 200), rng.uniform(-180, 180, 200)
        lattice = Lattice(25)
        cells = lattice.nearest(latitudes, longitudes)
        positions = lattice.positions(cells)
        np.testing.assert_array_equal(lattice.nearest(*positions.T), cells)
        metres = GEOD.inv(longitudes, latitudes, positions[:, 1], positions[:, 0])[2]
        assert metres.max() < 25 * math.sqrt(0.5) * 1.01

    def test_rows_are_metres_along_the_meridian(self) -> None:
        rows = np.array([0, 1, -1, 100_000])
        metres = GEOD.inv(np.zeros(4), np.zeros(4), np.zeros(4), Lattice(30).latitudes(rows))[2]
        assert metres == pytest.approx([0, 30, 30, 3_000_000], abs=1e-3)

    def test_every_cell_of_a_row_is_found_once(self) -> None:
        cells = Lattice(100_000).within(-180, -90, 180, 90)
        unique, counts = np.unique(cells[:, 0], return_counts=True)
        np.testing.assert_array_equal(counts, Lattice(100_000).columns(unique))
        assert len({tuple(cell) for cell in cells.tolist()}) == len(cells)
        assert unique.tolist() == list(range(-100, 101))

    @pytest.mark.parametrize("every", [0, -1, math.nan, 1e6])
    def test_a_spacing_out_of_range_is_refused(self, every: float) -> None:
        with pytest.raises(PriorError, match="every="):
            self.region.grid(every)

    def test_too_many_points_are_refused_before_they_are_made(self) -> None:
        with pytest.raises(PriorError, match=r"every=1: a region of .* more than 50,000,000"):
            Region.parse("0,40,10,50").grid(1)
