"""Positions at which the pairs are rendered."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np

from s2s_ray.city.noise import generator
from s2s_ray.city.streets import Streets

Region = Literal["train", "test"]

GAP_M = 800.0  # between the training region and the test region
_INSIDE_M = 1.0  # from the kerb


def positions(plan: Streets, spacing: float, count: int, region: Region) -> list[tuple[float, float]]:
    """Return `count` points on carriageways, no two closer than `spacing` metres.

    Random points are tried cell by cell, the nearest cells first. The training region grows westward from a line, the
    test region eastward from another line `GAP_M` away, so they never meet. A smaller count gives the first points of
    a larger one.
    """
    side = float(np.clip(4 * spacing, 50.0, 400.0))
    toward = -1.0 if region == "train" else 1.0
    kept: dict[tuple[int, int], list[tuple[float, float]]] = {}
    found: list[tuple[float, float]] = []
    for i, j in _half_spiral():
        rng = generator(plan.seed, 4, int(region == "train"), i, j)
        darts = min(4000, 120 + int(60 * (side / spacing) ** 2))
        x, y = toward * (GAP_M / 2 + (i + rng.random(darts)) * side), (j + rng.random(darts)) * side
        on_street = plan.locate(x, y).edge < -_INSIDE_M
        for at in zip(x[on_street].tolist(), y[on_street].tolist(), strict=True):
            a, b = int(at[0] // spacing), int(at[1] // spacing)
            near = (p for c in (a - 1, a, a + 1) for d in (b - 1, b, b + 1) for p in kept.get((c, d), ()))
            if all((at[0] - u) ** 2 + (at[1] - v) ** 2 >= spacing**2 for u, v in near):
                kept.setdefault((a, b), []).append(at)
                found.append(at)
                if len(found) == count:
                    return found
    raise AssertionError("the spiral has no end")


def _half_spiral() -> Iterator[tuple[int, int]]:
    """Yield the cells of a half plane, ring by ring, in order along each ring."""
    ring = 0
    while True:
        walk = [(i, -ring) for i in range(ring)] + [(ring, j) for j in range(-ring, ring + 1)]
        walk += [(i, ring) for i in range(ring - 1, -1, -1)]
        yield from (walk if ring % 2 else walk[::-1]) if ring else [(0, 0)]
        ring += 1
