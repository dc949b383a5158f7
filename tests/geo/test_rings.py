"""Lines that meet, against exact arithmetic on every pair."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest

from s2s_ray.geo.rings import Meeting, Ring, meeting

Point = tuple[float, float]


def side(a: Point, b: Point, c: Point) -> float:
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])


def lies_on(point: Point, a: Point, b: Point) -> bool:
    inside = all(min(one, other) <= value <= max(one, other) for value, one, other in zip(point, a, b, strict=True))
    return side(a, b, point) == 0 and inside


def fault(rings: list[Ring], one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two lines, each a ring and a number, must not be as they are. Small whole numbers are exact."""
    (a, b), (c, d) = ((rings[ring][line], rings[ring][(line + 1) % len(rings[ring])]) for ring, line in (one, other))
    if side(a, b, c) * side(a, b, d) < 0 and side(c, d, a) * side(c, d, b) < 0:
        return True
    if one[0] != other[0]:
        return False
    size = len(rings[one[0]])
    if (one[1] + 1) % size == other[1]:
        return lies_on(d, a, b) or lies_on(a, c, d)
    if (other[1] + 1) % size == one[1]:
        return lies_on(c, a, b) or lies_on(b, c, d)
    return any((lies_on(a, c, d), lies_on(b, c, d), lies_on(c, a, b), lies_on(d, a, b)))


def ring_of(rng: np.random.Generator, corners: int, size: int) -> Ring:
    points: list[Point] = []
    while len(points) < corners:
        x, y = (float(value) for value in rng.integers(0, size, 2))
        if (x, y) not in points[-1:] and not (len(points) == corners - 1 and (x, y) == points[0]):
            points.append((x, y))
    return tuple(points)


@pytest.mark.parametrize("size", [4, 8, 40])
def test_they_are_found_where_exact_arithmetic_finds_them(size: int) -> None:
    rng = np.random.default_rng(size)
    free = 0
    for _ in range(300):
        rings = [ring_of(rng, int(rng.integers(3, 6)), size) for _ in range(int(rng.integers(1, 3)))]
        lines = [(number, line) for number, ring in enumerate(rings) for line in range(len(ring))]
        wrong = [(one, other) for i, one in enumerate(lines) for other in lines[i + 1 :] if fault(rings, one, other)]
        found = meeting(rings)
        assert (found is None) == (not wrong), rings
        assert found is None or tuple(found) in wrong
        free += found is None
    assert 10 < free < 290


def test_a_long_ring_is_checked_fast() -> None:
    count = 50_000
    angles = np.arange(count) / count * 2 * math.pi
    radii = 1 + 0.3 * np.sin(40 * angles) + np.random.default_rng(0).uniform(0, 1e-5, count)
    points = [(float(x), float(y)) for x, y in zip(radii * np.cos(angles), radii * np.sin(angles), strict=True)]
    started = time.process_time()
    assert meeting([tuple(points)]) is None
    points[1000], points[1002] = points[1002], points[1000]
    found = meeting([tuple(points)])
    assert time.process_time() - started < 10
    assert isinstance(found, Meeting)
    assert {998 < line < 1004 for _, line in found} == {True}
