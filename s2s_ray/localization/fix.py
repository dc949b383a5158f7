"""A fix: where a picture was taken and which way it looks, with the uncertainty of both."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from s2s_ray.geo.offsets import east_north, moved
from s2s_ray.geo.query import Known
from s2s_ray.localization import peaks
from s2s_ray.localization.calibration import RIGHT_M, Parameters
from s2s_ray.localization.surface import Posterior
from s2s_ray.localization.turned import Turned, angle

MOST_POINTS = 500
"""Tiles in a `Surface`."""

_NEGLIGIBLE = 1e-6  # probability of a tile, of the highest one
_HEADING_REACH = 45.0  # degrees around the best heading of which the mean is taken


class Peak(NamedTuple):
    """One of the separate places where a picture may have been taken, in degrees and metres.

    `probability` supposes that the picture is from the region. `radius_m` holds the place at 68% if this peak is the
    right one. Both are None without a calibration.
    """

    latitude: float
    longitude: float
    radius_m: float | None
    probability: float | None


class Fix(NamedTuple):
    """Where a picture was taken and which way it looks. Without a calibration there are neither radii nor confidence.

    Attributes:
        latitude, longitude: the most probable place in degrees, between the tiles of a dense index.
        radius_m, radius_95_m: metres around it that hold the place at 68% and 95%, if the picture is from the region.
            Where there are several peaks they reach the others, and `peaks` says more.
        heading: compass bearing of the (first) picture's middle column in degrees.
        heading_spread: degrees to either side that hold the heading at 68%, if the place is right.
        confidence: probability that the position is right: that the place is within `confidence_m` of it. Low, too,
            for a picture that is probably from elsewhere.
        in_region: whether the picture is more probably from the region of the index than from elsewhere.
        in_region_probability: its probability, if every second picture is from the region.
        peaks: separate places, the most probable first; the first is the fix.
        calibrated: whether there was a calibration.
        confidence_m: metres within which a position counts as right.
    """

    latitude: float
    longitude: float
    radius_m: float | None
    radius_95_m: float | None
    heading: float | None
    heading_spread: float | None
    confidence: float | None
    in_region: bool | None
    in_region_probability: float | None
    peaks: tuple[Peak, ...]
    calibrated: bool
    confidence_m: float


class HeadedMatch(NamedTuple):
    """One reference tile found for a query (see `Match`), and the heading at which it matches best."""

    rank: int
    id: str
    latitude: float | None
    longitude: float | None
    easting: float | None
    northing: float | None
    zone: int | None
    descriptor_distance: float
    heading: float


class Surface(NamedTuple):
    """The most probable tiles, at most `MOST_POINTS`, the most probable first.

    Attributes:
        rows: rows of the index, N.
        probabilities: of each tile, if the picture is from the region, N.
        positions: latitude and longitude in degrees, N 2; NaN if unknown.
    """

    rows: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    positions: NDArray[np.float64]


class Found(NamedTuple):
    """The result of a localisation.

    Attributes:
        matches: tiles, the best first.
        fix: None if no tile has a known position, or none is inside the prior.
        surface: the most probable tiles.
        headings: heading and spread of each picture in degrees, in the order of the pictures; None without a fix.
        pictures: how each picture was understood, and warnings; empty for descriptors alone.
    """

    matches: list[HeadedMatch]
    fix: Fix | None
    surface: Surface
    headings: tuple[tuple[float, float] | None, ...]
    pictures: tuple[Known, ...] = ()


class Located(NamedTuple):
    """A posterior on a map: what a fix is read from, with the numbers that calibration compares with the truth.

    Attributes:
        origin: latitude and longitude of the map's origin in degrees.
        groups: the peaks; `members` are rows of the arrays of the posterior.
        distances, within: see `peaks.masses`, around the first peak.
        known: the rows of the posterior's arrays with a position and a probability that counts.
        points: their metres east and north of the origin, N 2.
        blur_m: standard deviation of the place around a tile, with the spacing of the tiles.
        right_m: metres within which a position counts as right.
    """

    origin: tuple[float, float]
    groups: list[peaks.Group]
    distances: NDArray[np.float64]
    within: NDArray[np.float64]
    known: NDArray[np.int64]
    points: NDArray[np.float64]
    blur_m: float
    right_m: float

    def metres_to(self, position: NDArray[np.float64]) -> float:
        """Return the metres from the first peak to a latitude and longitude in degrees."""
        [point] = east_north(*self.origin, position[None, 0], position[None, 1])
        return float(np.hypot(*(point - self.groups[0].centre)))


def place(found: Posterior, positions: NDArray[np.float64], spacing_m: float, blur_m: float) -> Located | None:
    """Put a posterior on a map.

    Args:
        found: the posterior.
        positions: latitude and longitude in degrees of its rows, R 2; NaN if unknown.
        spacing_m: metres between the tiles.
        blur_m: see `Parameters`.

    Returns:
        None if no tile has a position.
    """
    probabilities = found.probabilities
    placed = np.isfinite(positions).all(axis=1)
    if not placed.any():
        return None
    least = _NEGLIGIBLE * probabilities[placed].max()
    known = np.flatnonzero(placed & (probabilities >= least))
    latitude, longitude = positions[known[np.argmax(probabilities[known])]].tolist()
    points = east_north(latitude, longitude, positions[known, 0], positions[known, 1])
    right_m = max(RIGHT_M, 1.5 * spacing_m)
    groups = peaks.find_peaks(points, probabilities[known], right_m)
    blur = math.hypot(blur_m, spacing_m / math.sqrt(12))
    distances, within = peaks.masses(groups[0].centre, points, probabilities[known], blur)
    groups = [group._replace(members=known[group.members]) for group in groups]
    return Located((latitude, longitude), groups, distances, within, known, points, blur, right_m)


def fix_of(
    found: Posterior,
    positions: NDArray[np.float64],
    spacing_m: float,
    pictures: Sequence[Turned],
    parameters: Parameters,
    *,
    calibrated: bool,
) -> tuple[Fix | None, tuple[tuple[float, float] | None, ...]]:
    """Return the fix of a posterior and the heading of each picture; None if no tile has a position.

    Args:
        found: the posterior.
        positions: latitude and longitude in degrees of its rows, R 2.
        spacing_m: metres between the tiles.
        pictures: one or more pictures of the place.
        parameters: the mean of those of the pictures.
        calibrated: whether the parameters come from a calibration.
    """
    located = place(found, positions, spacing_m, parameters.blur_m)
    if located is None:
        return None, (None,) * len(pictures)
    members = located.groups[0].members
    headings = tuple(
        heading_of(picture, found.probabilities[members] @ at[members], parameters.heading_factor)
        for picture, at in zip(pictures, found.headings, strict=True)
    )
    heading, spread = headings[0]
    peak = log_odds(located.groups[0].probability)
    growth = parameters.growth * math.sqrt(len(pictures))  # deviations of independent pictures add as squares
    carried = found.evidence - excess(growth, found.count, parameters.tiles)
    region = probability(parameters.region, carried, peak)
    radii: tuple[float | None, ...] = (None, None)
    if calibrated:
        radii = tuple(
            peaks.radius_m(located.distances, located.within, mass) for mass in (parameters.mass_68, parameters.mass_95)
        )
    listed = tuple(_peak(found, located, group, calibrated) for group in located.groups)
    if len(listed) == 1:
        listed = (listed[0]._replace(radius_m=radii[0]),)  # nothing else is possible: the peak is the fix
    fix = Fix(
        listed[0].latitude,
        listed[0].longitude,
        radii[0],
        radii[1],
        heading,
        spread if calibrated or len(pictures[0].headings) == 1 else None,
        region * probability(parameters.confidence, found.evidence, peak) if calibrated else None,
        region >= 0.5 if calibrated else None,
        region if calibrated else None,
        listed,
        calibrated,
        located.right_m,
    )
    return fix, headings


def probability(weights: tuple[float, float, float], evidence: float, peak: float) -> float:
    """Return the probability whose log-odds are `region` or `confidence` of `Parameters`.

    Args:
        weights: the offset, and the factors of the other two.
        evidence: that of the posterior.
        peak: log-odds of the first peak.
    """
    return sigmoid(weights[0] + weights[1] * evidence + weights[2] * peak)


def excess(growth: float, count: int, tiles: float) -> float:
    """Return by how much more evidence pictures from outside have among `count` tiles than among `tiles`.

    More tiles have more chances to resemble a picture. The cosines of unrelated tiles are taken as independent and
    normal: with x = sqrt(2 log count), the logarithm of their summed likelihood grows by max(x, `growth`) per x, as in
    the random energy model. As far as the whole sum counts, the mean likelihood stays; once the largest term decides,
    it grows.

    Args:
        growth, tiles: see `Parameters`.
        count: number of tiles that are searched.
    """
    if not tiles:
        return 0.0
    ends = [math.sqrt(2 * math.log(max(1.0, number))) for number in (tiles, count)]
    sums = [growth * x if x < growth else (x * x + growth * growth) / 2 for x in ends]
    return (sums[1] - sums[0]) - (ends[1] ** 2 - ends[0] ** 2) / 2


def heading_of(picture: Turned, likely: NDArray[np.float64], factor: float) -> tuple[float, float]:
    """Return the heading of a picture and its spread in degrees: the circular mean around the most likely heading.

    Args:
        picture: the picture.
        likely: probability of each of its headings, in any scale, T.
        factor: see `Parameters`.
    """
    if len(picture.headings) == 1:
        return float(picture.headings[0]) % 360, picture.heading_spread
    likely = likely / likely.sum()
    away = angle(picture.headings - picture.headings[np.argmax(likely)])
    near = np.abs(away) <= _HEADING_REACH
    mean = float((likely * near) @ away / likely[near].sum())
    variance = float(likely @ angle(away - mean) ** 2) + picture.step**2 / 12
    return float(picture.headings[np.argmax(likely)] + mean) % 360, factor * math.sqrt(variance)


def surface_of(found: Posterior, positions: NDArray[np.float64]) -> Surface:
    """Return the most probable tiles of a posterior whose rows have these positions."""
    best = np.argsort(-found.log_likelihoods, kind="stable")[:MOST_POINTS]
    return Surface(found.rows[best], found.probabilities[best], positions[best])


def log_odds(probability: float) -> float:
    """Return the logarithm of the odds, within 1e-6 of certainty."""
    kept = min(max(probability, 1e-6), 1 - 1e-6)
    return math.log(kept / (1 - kept))


def sigmoid(value: float) -> float:
    """Return the probability of log-odds."""
    return 1 / (1 + math.exp(-value)) if value >= 0 else 1 - 1 / (1 + math.exp(value))


def _peak(found: Posterior, located: Located, group: peaks.Group, calibrated: bool) -> Peak:
    """Return a peak in degrees."""
    latitudes, longitudes = moved(*located.origin, *group.centre)
    radius = None
    if calibrated:
        chosen = np.isin(located.known, group.members)
        weights = found.probabilities[located.known[chosen]] / group.probability
        radius = peaks.radius_m(*peaks.masses(group.centre, located.points[chosen], weights, located.blur_m), 0.68)
    return Peak(float(latitudes), float(longitudes), radius, group.probability if calibrated else None)
