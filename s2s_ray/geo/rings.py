"""Closed lines in degrees: their area, the points inside, and where they cross themselves or each other."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ring = tuple[tuple[float, float], ...]
"""A closed line of longitudes and latitudes in degrees, without the repeated last one; longitudes are continuous, so
that a ring across the date line has some below -180 or above 180."""

_PAIRS = 1 << 20
_SEMIMINOR2 = 6_356_752.314245179**2
_ECCENTRICITY = math.sqrt((2 - 1 / 298.257223563) / 298.257223563)
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(8)
_Floats = NDArray[np.float64]
_Places = NDArray[np.int64]


class Meeting(NamedTuple):
    """Two lines that have a point in common: ring and number of each; line i goes from position i to the next one."""

    first: tuple[int, int]
    second: tuple[int, int]


def meeting(rings: Sequence[Ring]) -> Meeting | None:
    """Return two lines that must not meet; None if there are none.

    Lines of one ring must not have a point in common, but for neighbours, which have one. Lines of different rings may
    touch, but not cross. Neighbouring positions of a ring are different.
    """
    starts = np.concatenate([np.array(ring) for ring in rings])
    ends = np.concatenate([np.roll(np.array(ring), -1, 0) for ring in rings])
    sizes = np.array([len(ring) for ring in rings])
    offsets = np.cumsum(sizes) - sizes
    ring_of = np.repeat(np.arange(len(rings)), sizes)
    following = np.arange(len(starts)) + 1
    following[offsets + sizes - 1] = offsets
    for first, second in _candidates(starts, ends):
        same = ring_of[first] == ring_of[second]
        beside = (following[first] == second) | (following[second] == first)
        wrong = np.where(
            beside,
            _turns_back(starts, ends, first, second, following),
            _meets(starts, ends, first, second, touching=same),
        )
        if wrong.any():
            one, other = sorted((int(first[wrong][0]), int(second[wrong][0])))
            return Meeting(*((int(ring_of[line]), int(line - offsets[ring_of[line]])) for line in (one, other)))
    return None


def _candidates(starts: _Floats, ends: _Floats) -> Iterator[tuple[_Places, _Places]]:
    """Yield pairs of lines whose bounding boxes overlap, by a sweep from west to east, about a million at a time."""
    low, high = np.minimum(starts, ends), np.maximum(starts, ends)
    order = np.argsort(low[:, 0], kind="stable")
    # Lines from the next one to the last one that begins before this one ends.
    counts = np.searchsorted(low[order, 0], high[order, 0], "right") - np.arange(len(order)) - 1
    total = np.concatenate([[0], np.cumsum(counts)])
    begin = 0
    while begin < len(order):
        end = max(int(np.searchsorted(total, total[begin] + _PAIRS, "right")) - 1, begin + 1)
        many = counts[begin:end]
        first = np.repeat(np.arange(begin, end), many)
        second = first + 1 + np.arange(len(first)) - np.repeat(total[begin:end] - total[begin], many)
        first, second = order[first], order[second]
        overlap = (low[first, 1] <= high[second, 1]) & (low[second, 1] <= high[first, 1])
        yield first[overlap], second[overlap]
        begin = end


def _side(a: _Floats, b: _Floats, c: _Floats) -> _Floats:
    """Return on which side of the lines from a to b the points c lie: 1, -1, or 0 on them."""
    found: _Floats = np.sign((b[:, 0] - a[:, 0]) * (c[:, 1] - a[:, 1]) - (b[:, 1] - a[:, 1]) * (c[:, 0] - a[:, 0]))
    return found


def _meets(
    starts: _Floats, ends: _Floats, first: _Places, second: _Places, *, touching: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Return which pairs of lines cross, or have any point in common where `touching`."""
    a, b, c, d = starts[first], ends[first], starts[second], ends[second]
    to_c, to_d, to_a, to_b = _side(a, b, c), _side(a, b, d), _side(c, d, a), _side(c, d, b)
    crosses = (to_c * to_d < 0) & (to_a * to_b < 0)
    # In pairs whose boxes overlap, a point on the other's line can still lie beyond its ends.
    on_line = np.zeros(len(first), np.bool_)
    for side, point, one, other in ((to_c, c, a, b), (to_d, d, a, b), (to_a, a, c, d), (to_b, b, c, d)):
        within = (np.minimum(one, other) <= point) & (point <= np.maximum(one, other))
        on_line |= (side == 0) & within.all(1)
    found: NDArray[np.bool_] = crosses | (touching & on_line)
    return found


def _turns_back(
    starts: _Floats, ends: _Floats, first: _Places, second: _Places, following: _Places
) -> NDArray[np.bool_]:
    """Return which pairs of neighbours lie on each other: the second one goes back along the first one."""
    forward = following[first] == second
    before, after = np.where(forward, first, second), np.where(forward, second, first)
    a, b, c = starts[before], ends[before], ends[after]
    back = ((b - a) * (c - b)).sum(1) < 0
    found: NDArray[np.bool_] = (_side(a, b, c) == 0) & back
    return found


def is_straight(ring: Ring) -> bool:
    """Return whether all positions are within 1e-9 degrees of one line."""
    points = np.array(ring) - ring[0]
    farthest = points[np.hypot(*points.T).argmax()]
    across = points[:, 0] * farthest[1] - points[:, 1] * farthest[0]
    return bool(np.abs(across).max() <= 1e-9 * np.hypot(*farthest))


def toggle(odd: NDArray[np.bool_], x: NDArray[np.float64], y: NDArray[np.float64], ring: Ring) -> None:
    """Invert those of N points, sorted by y, that have a crossing of the ring to their east, for each crossing."""
    longitudes, latitudes = np.array(ring).T
    next_longitudes, next_latitudes = np.roll(longitudes, -1), np.roll(latitudes, -1)
    low = np.searchsorted(y, np.minimum(latitudes, next_latitudes), "left")
    high = np.searchsorted(y, np.maximum(latitudes, next_latitudes), "left")
    for edge in np.flatnonzero(high > low):
        rows = slice(low[edge], high[edge])
        slope = (next_longitudes[edge] - longitudes[edge]) / (next_latitudes[edge] - latitudes[edge])
        odd[rows] ^= x[rows] < longitudes[edge] + (y[rows] - latitudes[edge]) * slope


def ring_m2(ring: Ring) -> float:
    """Return the signed area between a ring's lines, by quadrature along each of them."""
    longitudes, latitudes = np.radians(np.array(ring)).T
    widths = np.roll(longitudes, -1) - longitudes
    middle, half = (latitudes + np.roll(latitudes, -1)) / 2, (np.roll(latitudes, -1) - latitudes) / 2
    sampled = _zone_m2(middle[:, None] + half[:, None] * _NODES) - _zone_m2(latitudes[:1])
    return float((widths * (sampled @ _WEIGHTS) / 2).sum())


def _zone_m2(latitudes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return square metres between the equator and parallels, for each radian of longitude."""
    scaled = _ECCENTRICITY * np.sin(latitudes)
    found: NDArray[np.float64] = (
        _SEMIMINOR2 / 2 * (np.sin(latitudes) / (1 - scaled**2) + np.arctanh(scaled) / _ECCENTRICITY)
    )
    return found
