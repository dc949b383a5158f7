"""Fixes of pictures whose places are known, in a landscape without images."""

from __future__ import annotations

import re
import sys
from subprocess import run

import numpy as np
import pytest

from s2s_ray.errors import DescriptorError, InputError
from s2s_ray.geo.offsets import east_north
from s2s_ray.geo.prior import Circle
from s2s_ray.index import ReferenceIndex
from s2s_ray.localization import Calibration, Fix, Found, Turned, locate
from s2s_ray.localization.calibration import Kind
from s2s_ray.localization.fix import MOST_POINTS, excess
from s2s_ray.localization.surface import log_sum_exp
from tests.support.calibrations import kind
from tests.support.landscape import ORIGIN, Landscape, degrees, grid, index_of, unit

COUNT, EVERY_M = 26, 8.0
LANDSCAPE = Landscape(1)
CALIBRATION = Calibration(kinds=(kind(360.0, True), kind(360.0, False)))


@pytest.fixture(scope="module")
def index() -> ReferenceIndex:
    points = grid(COUNT, EVERY_M)
    return index_of(LANDSCAPE.tiles(points), degrees(points))


def places(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(2 * EVERY_M, (COUNT - 3) * EVERY_M, (count, 2))


def around(east: float, north: float, radius_m: float) -> Circle:
    latitude, longitude = degrees(np.array([[east, north]]))[0].tolist()
    return Circle(latitude, longitude, radius_m)


def metres(fix: Fix | None, place: np.ndarray, origin: tuple[float, float] = ORIGIN) -> float:
    assert fix is not None
    [point] = east_north(*origin, np.array([fix.latitude]), np.array([fix.longitude]))
    return float(np.hypot(*(point - place)))


def test_positions_lie_between_the_tiles(index: ReferenceIndex) -> None:
    """Closer to the place than the closest tile, for nearly all; that is 3 m away in the median."""
    random, errors, tiles = np.random.default_rng(0), [], []
    for place in places(1, 30):
        [found] = [locate(index, [LANDSCAPE.picture(place, random, noise=0.3)], k=1)]
        errors.append(metres(found.fix, place))
        tiles.append(np.hypot(*(grid(COUNT, EVERY_M) - place).T).min())
    assert np.median(errors) < 1.5
    assert np.median(tiles) > 2.5
    assert max(errors) < 6


def test_an_unknown_heading_is_found(index: ReferenceIndex) -> None:
    random = np.random.default_rng(1)
    for turn, place in enumerate(places(2, 12)):
        found = locate(index, [LANDSCAPE.picture(place, random, noise=0.3, turn=turn)], k=3, calibration=CALIBRATION)
        assert metres(found.fix, place) < 8
        assert found.fix is not None
        assert found.fix.heading is not None
        away = (found.fix.heading - 30 * turn + 180) % 360 - 180
        assert abs(away) < 10
        assert found.fix.heading_spread is not None
        assert 30 / 12**0.5 <= found.fix.heading_spread < 20, "not finer than the step between headings"
        assert found.matches[0].heading == 30 * turn
        assert found.headings == ((found.fix.heading, found.fix.heading_spread),)


def test_a_known_heading_is_a_search_of_one_descriptor(index: ReferenceIndex) -> None:
    random = np.random.default_rng(2)
    picture = LANDSCAPE.picture(places(3, 1)[0], random, noise=1.0)
    prior = around(100.0, 100.0, 60.0)
    for area in (None, prior):
        found = locate(index, [picture._replace(headings=np.array([-90.0]))], k=7, prior=area)
        [expected] = index.search(picture.descriptors, 7, area)
        assert [match[:-1] for match in found.matches] == [tuple(match) for match in expected]
        assert {match.heading for match in found.matches} == {270}
        assert found.fix is not None
        assert (found.fix.heading, found.fix.heading_spread) == (270, 0)


def test_matches_at_every_heading(index: ReferenceIndex) -> None:
    """Each tile once, at its best heading, in the order that comparing everything gives."""
    picture = LANDSCAPE.picture(places(4, 1)[0], np.random.default_rng(3), noise=1.0, turn=4)
    found = locate(index, [picture], k=40)
    similarities = LANDSCAPE.tiles(grid(COUNT, EVERY_M)).astype(float) @ picture.descriptors.T.astype(float)
    best = np.argsort(-similarities.max(axis=1))[:40]
    assert [match.id for match in found.matches] == [f"tile-{row}" for row in best]
    assert [match.rank for match in found.matches] == list(range(1, 41))
    np.testing.assert_allclose(
        [match.descriptor_distance for match in found.matches], 2 - 2 * similarities.max(axis=1)[best], atol=1e-5
    )
    assert [match.heading for match in found.matches] == (30.0 * similarities.argmax(axis=1)[best]).tolist()


def test_a_rough_heading_helps(index: ReferenceIndex) -> None:
    """A heading known within 15 degrees finds more than an unknown one."""
    random, unknown, rough = np.random.default_rng(4), 0, 0
    for number, place in enumerate(places(5, 40)):
        picture = LANDSCAPE.picture(place, random, noise=2.2, turn=number % 12)
        known = picture._replace(heading=(30.0 * (number % 12) + 10) % 360, heading_spread=15.0)
        unknown += metres(locate(index, [picture], k=1).fix, place) < 25
        rough += metres(locate(index, [known], k=1).fix, place) < 25
    assert rough > unknown + 2


def test_pictures_of_one_place_together(index: ReferenceIndex) -> None:
    """Each with a heading of its own; they find more than each alone."""
    random, alone, together = np.random.default_rng(5), 0, 0
    for number, place in enumerate(places(6, 25)):
        turns = [(number + 4 * step) % 12 for step in range(3)]
        pictures = [LANDSCAPE.picture(place, random, noise=2.5, turn=turn) for turn in turns]
        found = locate(index, pictures, k=2)
        alone += metres(locate(index, pictures[:1], k=2).fix, place) < 25
        if metres(found.fix, place) < 25:
            together += 1
            assert found.fix is not None
            assert found.headings[0] == (found.fix.heading, found.headings[0][1] if found.headings[0] else None)
            close = [
                abs((one[0] - 30 * turn + 180) % 360 - 180) < 30
                for one, turn in zip(found.headings, turns, strict=True)
                if one is not None
            ]
            assert sum(close) >= 2
    assert together >= alone + 5


def test_a_place_that_is_there_twice_has_two_peaks() -> None:
    points = grid(8, EVERY_M)
    twins = np.concatenate([points, points + np.array([0.0, 500.0])])
    index = index_of(np.tile(LANDSCAPE.tiles(points), (2, 1)), degrees(twins))
    place = np.array([29.0, 22.0])
    found = locate(index, [LANDSCAPE.picture(place, np.random.default_rng(6), noise=0.2)], k=4, calibration=CALIBRATION)
    assert found.fix is not None
    first, second = found.fix.peaks
    assert first.probability == pytest.approx(0.5, abs=0.01)
    assert second.probability == pytest.approx(0.5, abs=0.01)
    assert (first.latitude, first.longitude) == (found.fix.latitude, found.fix.longitude)
    assert {round(metres(found.fix._replace(latitude=peak.latitude), place), -2) for peak in found.fix.peaks} == {
        0,
        500,
    }
    assert first.radius_m is not None
    assert first.radius_m < 12
    assert found.fix.radius_m is not None
    assert found.fix.radius_m > 490, "the position alone does not hold 68%"
    assert found.fix.in_region_probability is not None
    assert found.fix.confidence == pytest.approx(0.5 * found.fix.in_region_probability, abs=0.05)


def test_a_picture_from_elsewhere(index: ReferenceIndex) -> None:
    random, other = np.random.default_rng(7), Landscape(77)
    inside = [locate(index, [LANDSCAPE.picture(place, random, noise=0.5)], k=1, calibration=CALIBRATION).fix
              for place in places(8, 10)]  # fmt: skip
    outside = [locate(index, [other.picture(place, random, noise=0.5)], k=1, calibration=CALIBRATION).fix
               for place in places(8, 10)]  # fmt: skip
    assert all(fix is not None and fix.in_region and (fix.in_region_probability or 0) > 0.5 for fix in inside)
    assert not any(fix is None or fix.in_region for fix in outside)
    assert all(fix is not None and fix.confidence is not None and fix.confidence < 0.5 for fix in outside)


def test_without_a_calibration_there_is_neither_radius_nor_confidence(index: ReferenceIndex) -> None:
    place = places(9, 1)[0]
    picture = LANDSCAPE.picture(place, np.random.default_rng(8), noise=0.3, turn=3)
    found = locate(index, [picture], k=1)
    assert found.fix is not None
    assert metres(found.fix, place) < 6
    assert not found.fix.calibrated
    nothing = ("radius_m", "radius_95_m", "heading_spread", "confidence", "in_region", "in_region_probability")
    assert [getattr(found.fix, name) for name in nothing] == [None] * 6
    assert {(peak.radius_m, peak.probability) for peak in found.fix.peaks} == {(None, None)}
    calibrated = locate(index, [picture], k=1, calibration=CALIBRATION).fix
    assert calibrated is not None
    assert None not in [getattr(calibrated, name) for name in nothing]
    assert calibrated.radius_m is not None
    assert calibrated.radius_95_m is not None
    assert 0 < calibrated.radius_m < calibrated.radius_95_m
    assert [peak.radius_m for peak in calibrated.peaks] == [calibrated.radius_m]


def test_the_surface_is_the_most_probable_tiles(index: ReferenceIndex) -> None:
    picture = LANDSCAPE.picture(places(10, 1)[0], np.random.default_rng(9), noise=0.5)
    surface = locate(index, [picture], k=1).surface
    assert len(surface.rows) == MOST_POINTS < len(index)
    assert (np.diff(surface.probabilities) <= 0).all()
    assert 0.9 < surface.probabilities.sum() <= 1 + 1e-9
    np.testing.assert_array_equal(surface.positions, index.positions[surface.rows])


def test_a_prior(index: ReferenceIndex) -> None:
    place = places(11, 1)[0]
    picture = LANDSCAPE.picture(place, np.random.default_rng(10), noise=0.5)
    elsewhere = around(180.0, 20.0, 30.0)
    found = locate(index, [picture], k=10, prior=elsewhere)
    assert metres(found.fix, np.array([180.0, 20.0])) <= 30
    assert len(found.matches) == 10
    nowhere = locate(index, [picture], k=10, prior=Circle(0.0, 0.0, 1000.0))
    assert (nowhere.matches, nowhere.fix, len(nowhere.surface.rows)) == ([], None, 0)


def test_across_the_date_line() -> None:
    points, origin = grid(12, EVERY_M), (-16.8, 179.9996)
    positions = degrees(points, origin)
    assert {True, False} == set((positions[:, 1] < 0).tolist())
    index = index_of(LANDSCAPE.tiles(points), positions)
    place = np.array([42.6, 41.0])
    found = locate(index, [LANDSCAPE.picture(place, np.random.default_rng(11), noise=0.3)], k=1)
    assert metres(found.fix, place, origin) < 4


def test_tiles_without_a_position() -> None:
    points = grid(6, EVERY_M)
    unknown = np.full((36, 2), np.nan)
    picture = LANDSCAPE.picture(points[14], np.random.default_rng(12), noise=0.1)
    found: Found = locate(index_of(LANDSCAPE.tiles(points), unknown), [picture], k=2, calibration=CALIBRATION)
    assert (found.fix, found.headings, found.matches[0].id) == (None, (None,), "tile-14")
    half = degrees(points)
    half[14] = np.nan
    found = locate(index_of(LANDSCAPE.tiles(points), half), [picture], k=2, calibration=CALIBRATION)
    assert found.matches[0].id == "tile-14", "the best tile has no position; those around it have"
    assert metres(found.fix, points[14]) < 8


def test_a_single_tile() -> None:
    index = index_of(unit(np.ones((1, 72))), degrees(np.zeros((1, 2))))
    fix = locate(index, [Turned(unit(np.ones((1, 72))), np.zeros(1))], k=1, calibration=CALIBRATION).fix
    assert metres(fix, np.zeros(2)) < 1e-3
    assert fix is not None
    assert [peak.probability for peak in fix.peaks] == [pytest.approx(1)]


def test_what_cannot_be_searched_is_named(index: ReferenceIndex) -> None:
    picture = LANDSCAPE.picture(places(12, 1)[0], np.random.default_rng(13), noise=0.1)
    with pytest.raises(InputError, match=re.escape("pictures=[]: expected at least one")):
        locate(index, [], k=1)
    for k in (0, len(index) + 1):
        with pytest.raises(InputError, match=f"^k={k}: expected 1 to {len(index)}"):
            locate(index, [picture], k=k)
    with pytest.raises(DescriptorError, match="not finite"):
        locate(index, [picture._replace(descriptors=picture.descriptors * np.nan)], k=1)
    with pytest.raises(DescriptorError, match=re.escape("(1, 71): this index needs B x 72")):
        locate(index, [picture._replace(descriptors=picture.descriptors[:, 1:])], k=1)


def test_the_parameters_of_a_kind_decide(index: ReferenceIndex) -> None:
    """A larger scale concentrates the probability; a calibration of a narrow picture is not used for a wide one."""
    picture = LANDSCAPE.picture(places(13, 1)[0], np.random.default_rng(14), noise=2.0)
    flat: Kind = kind(90.0, True).model_copy(update={"scale": 2.0})
    calibration = Calibration(kinds=(flat, kind(360.0, True)))
    wide = locate(index, [picture], k=1, calibration=calibration).fix
    narrow = locate(index, [picture._replace(fov=90.0)], k=1, calibration=calibration).fix
    assert wide is not None
    assert narrow is not None
    assert (wide.peaks[0].probability or 0) > (narrow.peaks[0].probability or 1) + 0.3
    assert wide.radius_m is not None
    assert narrow.radius_m is not None
    assert narrow.radius_m > 2 * wide.radius_m


def test_a_process_that_localises_needs_no_pytorch() -> None:
    code = "import sys, s2s_ray.localization; sys.exit('torch' in sys.modules or 'scipy' in sys.modules)"
    assert run([sys.executable, "-c", code], check=False).returncode == 0


def test_more_tiles_give_pictures_from_elsewhere_no_more_region() -> None:
    """The mean likelihood of independent normal cosines grows with their number as `excess` says."""
    random, growth = np.random.default_rng(15), 6.0
    few, many = (
        np.mean([log_sum_exp(growth * random.normal(size=count)) - np.log(count) for _ in range(200)])
        for count in (1000, 50_000)
    )
    assert many - few > 1
    assert 0.5 * (many - few) < excess(growth, 50_000, 1000) < 1.2 * (many - few)
    assert (excess(growth, 1000, 1000), excess(growth, 1000, 0), excess(0.5, 9000, 1000)) == (0, 0, pytest.approx(0))
