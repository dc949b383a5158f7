"""The posterior over tiles and headings, against loops over all of them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from s2s_ray.geo.prior import Circle
from s2s_ray.localization import Turned, surface
from s2s_ray.localization.calibration import Parameters
from tests.support.landscape import Landscape, degrees, grid, index_of, unit

PARAMETERS = Parameters(scale=30.0, outside=7.0)


def brute_force(tiles: np.ndarray, pictures: list[Turned], parameters: list[Parameters]) -> list[float]:
    """Return the likelihood ratio of each tile."""
    ratios = []
    for tile in tiles.astype(float):
        ratio = 1.0
        for picture, one in zip(pictures, parameters, strict=True):
            weights = picture.weights()
            likelihood = sum(
                weight * math.exp(one.scale * float(np.dot(tile, descriptor)))
                for weight, descriptor in zip(weights, picture.descriptors.astype(float), strict=True)
            )
            ratio *= likelihood / math.exp(one.outside)
        ratios.append(ratio)
    return ratios


def pictures_of(landscape: Landscape, random: np.random.Generator) -> list[Turned]:
    known = landscape.picture(np.array([20.0, 33.0]), random, noise=0.5)
    unknown = landscape.picture(np.array([20.0, 33.0]), random, noise=0.5, turn=5)
    roughly = unknown._replace(heading=140.0, heading_spread=20.0).narrowed()
    assert len(roughly.headings) == 4, "three deviations to either side of it, in steps of 30 degrees"
    return [known, unknown, roughly]


def test_every_tile_and_heading_counts() -> None:
    landscape, random = Landscape(3), np.random.default_rng(0)
    tiles = landscape.tiles(grid(9, 10.0))
    index = index_of(tiles, degrees(grid(9, 10.0)))
    pictures = pictures_of(landscape, random)
    parameters = [PARAMETERS, Parameters(scale=12.0, outside=-1.0), Parameters(scale=50.0)]
    found = surface.posterior(index, pictures, parameters)
    assert found is not None
    ratios = brute_force(tiles, pictures, parameters)
    assert found.rows.tolist() == list(range(81))
    assert found.count == 81
    np.testing.assert_allclose(found.log_likelihoods, np.log(ratios), atol=1e-4)
    np.testing.assert_allclose(found.probabilities, np.array(ratios) / sum(ratios), atol=1e-5)
    assert found.evidence == pytest.approx(math.log(sum(ratios) / 81), abs=1e-4)
    for picture, at in zip(pictures, found.headings, strict=True):
        assert at.shape == (81, len(picture.headings))
        np.testing.assert_allclose(at.sum(axis=1), 1, atol=1e-5)


def test_the_headings_of_a_window_are_weighted_by_the_normal_distribution() -> None:
    headings = np.arange(0.0, 360.0, 30.0)
    picture = Turned(np.zeros((12, 2), np.float32), headings, 20.0, 360.0, 350.0).narrowed()
    assert sorted(picture.headings.tolist()) == [0, 30, 300, 330]
    expected = np.array([math.exp(-0.5 * (away / 20) ** 2) for away in (10, 40, 50, 20)])
    by_heading = dict(zip(picture.headings.tolist(), picture.weights().tolist(), strict=True))
    np.testing.assert_allclose([by_heading[one] for one in (0, 30, 300, 330)], expected / expected.sum())


@pytest.mark.parametrize("spread", [0.0, 2.0, 200.0])
def test_some_heading_is_left_of_a_window(spread: float) -> None:
    """However narrow it is, and wherever it lies between the headings."""
    picture = Turned(np.zeros((3, 2), np.float32), np.array([0.0, 10.0, 20.0]), spread, 90.0, 100.0).narrowed()
    assert len(picture.headings) >= 1
    assert 20.0 in picture.headings
    assert picture.weights().sum() == pytest.approx(1)


def test_tiles_that_are_not_compared_count_by_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a large index, the sum over all tiles is estimated within a tenth, inside of an area as well."""
    landscape, random = Landscape(5), np.random.default_rng(1)
    points = grid(60, 9.0)
    tiles, positions = landscape.tiles(points), degrees(points)
    index = index_of(tiles, positions)
    pictures = [landscape.picture(np.array([250.0, 260.0]), random, noise=1.0, turn=2)]
    parameters = [Parameters(scale=10.0)]
    latitude, longitude = positions[1830].tolist()
    prior = Circle(latitude, longitude, 200.0)
    whole, inside = (
        surface.posterior(index, pictures, parameters),
        surface.posterior(index, pictures, parameters, prior),
    )
    assert whole is not None
    assert inside is not None
    assert (whole.log_rest, inside.log_rest) != (-math.inf, -math.inf), "more tiles than are compared"
    assert len(whole.rows) == surface.MOST_ROWS
    ratios = np.array(brute_force(tiles, pictures, parameters))
    assert whole.log_sum == pytest.approx(math.log(ratios.sum()), abs=0.1)
    monkeypatch.setattr(surface, "MOST_ROWS", 300)
    within = prior.mask(*positions.T)
    inside = surface.posterior(index, pictures, parameters, prior)
    assert inside is not None
    assert set(inside.rows) <= set(np.flatnonzero(within))
    assert inside.count == within.sum() > len(inside.rows)
    assert inside.log_sum == pytest.approx(math.log(ratios[within].sum()), abs=0.1)
    best = np.argsort(-ratios)[:50]
    assert set(best[within[best]]) <= set(inside.rows), "the likeliest tiles are compared one by one"


def test_nothing_inside_of_an_area() -> None:
    index = index_of(unit(np.eye(3)), degrees(grid(2, 10.0)[:3]))
    picture = Turned(unit(np.eye(3)[:1]), np.zeros(1))
    assert surface.posterior(index, [picture], [PARAMETERS], Circle(-40.0, 100.0, 50.0)) is None


@pytest.mark.parametrize(("every", "expected"), [(4.0, 4.0), (8.0, 8.0), (25.0, 25.0), (70.0, 32.0)])
def test_the_spacing_of_an_index(every: float, expected: float) -> None:
    """Repeated and unknown positions count not; beyond 32 m it is sparse."""
    positions = degrees(grid(8, every))
    positions = np.concatenate([positions, positions[:5], np.full((3, 2), np.nan)])
    assert surface.spacing_of(positions) == pytest.approx(expected, rel=0.01)


def test_the_spacing_across_the_date_line() -> None:
    positions = degrees(grid(8, 8.0), (-17.0, 179.9997))
    assert (positions[:, 1] < 0).any()
    assert surface.spacing_of(positions) == pytest.approx(8, rel=0.01)


def test_an_index_without_positions_is_sparse() -> None:
    assert surface.spacing_of(np.full((4, 2), np.nan)) == 32
