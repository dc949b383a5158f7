"""Rasters of a height field, in which solids and trees are raised."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from s2s_ray.city.noise import Floats
from s2s_ray.city.things import FLAT, GABLE, Table


@dataclass(frozen=True, eq=False)
class Rasters:
    """Arrays of one shape: surface code, top of the solids in metres, number of the solid, and both for the crowns.

    Numbers count from 1; 0 means nothing.
    """

    ground: NDArray[np.uint8]
    height: NDArray[np.float32]
    solid: NDArray[np.int16]
    canopy: NDArray[np.float32]
    tree: NDArray[np.int16]

    BYTES: ClassVar[int] = 13  # per cell

    @classmethod
    def empty(cls, pages: int, side: int) -> Self:
        """Allocate `pages` squares of `side` x `side` cells."""
        kinds = (np.uint8, np.float32, np.int16, np.float32, np.int16)
        return cls(*(np.empty((pages, side, side), kind) for kind in kinds))

    def page(self, index: int) -> Rasters:
        """Return a view of one page."""
        return Rasters(*(part[index] for part in (self.ground, self.height, self.solid, self.canopy, self.tree)))


def roof_height(
    roof: NDArray[np.int32], a: Floats, b: Floats, eave: Floats, rise: Floats, along: Floats, across: Floats
) -> Floats:
    """Return the height in metres of solids with these fields at local points."""
    inward = 1.0 - np.abs(across) / b
    hip = np.minimum(inward, (a - np.abs(along)) / b)
    share = np.where(roof == GABLE, inward, np.where(roof == FLAT, np.float32(0), hip))
    return np.asarray(eave + rise * np.clip(share, 0.0, 1.0))


def raise_things(page: Rasters, west: float, south: float, cell: float, solids: Table, trees: Table) -> None:
    """Raise all but the first solid and the first tree over a page whose corner is at (west, south)."""
    for part in (page.height, page.solid, page.canopy, page.tree):
        part[...] = 0
    for index in range(1, len(solids)):
        _raise_solid(page, solids[index], index, west, south, cell)
    for index in range(1, len(trees)):
        _raise_tree(page, trees[index], index, west, south, cell)


def _window(
    thing: Table, reach: float, west: float, south: float, cell: float, side: int
) -> tuple[tuple[slice, slice], Floats, Floats]:
    """Return the cells within `reach` of a thing's centre, and their offsets from it (a row and a column)."""
    spans, offsets = [], []
    for middle, corner in ((thing["y"], south), (thing["x"], west)):
        low = min(max(0, int((middle - reach - corner) / cell)), side)
        high = min(max(low, int((middle + reach - corner) / cell) + 1), side)
        spans.append(slice(low, high))
        offsets.append((corner - middle + (np.arange(low, high) + 0.5) * cell).astype(np.float32))
    return (spans[0], spans[1]), offsets[1][None, :], offsets[0][:, None]


def _raise_solid(page: Rasters, thing: Table, index: int, west: float, south: float, cell: float) -> None:
    a, b, c, s = thing["a"], thing["b"], thing["cosine"], thing["sine"]
    at, dx, dy = _window(thing, float(np.hypot(a, b)), west, south, cell, len(page.ground))
    along, across = c * dx + s * dy, c * dy - s * dx
    higher = (np.abs(along) <= a) & (np.abs(across) <= b)
    top = thing["eave"]
    if thing["rise"] > 0:
        top = roof_height(thing["roof"], a, b, top, thing["rise"], along, across)
    higher &= top > page.height[at]
    np.copyto(page.height[at], top, where=higher)
    np.copyto(page.solid[at], np.int16(index), where=higher)


def _raise_tree(page: Rasters, thing: Table, index: int, west: float, south: float, cell: float) -> None:
    radius, low, high = float(thing["radius"]), float(thing["low"]), float(thing["high"])
    at, dx, dy = _window(thing, radius, west, south, cell, len(page.ground))
    share = 1 - (dx * dx + dy * dy) / np.float32(radius**2)
    top = np.float32((high + low) / 2) + np.float32((high - low) / 2) * np.sqrt(np.maximum(share, 0))
    higher = (share > 0) & (top > page.canopy[at])
    np.copyto(page.canopy[at], top, where=higher)
    np.copyto(page.tree[at], np.int16(index), where=higher)
