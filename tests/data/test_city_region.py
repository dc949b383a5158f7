"""Regions of the procedural city: imagery cut at any position, and pictures taken off any grid."""

from __future__ import annotations

import itertools
import pickle

import numpy as np
import pytest
from pyproj import Geod

from s2s_ray.city import surface
from s2s_ray.config import SyntheticSourceConfig
from s2s_ray.data.sources import open_imagery
from s2s_ray.data.sources.synthetic import ORIGIN, CityImagery, Picture, SyntheticSource, unseen_region
from s2s_ray.errors import InputError, UnreadableImageError
from s2s_ray.geo.prior import Box
from s2s_ray.geo.region import Region
from s2s_ray.geo.utm import to_degrees, to_utm

CONFIG = SyntheticSourceConfig(
    seed=3, train_pairs=30, test_pairs=20, tile_px=48, panorama_height=20, panorama_width=72, panorama_rays=1
)
SIDE = 150.0


@pytest.fixture(scope="module")
def source() -> SyntheticSource:
    return SyntheticSource(CONFIG)


@pytest.fixture(scope="module")
def region() -> Region:
    return unseen_region(SIDE)


@pytest.fixture(scope="module")
def imagery() -> CityImagery:
    return CityImagery(CONFIG)


@pytest.fixture(scope="module")
def pictures(source: SyntheticSource, region: Region) -> dict[bool, list[Picture]]:
    return {anywhere: list(source.pictures(region, 40, anywhere=anywhere, seed=5)) for anywhere in (False, True)}


def metres(pictures: list[Picture]) -> np.ndarray:
    return np.array([(p.record.easting, p.record.northing) for p in pictures], float) - ORIGIN


class TestRegion:
    def test_it_is_a_square_that_no_training_pair_shows(self, source: SyntheticSource, region: Region) -> None:
        box = region.bounds
        assert region.area_m2 == pytest.approx(SIDE**2, rel=0.1)
        for record in source.records():
            if record.split == "train":
                assert record.longitude is not None
                assert record.longitude < box.west - 0.005  # 400 m away


class TestPictures:
    def test_they_lie_in_the_region_off_any_grid(self, pictures: dict[bool, list[Picture]], region: Region) -> None:
        for found in pictures.values():
            degrees = np.array([(p.record.latitude, p.record.longitude) for p in found], float)
            assert region.mask(degrees[:, 0], degrees[:, 1]).all()
            east, north = metres(found).T
            for part in (east, north):
                assert np.ptp(part) > SIDE / 2
                assert abs((part % 1).mean() - 0.5) < 0.2

    def test_position_in_degrees_and_in_metres_agree(self, pictures: dict[bool, list[Picture]]) -> None:
        records = [p.record for p in pictures[True]]
        for one, other in itertools.pairwise(records):
            assert None not in (one.longitude, one.easting, one.northing)
            straight = np.hypot(one.easting - other.easting, one.northing - other.northing)  # type: ignore[operator]
            ends = (one.longitude, one.latitude, other.longitude, other.latitude)
            assert Geod(ellps="WGS84").inv(*ends)[2] == pytest.approx(straight, rel=1e-3)

    def test_people_stand_on_streets_paths_and_squares(
        self, pictures: dict[bool, list[Picture]], source: SyntheticSource
    ) -> None:
        public = (surface.ASPHALT, surface.MARKING, surface.PAVEMENT, surface.PLAZA, surface.PATH, surface.PARKING)
        grounds = {anywhere: source.city.plan.locate(*metres(found).T).ground for anywhere, found in pictures.items()}
        assert np.isin(grounds[False], public).all()
        assert not np.isin(grounds[True], public).all()

    def test_nobody_stands_inside_something(self, pictures: dict[bool, list[Picture]], source: SyntheticSource) -> None:
        for x, y in metres(pictures[False] + pictures[True]):
            things = source.city.things(x - 1, y - 1, 2.0)
            for solid in things.solids:
                dx, dy = x - solid["x"], y - solid["y"]
                along = abs(solid["cosine"] * dx + solid["sine"] * dy)
                across = abs(solid["cosine"] * dy - solid["sine"] * dx)
                assert along > solid["a"] or across > solid["b"]
            for tree in things.trees:
                assert np.hypot(x - tree["x"], y - tree["y"]) > tree["radius"]

    @pytest.mark.slow
    def test_fewer_are_the_first_ones_and_another_seed_is_elsewhere(
        self, pictures: dict[bool, list[Picture]], region: Region
    ) -> None:
        again = list(SyntheticSource(CONFIG).pictures(region, 2, seed=5))
        assert [p.record for p in again] == [p.record for p in pictures[False][:2]]
        assert all(np.array_equal(a.panorama, b.panorama) for a, b in zip(again, pictures[False], strict=False))
        [other] = SyntheticSource(CONFIG).pictures(region, 1, seed=6)
        assert other.record.latitude != again[0].record.latitude

    def test_the_panorama_is_the_view_from_there(
        self, pictures: dict[bool, list[Picture]], source: SyntheticSource
    ) -> None:
        """Another light, the same buildings: where the sky begins is the same in each column."""
        for picture in pictures[False][:6]:
            assert picture.panorama.shape == (20, 72, 3)
            street = source.read(picture.record).street
            near, other = (_skyline(picture.panorama) - _skyline(one) for one in (street, street[:, ::-1]))
            assert np.abs(near).mean() < 1.5
            assert np.abs(near).mean() < np.abs(other).mean()

    def test_regions_without_a_place_are_refused(self, source: SyntheticSource, region: Region) -> None:
        abroad = Region.of_box(Box(10.0, 47.0, 10.01, 47.01))
        with pytest.raises(InputError, match=r"latitude 47\S*, longitude 10\S* is beyond the city's UTM zone, 32755"):
            next(source.pictures(abroad, 1))


