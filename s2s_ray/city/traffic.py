"""Traffic: parked and driving vehicles and pedestrians, drawn separately for each picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Self

import numpy as np
from numpy.typing import NDArray

from s2s_ray.city.noise import Floats
from s2s_ray.city.spots import WALK
from s2s_ray.city.things import Table

REACH_M = 50.0
_PAINT = np.array(
    [
        (0.82, 0.82, 0.80),
        (0.12, 0.12, 0.13),
        (0.45, 0.46, 0.48),
        (0.55, 0.10, 0.09),
        (0.12, 0.20, 0.42),
        (0.68, 0.66, 0.60),
    ]
)


@dataclass(frozen=True, eq=False)
class Boxes:
    """Upright boxes: centres (local metres), directions, half extents, heights of bottom and top, colours."""

    x: Floats
    y: Floats
    cosine: Floats
    sine: Floats
    a: Floats
    b: Floats
    low: Floats
    high: Floats
    colour: Floats
    glass: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.x)

    @classmethod
    def joined(cls, parts: Sequence[Boxes]) -> Self:
        """Return the boxes of all parts, of which there is at least one."""
        return cls(**{each.name: np.concatenate([getattr(part, each.name) for part in parts]) for each in fields(cls)})


def no_traffic() -> Boxes:
    """Return the boxes of empty streets."""
    return _boxes([])


def draw_traffic(rng: np.random.Generator, spots: Table, x: float, y: float, occlusion: float) -> Boxes:
    """Draw vehicles and people around a point; more `occlusion` (0 to 1) gives more and larger ones."""
    luck, size = rng.random((2, len(spots)))
    share = np.array([1.6 * occlusion, 0.06, 0.2 + 0.5 * occlusion, 0.9 * occlusion])  # KERB, LANE, LOT, WALK
    away = np.hypot(spots["x"] - x, spots["y"] - y)
    taken = (luck < share[spots["use"]]) & (away < REACH_M) & (away > np.where(spots["use"] == WALK, 2.2, 4.2))
    rows: list[tuple[float, ...]] = []
    for k in np.flatnonzero(taken):
        spot = spots[k]
        if spot["use"] == WALK:
            rows += _person(rng, spot["x"], spot["y"])
        else:
            rows += _vehicle(rng, spot["x"], spot["y"], spot["angle"], van=bool(size[k] < 0.06 + 0.3 * occlusion))
    return _boxes(rows)


def _vehicle(rng: np.random.Generator, x: float, y: float, angle: float, *, van: bool) -> list[tuple[float, ...]]:
    c, s = float(np.cos(angle)), float(np.sin(angle))
    paint = _PAINT[rng.choice(len(_PAINT), p=(0.28, 0.2, 0.22, 0.1, 0.1, 0.1))] * rng.uniform(0.85, 1.1)
    if van:
        high = rng.uniform(2.0, 2.7)
        return [
            (x, y, c, s, 2.6, 0.98, 0.35, high, *paint, 0.0),
            (x + c * 1.5, y + s * 1.5, c, s, 1.15, 1.0, 1.25, high - 0.45, 0.10, 0.12, 0.14, 1.0),
            (x, y, c, s, 2.45, 0.85, 0.0, 0.4, 0.05, 0.05, 0.05, 0.0),
        ]
    return [
        (x, y, c, s, 2.15, 0.88, 0.28, 0.88, *paint, 0.0),
        (x - c * 0.2, y - s * 0.2, c, s, 1.25, 0.80, 0.88, 1.36, 0.10, 0.12, 0.14, 1.0),
        (x - c * 0.2, y - s * 0.2, c, s, 0.95, 0.76, 1.34, 1.46, *paint, 0.0),
        (x, y, c, s, 1.95, 0.80, 0.0, 0.32, 0.05, 0.05, 0.05, 0.0),
    ]


def _person(rng: np.random.Generator, x: float, y: float) -> list[tuple[float, ...]]:
    angle, tall = rng.uniform(0, np.pi), rng.uniform(1.55, 1.9)
    c, s = float(np.cos(angle)), float(np.sin(angle))
    coat, legs = rng.uniform(0.08, 0.65, 3), rng.uniform(0.05, 0.3, 3)
    return [
        (x, y, c, s, 0.20, 0.14, 0.0, tall * 0.5, *legs, 0.0),
        (x, y, c, s, 0.25, 0.16, tall * 0.48, tall * 0.85, *coat, 0.0),
        (x, y, c, s, 0.11, 0.11, tall * 0.86, tall, 0.62, 0.46, 0.36, 0.0),
    ]


def _boxes(rows: list[tuple[float, ...]]) -> Boxes:
    table = np.array(rows, np.float64).reshape(-1, 12)
    x, y, cosine, sine, a, b, low, high = table[:, :8].T
    return Boxes(x, y, cosine, sine, a, b, low, high, table[:, 8:11].astype(np.float32), table[:, 11] > 0)
