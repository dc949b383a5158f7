"""The things of a city as tables, and the plot on which those of a district are collected."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

FLAT, GABLE, HIP = range(3)
HOUSE, OFFICE, SHOP, BLANK, HEDGE = range(5)
ROUND, TALL = range(2)

SOLID = np.dtype(
    [
        *((name, np.float64) for name in ("x", "y")),  # centre of the footprint
        *((name, np.float32) for name in ("cosine", "sine", "a", "b")),  # direction of side a; half sides
        *((name, np.float32) for name in ("eave", "rise", "storey", "bay")),  # metres; bay: spacing of windows
        *((name, np.int32) for name in ("roof", "style", "key")),
        ("wall", np.float32, 3),
        ("top", np.float32, 3),
    ]
)
TREE = np.dtype(
    [
        *((name, np.float64) for name in ("x", "y")),
        *((name, np.float32) for name in ("radius", "low", "high", "shade")),  # crown between low and high
        *((name, np.int32) for name in ("form", "key")),
    ]
)
PATCH = np.dtype(
    [
        *((name, np.float64) for name in ("x", "y")),
        *((name, np.float32) for name in ("cosine", "sine", "a", "b")),
        *((name, np.int32) for name in ("ground", "oval")),
    ]
)
SPOT = np.dtype([("x", np.float64), ("y", np.float64), ("angle", np.float32), ("use", np.int32)])
Table = NDArray[Any]  # structured: SOLID, TREE, PATCH or SPOT

_WALLS = np.array(
    [
        (0.86, 0.83, 0.76),
        (0.80, 0.70, 0.52),
        (0.62, 0.33, 0.25),
        (0.66, 0.66, 0.64),
        (0.86, 0.78, 0.62),
        (0.48, 0.36, 0.29),
        (0.62, 0.68, 0.72),
        (0.78, 0.58, 0.47),
    ]
)
_TOPS = np.array([(0.60, 0.30, 0.20), (0.27, 0.28, 0.31), (0.43, 0.31, 0.24), (0.52, 0.51, 0.50), (0.36, 0.38, 0.33)])
_FLAT_TOPS = np.array([(0.70, 0.69, 0.66), (0.46, 0.46, 0.47), (0.58, 0.53, 0.48), (0.33, 0.34, 0.36)])


class Rect(NamedTuple):
    """A rectangle in a district's local coordinates, in metres."""

    u0: float
    u1: float
    v0: float
    v1: float

    @property
    def width(self) -> float:
        return self.u1 - self.u0

    @property
    def length(self) -> float:
        return self.v1 - self.v0

    @property
    def middle(self) -> tuple[float, float]:
        return (self.u0 + self.u1) / 2, (self.v0 + self.v1) / 2


@dataclass(eq=False)
class Plot:
    """The things of one district while it is being filled, in local coordinates."""

    rng: np.random.Generator
    solids: list[tuple[object, ...]] = field(default_factory=list)
    trees: list[tuple[object, ...]] = field(default_factory=list)
    patches: list[tuple[object, ...]] = field(default_factory=list)

    def key(self) -> int:
        return int(self.rng.integers(1 << 30))

    def solid(
        self,
        at: tuple[float, float],
        half: tuple[float, float],
        eave: float,
        *,
        rise: float = 0.0,
        roof: int = FLAT,
        ridge: str = "u",
        style: int = HOUSE,
    ) -> None:
        """Add a box with a roof; `half` are its half extents across and along, a gable's ridge runs along `ridge`."""
        rng = self.rng
        wall = _WALLS[rng.integers(len(_WALLS))] * rng.uniform(0.88, 1.08) + rng.uniform(-0.03, 0.03, 3)
        tops = _FLAT_TOPS if roof == FLAT else _TOPS
        top = tops[rng.integers(len(tops))] * rng.uniform(0.85, 1.12) + rng.uniform(-0.02, 0.02, 3)
        turned = ridge == "v"
        a, b = (half[1], half[0]) if turned else half
        storey = rng.uniform(2.8, 3.4) if style != OFFICE else rng.uniform(3.2, 3.8)
        bay = rng.uniform(2.0, 3.6) if style != OFFICE else rng.uniform(1.6, 2.6)
        frame = (0.0, 1.0) if turned else (1.0, 0.0)
        self.solids.append((*at, *frame, a, b, eave, rise, storey, bay, roof, style, self.key(), wall, top))

    def hedge(self, at: tuple[float, float], half: tuple[float, float]) -> None:
        self.solid(at, half, self.rng.uniform(0.9, 1.9), style=HEDGE)

    def tree(self, u: float, v: float, *, size: float = 1.0, low: float = 2.7) -> None:
        rng = self.rng
        tall = rng.random() < 0.25
        radius = size * (rng.uniform(1.1, 1.7) if tall else rng.uniform(1.7, 3.6))
        low = min(low, 1.0) if tall else low * rng.uniform(0.95, 1.1)
        high = low + radius * (rng.uniform(4.0, 5.5) if tall else rng.uniform(1.5, 2.2))
        self.trees.append((u, v, radius, low, high, rng.uniform(0.78, 1.18), TALL if tall else ROUND, self.key()))

    def scatter(self, rect: Rect, count: int, *, size: float = 1.0) -> None:
        """Add trees at random positions in a rectangle."""
        for _ in range(count):
            self.tree(self.rng.uniform(rect.u0, rect.u1), self.rng.uniform(rect.v0, rect.v1), size=size)

    def patch(self, at: tuple[float, float], half: tuple[float, float], ground: int, *, oval: bool = False) -> None:
        self.patches.append((*at, 1.0, 0.0, *half, ground, int(oval)))


def table(rows: list[tuple[object, ...]], kind: np.dtype[Any]) -> Table:
    """Return rows as one structured array."""
    return np.array(rows, kind)


def stacked(parts: Sequence[Table], kind: np.dtype[Any]) -> Table:
    """Concatenate tables of one kind (np.concatenate compares all field types each time)."""
    whole = np.empty(sum(len(part) for part in parts), kind)
    start = 0
    for part in parts:
        whole[start : start + len(part)] = part
        start += len(part)
    return whole
