"""A calibration that was fitted to some pictures, on others of the same landscape."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from s2s_ray.errors import DatasetError
from s2s_ray.geo.offsets import east_north
from s2s_ray.localization import Calibration, Fix, locate
from s2s_ray.localization.calibration import Kind
from s2s_ray.localization.fitting import Trials, fit
from s2s_ray.localization.reliability import auroc, calibration_error
from tests.support.landscape import ORIGIN, Landscape, degrees, grid, index_of

COUNT, EVERY_M = 18, 8.0
LANDSCAPE, ELSEWHERE = Landscape(1), Landscape(99)
POINTS = grid(COUNT, EVERY_M)
NOISE = (0.6, 4.0)  # some pictures are easy, some are hopeless


def draw(random: np.random.Generator) -> tuple[np.ndarray, float, int]:
    """Return a place, how noisy its picture is, and its turn."""
    return random.uniform(EVERY_M, (COUNT - 2) * EVERY_M, 2), random.uniform(*NOISE), int(random.integers(0, 12))


def trials(pictures: int, *, known: bool, seed: int = 0) -> Trials:
    random, tiles = np.random.default_rng(seed), LANDSCAPE.tiles(POINTS)
    places, turns, found = [], [], []
    for _ in range(pictures):
        place, noise, turn = draw(random)
        picture = LANDSCAPE.picture(place, random, noise=noise, turn=None if known else turn)
        found.append(tiles @ picture.descriptors.T)
        places.append(place)
        turns.append(0.0 if known else 30.0 * turn + random.uniform(-15, 15))
    return Trials(
        fov=360.0,
        heading_known=known,
        similarities=np.stack(found),
        headings=picture.headings,
        true_headings=np.array(turns),
        tiles=degrees(POINTS),
        places=degrees(np.stack(places)),
        spacing_m=EVERY_M,
        dense=True,
    )


@pytest.fixture(scope="module")
def fitted() -> dict[bool, Kind]:
    return {known: fit(trials(100, known=known)) for known in (True, False)}


@pytest.fixture(scope="module")
def new_pictures(fitted: dict[bool, Kind]) -> dict[bool, list[tuple[Fix, float]]]:
    return {known: fresh(kind, LANDSCAPE, 120, seed=5) for known, kind in fitted.items()}


def fresh(kind: Kind, landscape: Landscape, count: int, seed: int) -> list[tuple[Fix, float]]:
    """Return fixes of new pictures, and how far each is from the place."""
    random, index = np.random.default_rng(seed), index_of(LANDSCAPE.tiles(POINTS), degrees(POINTS))
    found = []
    for _ in range(count):
        place, noise, turn = draw(random)
        picture = landscape.picture(place, random, noise=noise, turn=None if kind.heading_known else turn)
        fix = locate(index, [picture], k=1, calibration=Calibration(kinds=(kind,))).fix
        assert fix is not None
        [point] = east_north(*ORIGIN, np.array([fix.latitude]), np.array([fix.longitude]))
        found.append((fix, float(np.hypot(*(point - place)))))
    return found


@pytest.mark.parametrize("known", [True, False])
def test_radii_and_confidence_hold_for_new_pictures(
    fitted: dict[bool, Kind], new_pictures: dict[bool, list[tuple[Fix, float]]], known: bool
) -> None:
    found = new_pictures[known]
    radii = [(fix.radius_m or 0.0, fix.radius_95_m or 0.0) for fix, _ in found]
    assert 0.60 <= np.mean([metres <= near for (_, metres), (near, _) in zip(found, radii, strict=True)]) <= 0.76
    assert 0.90 <= np.mean([metres <= far for (_, metres), (_, far) in zip(found, radii, strict=True)]) <= 0.99
    confidences = np.array([fix.confidence or 0.0 for fix, _ in found])
    right = np.array([metres <= fix.confidence_m for fix, metres in found])
    assert 0.25 < right.mean() < 0.95, "neither trivial nor hopeless"
    outside = fresh(fitted[known], ELSEWHERE, 120, seed=6)
    confidences = np.concatenate([confidences, [fix.confidence or 0.0 for fix, _ in outside]])
    assert confidences[:120].mean() > 2 * confidences[120:].mean(), "low for pictures from elsewhere"
    right = np.concatenate([right, np.zeros(120, bool)])
    assert calibration_error(confidences, right) < 0.12
    assert (auroc(confidences[right], confidences[~right]) or 0) > 0.75
    inside_region, outside_region = (
        np.array([fix.in_region_probability or 0.0 for fix, _ in part]) for part in (found, outside)
    )
    assert (auroc(inside_region, outside_region) or 0) > 0.65
    assert inside_region.mean() > outside_region.mean() + 0.1


@pytest.mark.parametrize("known", [True, False])
def test_the_figures_are_those_of_pictures_that_were_left_out(
    fitted: dict[bool, Kind], new_pictures: dict[bool, list[tuple[Fix, float]]], known: bool
) -> None:
    figures, found = fitted[known].reliability, new_pictures[known]
    right = np.array([metres <= fix.confidence_m for fix, metres in found])
    assert figures.pictures == 100
    assert figures.right == pytest.approx(right.mean(), abs=0.15)
    assert sum(count for _, _, count in figures.bins) == 200, "each is asked again as one from elsewhere"
    assert figures.within_68 == pytest.approx(0.68, abs=0.06)
    assert figures.within_95 == pytest.approx(0.95, abs=0.04)
    assert figures.auroc_right is not None
    assert figures.auroc_right > 0.75
    assert figures.risk_coverage < 1 - figures.right / 2 - 0.1, "less than by chance"
    if known:
        assert figures.heading_within is None
    else:
        assert figures.heading_within == pytest.approx(0.68, abs=0.12)


def test_noisier_pictures_have_a_smaller_scale() -> None:
    random, tiles, scales = np.random.default_rng(3), LANDSCAPE.tiles(POINTS), []
    for noise in (0.5, 3.0):
        places = random.uniform(EVERY_M, (COUNT - 2) * EVERY_M, (40, 2))
        pictures = [LANDSCAPE.picture(place, random, noise=noise) for place in places]
        similarities = np.stack([tiles @ picture.descriptors.T for picture in pictures])
        scales.append(fit(replace(trials(20, known=True), similarities=similarities, true_headings=np.zeros(40),
                                  places=degrees(places))).scale)  # fmt: skip
    assert scales[0] > 2 * scales[1]


def test_pictures_at_the_centres_of_tiles_do_not_narrow_the_radii() -> None:
    """All are found to the millimetre, which says nothing of pictures between the tiles."""
    random, tiles = np.random.default_rng(4), LANDSCAPE.tiles(POINTS)
    rows = random.permutation(len(POINTS))[:30]
    pictures = [LANDSCAPE.picture(POINTS[row], random, noise=0.2) for row in rows]
    kind = fit(
        Trials(
            360.0, True, np.stack([tiles @ picture.descriptors.T for picture in pictures]), np.zeros(1), np.zeros(30),
            degrees(POINTS), degrees(POINTS[rows]), EVERY_M, dense=False,
        )
    )  # fmt: skip
    assert kind.mass_68 >= 0.68
    assert kind.mass_95 >= 0.95
    assert kind.reliability.median_m < 1.5


def test_too_few_pictures() -> None:
    with pytest.raises(DatasetError, match=r"^19 pictures with a position are too few .* at least 20$"):
        fit(trials(19, known=True))
