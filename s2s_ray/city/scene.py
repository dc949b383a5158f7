"""Height field of a piece of land: pages of rasters, with the tables to which their numbers refer."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from s2s_ray.city.city import Land
from s2s_ray.city.noise import Floats
from s2s_ray.city.relief import Rasters, raise_things
from s2s_ray.city.things import SOLID, TREE, Table, stacked

BITS = 8
SIDE = 1 << BITS  # cells of a page along an axis
CACHE_BYTES = 192 * 2**20


@dataclass(frozen=True, eq=False)
class Scene:
    """A rectangle of land on square cells with a side of `cell` metres, rows growing north, columns growing east.

    Cell (r, c) has its south-west corner at ((west + c) * cell, (south + r) * cell). `rasters` holds the pages of
    an atlas, `pages` the number of each page of the rectangle. Solids and trees of page p begin at row
    `first_solid[p]` and `first_tree[p]` of the tables; the first row of each page stands for nothing. `grove`
    holds each tree once.
    """

    west: int
    south: int
    cell: float
    pages: NDArray[np.intp]
    rasters: Rasters
    first_solid: NDArray[np.int32]
    first_tree: NDArray[np.int32]
    solids: Table
    trees: Table
    grove: Table

    def columns(self, x: Floats) -> NDArray[np.int32]:
        """Return the columns of eastward coordinates."""
        return np.asarray((x * (1 / self.cell) - self.west).astype(np.int32))

    def rows(self, y: Floats) -> NDArray[np.int32]:
        """Return the rows of northward coordinates."""
        return np.asarray((y * (1 / self.cell) - self.south).astype(np.int32))

    def flat(self, rows: NDArray[np.int32], columns: NDArray[np.int32]) -> NDArray[np.intp]:
        """Return indices into the flattened rasters; shapes broadcast."""
        at = self.pages.take((rows >> BITS) * self.pages.shape[1] + (columns >> BITS))
        at <<= 2 * BITS
        at += (rows & (SIDE - 1)) << BITS
        at += columns & (SIDE - 1)
        return np.asarray(at)

    def solid_rows(self, flat: NDArray[np.intp]) -> NDArray[np.int32]:
        """Return the rows of `solids` at flat indices."""
        return np.asarray(self.rasters.solid.take(flat) + self.first_solid[flat >> (2 * BITS)])

    def tree_rows(self, flat: NDArray[np.intp]) -> NDArray[np.int32]:
        """Return the rows of `trees` at flat indices."""
        return np.asarray(self.rasters.tree.take(flat) + self.first_tree[flat >> (2 * BITS)])

    def tops(self, rows: tuple[int, int], columns: tuple[int, int], stride: int) -> NDArray[np.float32]:
        """Return every `stride`-th height of solids and crowns in a window."""
        top = np.empty((-(-(rows[1] - rows[0]) // stride), -(-(columns[1] - columns[0]) // stride)), np.float32)
        for p in range(rows[0] >> BITS, ((rows[1] - 1) >> BITS) + 1):
            for q in range(columns[0] >> BITS, ((columns[1] - 1) >> BITS) + 1):
                to_r, of_r = _overlap(rows, p * SIDE, stride)
                to_c, of_c = _overlap(columns, q * SIDE, stride)
                page = self.pages[p, q]
                height, canopy = self.rasters.height[page, of_r, of_c], self.rasters.canopy[page, of_r, of_c]
                np.maximum(height, canopy, out=top[to_r, to_c])
        return top


def _overlap(span: tuple[int, int], start: int, stride: int) -> tuple[slice, slice]:
    """Return the samples of a strided span that fall on a page, and their cells on that page."""
    first = max(0, -((span[0] - start) // stride))
    last = -((span[0] - min(span[1], start + SIDE)) // stride)
    return slice(first, last), slice(span[0] + first * stride - start, min(span[1] - start, SIDE), stride)


class Atlas:
    """Pages of a land, drawn when a scene needs them and kept while `CACHE_BYTES` allow.

    The content of a scene does not depend on the pages that exist already. A scene is valid until the next one is
    requested, which may overwrite its pages.
    """

    def __init__(self, land: Land, cell: float) -> None:
        self.land = land
        self.cell = cell
        self.capacity = CACHE_BYTES // (Rasters.BYTES * SIDE * SIDE)
        self._rasters = Rasters.empty(self.capacity, SIDE)
        self._tables: list[tuple[Table, Table]] = [(np.zeros(0, SOLID), np.zeros(0, TREE))] * self.capacity
        self._slots: OrderedDict[tuple[int, int], int] = OrderedDict()

    def scene(self, x: float, y: float, radius: float) -> Scene:
        """Return everything within `radius` metres of a point along either axis, and up to one page more."""
        page = SIDE * self.cell
        low_i, low_j = int((x - radius) // page), int((y - radius) // page)
        high_i, high_j = int((x + radius) // page), int((y + radius) // page)
        wanted = [(i, j) for j in range(low_j, high_j + 1) for i in range(low_i, high_i + 1)]
        assert len(wanted) <= self.capacity, f"{len(wanted)} pages at once, room for {self.capacity}"
        for key in wanted:
            if key in self._slots:
                self._slots.move_to_end(key)
        slots = [self._slot(*key) for key in wanted]
        first_solid, first_tree = np.zeros((2, self.capacity), np.int32)
        first_solid[slots] = np.cumsum([0, *(len(self._tables[slot][0]) for slot in slots[:-1])])
        first_tree[slots] = np.cumsum([0, *(len(self._tables[slot][1]) for slot in slots[:-1])])
        trees = stacked([self._tables[slot][1] for slot in slots], TREE)
        _, once = np.unique(trees["x"], return_index=True)
        return Scene(
            west=low_i * SIDE,
            south=low_j * SIDE,
            cell=self.cell,
            pages=np.array(slots, np.intp).reshape(high_j - low_j + 1, -1),
            rasters=self._rasters,
            first_solid=first_solid,
            first_tree=first_tree,
            solids=stacked([self._tables[slot][0] for slot in slots], SOLID),
            trees=trees,
            grove=trees[once],
        )

    def _slot(self, i: int, j: int) -> int:
        """Return the number of page (i, j), drawing it if necessary over the least recently used page."""
        if (i, j) not in self._slots:
            full = len(self._slots) == self.capacity
            slot = self._slots.popitem(last=False)[1] if full else len(self._slots)
            self._slots[i, j] = slot
            self._draw(slot, i, j)
        return self._slots[i, j]

    def _draw(self, slot: int, i: int, j: int) -> None:
        west, south = i * SIDE * self.cell, j * SIDE * self.cell
        steps = (np.arange(SIDE) + 0.5) * self.cell
        page = self._rasters.page(slot)
        page.ground[...] = self.land.ground(west + steps[None, :], south + steps[:, None])
        things = self.land.things(west, south, SIDE * self.cell)
        solids = stacked([np.zeros(1, SOLID), things.solids], SOLID)
        trees = stacked([np.zeros(1, TREE), things.trees], TREE)
        raise_things(page, west, south, self.cell, solids, trees)
        self._tables[slot] = (solids, trees)