def _skyline(street: np.ndarray) -> np.ndarray:
    """Return the row in each column where the picture changes most below the zenith."""
    grey = street.astype(float).mean(-1)
    return np.asarray(np.abs(np.diff(grey, axis=0))[:11].argmax(0))


class TestImagery:
    @pytest.mark.slow
    def test_a_tile_shows_the_ground_of_its_position(self, imagery: CityImagery, source: SyntheticSource) -> None:
        """Another light than the pair's tile, but the same streets and roofs: only the right shift agrees."""
        for record in source.records()[:3]:
            assert record.latitude is not None
            assert record.longitude is not None
            own = source.read(record).satellite
            found = imagery.cut(record.latitude, record.longitude, 64.0, 48)
            assert found.shape == own.shape
            agreement = {shift: _correlation(own, np.roll(found, shift, (0, 1))) for shift in _shifts(3)}
            assert max(agreement, key=lambda shift: agreement[shift]) == (0, 0)
            assert agreement[0, 0] > 0.5

    @pytest.mark.slow
    def test_one_cut_continues_another(self, imagery: CityImagery, region: Region) -> None:
        box = region.bounds
        latitude, longitude = (box.south + box.north) / 2, (box.west + box.east) / 2
        wide = imagery.cut(latitude, longitude, 300.0, 300)  # rendered in four parts
        for east, north in ((0, 0), (70, -31), (-110, 96)):
            place = np.array([_moved(latitude, longitude, east, north)])
            [(right, up)] = imagery.offsets(latitude, longitude, place)
            assert (right, up) == pytest.approx((east, north), abs=1e-3)
            part = imagery.cut(place[0, 0], place[0, 1], 60.0, 60)
            expected = wide[120 - north : 180 - north, 120 + east : 180 + east]
            # The grain of the ground differs. A shift by a pixel changes more.
            difference = np.abs(part.astype(int) - expected).mean()
            assert difference < 6
            assert np.abs(part.astype(int) - np.roll(expected, 1, 1)).mean() > difference + 1

    def test_it_can_be_sent_to_workers(self, imagery: CityImagery, region: Region) -> None:
        box = region.bounds
        other = pickle.loads(pickle.dumps(imagery))
        np.testing.assert_array_equal(
            other.cut(box.south, box.west, 40.0, 32), imagery.cut(box.south, box.west, 40.0, 32)
        )
        assert isinstance(open_imagery(CONFIG), CityImagery)

    def test_it_ends_with_its_zone(self, imagery: CityImagery) -> None:
        with pytest.raises(UnreadableImageError, match=r"latitude 47, longitude 10 is beyond the city's UTM zone"):
            imagery.cut(47.0, 10.0, 64.0, 48)
        assert imagery.covers(np.array([[47.0, 10.0], [-35.3, 149.1]])).tolist() == [False, True]


def _moved(latitude: float, longitude: float, east: float, north: float) -> tuple[float, float]:
    """Return the position so many metres away in the city's grid."""
    x, y = to_utm(latitude, longitude, 32755)
    moved = to_degrees(float(x) + east, float(y) + north, 32755)
    return float(moved[0]), float(moved[1])


def _shifts(reach: int) -> list[tuple[int, int]]:
    steps = range(-reach, reach + 1)
    return list(itertools.product(steps, steps))


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    middle = (slice(6, -6), slice(6, -6))
    return float(np.corrcoef(one[middle].mean(-1).ravel(), other[middle].mean(-1).ravel())[0, 1])
