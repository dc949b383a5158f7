"""Peaks of a posterior over places, in metres on a map around one of them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

MOST_PEAKS = 5
_LEAST = 0.02  # of the probability, for a peak after the first
_SEEDS = 64
_STEPS = 8
_GOLDEN = np.pi * (3 - np.sqrt(5))
_POINTS = 16
_NEAR = 20.0  # blurs, beyond which the offsets change little


class Group(NamedTuple):
    """A peak: its centre in metres, the places that belong to it, and their probability."""

    centre: NDArray[np.float64]
    members: NDArray[np.int64]
    probability: float


def find_peaks(points: NDArray[np.float64], probabilities: NDArray[np.float64], reach_m: float) -> list[Group]:
    """Return the separate peaks, the most probable first: at least one, at most `MOST_PEAKS`.

    A peak collects the places within `reach_m` of its centre, so that neighbours support each other. The centre is the
    mean of the places around it, those closer to it with more weight: it lies between the points of a grid.

    Args:
        points: metres east and north, N 2.
        probabilities: N.
        reach_m: reach of a peak.
    """
    left = probabilities.astype(np.float64, copy=True)
    seeds = np.argsort(-left, kind="stable")[:_SEEDS]
    near = _kernel(points[seeds], points, reach_m)
    groups: list[Group] = []
    while len(groups) < MOST_PEAKS and left[seeds].any():
        centre = points[seeds[np.argmax(np.where(left[seeds] > 0, near @ left, -1.0))]]
        around = _within(points, centre, 2 * reach_m)  # the centre moves by less than the reach
        local, mass_of = points[around], left[around]
        for _ in range(_STEPS):
            weights = _kernel(centre[None], local, reach_m)[0] * mass_of
            centre = weights @ local / weights.sum()
        members = around[(np.hypot(*(local - centre).T) <= reach_m) & (mass_of > 0)]
        mass = float(left[members].sum())
        if groups and mass < _LEAST:
            break
        groups.append(Group(centre, members, mass))
        left[members] = 0.0
    return sorted(groups, key=lambda group: -group.probability)


def masses(
    centre: NDArray[np.float64], points: NDArray[np.float64], probabilities: NDArray[np.float64], blur_m: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return distances from a point, ascending, and the probability within each of them.

    Each place stands for a normal distribution around it with a standard deviation of `blur_m` along each axis.
    """
    offsets = blur_m * _offsets()
    metres = np.hypot(*(points - centre).T)
    near = metres <= _NEAR * blur_m
    # The direction of the offsets does not matter: turn each such that the place lies to the east.
    spread = np.hypot(metres[near, None] + offsets[:, 0], offsets[:, 1]).ravel()
    distances = np.concatenate([spread, metres[~near]])
    order = np.argsort(distances, kind="stable")
    shares = np.concatenate([np.repeat(probabilities[near] / _POINTS, _POINTS), probabilities[~near]])
    return distances[order], np.cumsum(shares[order])


def radius_m(distances: NDArray[np.float64], within: NDArray[np.float64], mass: float) -> float:
    """Return the distance that holds a probability, given the result of `masses`; the largest one if none does."""
    row = int(np.searchsorted(within, mass - 1e-12))
    return float(distances[min(row, len(distances) - 1)])


def mass_within(distances: NDArray[np.float64], within: NDArray[np.float64], metres: float) -> float:
    """Return the probability within a distance, given the result of `masses`."""
    row = int(np.searchsorted(distances, metres, side="right"))
    return float(within[row - 1]) if row else 0.0


def _offsets() -> NDArray[np.float64]:
    """Return points that stand for a standard normal distribution in the plane, each for an equal share."""
    share = (np.arange(_POINTS) + 0.5) / _POINTS
    radii, angles = np.sqrt(-2 * np.log(1 - share)), np.arange(_POINTS) * _GOLDEN
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=-1)


def _within(points: NDArray[np.float64], centre: NDArray[np.float64], metres: float) -> NDArray[np.int64]:
    """Return the rows of the points within a square of that half side."""
    return np.flatnonzero((np.abs(points - centre) <= metres).all(axis=1))


def _kernel(centres: NDArray[np.float64], points: NDArray[np.float64], reach_m: float) -> NDArray[np.float64]:
    """Return the weight of each point for each centre, C N: normal, a third of the reach wide, nothing beyond it."""
    east, north = (centres[:, None, axis] - points[None, :, axis] for axis in (0, 1))
    squares = (east**2 + north**2) / reach_m**2
    return np.asarray(np.where(squares <= 1, np.exp(-4.5 * squares), 0.0))
