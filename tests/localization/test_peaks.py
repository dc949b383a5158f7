"""Peaks of a posterior over places, and the radii that hold its mass."""

from __future__ import annotations

import math

import numpy as np
import pytest

from s2s_ray.localization.peaks import find_peaks, mass_within, masses, radius_m
from tests.support.landscape import grid


def bell(points: np.ndarray, centre: tuple[float, float], width: float) -> np.ndarray:
    weights = np.exp(-((points - centre) ** 2).sum(axis=1) / (2 * width**2))
    return np.asarray(weights / weights.sum())


@pytest.mark.parametrize("centre", [(80.0, 80.0), (83.0, 78.5), (84.0, 84.0)])
def test_the_centre_lies_between_the_points_of_a_grid(centre: tuple[float, float]) -> None:
    points = grid(21, 8.0)
    [peak] = find_peaks(points, bell(points, centre, 6.0), 25.0)
    np.testing.assert_allclose(peak.centre, centre, atol=0.3)
    assert peak.probability == pytest.approx(1, abs=0.01)


def test_neighbours_outweigh_a_single_tile() -> None:
    """Nine tiles with a tenth each are a higher peak than one with a tenth and some more."""
    points = grid(30, 8.0)
    probabilities = np.zeros(900)
    block = [row * 30 + column for row in (3, 4, 5) for column in (3, 4, 5)]
    probabilities[block], probabilities[25 * 30 + 25] = 0.08, 0.28
    first, second = find_peaks(points, probabilities, 25.0)
    np.testing.assert_allclose(first.centre, (32.0, 32.0), atol=1e-6)
    assert (first.probability, second.probability) == pytest.approx((0.72, 0.28))
    assert sorted(first.members.tolist()) == block
    assert second.members.tolist() == [25 * 30 + 25]


def test_separate_peaks_hold_everything_near_them_once() -> None:
    points = grid(41, 8.0)
    shares = {(40.0, 48.0): 0.5, (200.0, 100.0): 0.3, (280.0, 290.0): 0.19, (20.0, 300.0): 0.01}
    probabilities = np.sum([share * bell(points, centre, 5.0) for centre, share in shares.items()], axis=0)
    found = find_peaks(points, probabilities, 25.0)
    assert [tuple(np.round(peak.centre)) for peak in found] == [(40, 48), (200, 100), (280, 290)], "1% is no peak"
    assert [peak.probability for peak in found] == pytest.approx([0.5, 0.3, 0.19], abs=0.005)
    members = np.concatenate([peak.members for peak in found])
    assert len(members) == len(set(members))


def test_there_is_a_peak_however_flat_the_surface_is() -> None:
    points = grid(100, 40.0)
    found = find_peaks(points, np.full(10_000, 1e-4), 25.0)
    assert len(found) == 1


@pytest.mark.parametrize("rate", [0.3, 0.68, 0.95])
def test_the_radius_of_one_place_is_that_of_a_normal_distribution(rate: float) -> None:
    found = masses(np.zeros(2), np.zeros((1, 2)), np.ones(1), 5.0)
    assert radius_m(*found, rate) == pytest.approx(5 * math.sqrt(-2 * math.log(1 - rate)), rel=0.12)


def test_the_radius_holds_the_mass_that_sampling_finds() -> None:
    random = np.random.default_rng(0)
    points, centre = random.uniform(-60, 60, (40, 2)), np.array([5.0, -3.0])
    probabilities = random.dirichlet(np.ones(40))
    drawn = points[random.choice(40, 100_000, p=probabilities)] + 6.0 * random.normal(size=(100_000, 2))
    metres = np.hypot(*(drawn - centre).T)
    found = masses(centre, points, probabilities, 6.0)
    for rate in (0.1, 0.4, 0.68, 0.95):
        assert radius_m(*found, rate) == pytest.approx(np.quantile(metres, rate), rel=0.04)
        assert mass_within(*found, float(np.quantile(metres, rate))) == pytest.approx(rate, abs=0.02)
    assert mass_within(*found, 0.0) == 0
    assert radius_m(*found, 1.5) == found[0][-1], "more than there is: as far as there is anything"
