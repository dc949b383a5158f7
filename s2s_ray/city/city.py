"""The unbounded city of one seed: the ground and the things at any place."""

from __future__ import annotations

from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from s2s_ray.city.contents import Contents, fill
from s2s_ray.city.district import PAVEMENT_M
from s2s_ray.city.noise import Floats
from s2s_ray.city.streets import Streets
from s2s_ray.city.things import PATCH, SOLID, SPOT, TREE, Table, stacked

THING_M = 32.0  # no thing extends farther from its centre


class Land(Protocol):
    """Something that can be drawn. Coordinates are metres from its origin, east and north."""

    def ground(self, x: Floats, y: Floats) -> NDArray[np.uint8]:
        """Return the surface codes of a grid, given by a sorted row `x` and a sorted column `y`."""

    def things(self, west: float, south: float, size: float) -> Contents:
        """Return everything that extends into a square."""


class City:
    """The land of one seed; `occlusion` determines how many trees line its streets."""

    def __init__(self, seed: int, occlusion: float) -> None:
        self.plan = Streets(seed)
        self.occlusion = occlusion
        self._contents = lru_cache(maxsize=64)(self._fill)

    def ground(self, x: Floats, y: Floats) -> NDArray[np.uint8]:
        places = self.plan.locate(x, y)
        west, south = float(x[0, 0]), float(y[0, 0])
        patches = self.things(west, south, float(max(x[0, -1] - west, y[-1, 0] - south))).patches
        off_street = places.edge > PAVEMENT_M
        for patch in patches:
            _paint(places.ground, off_street, x, y, patch)
        return places.ground

    def things(self, west: float, south: float, size: float) -> Contents:
        parts = self._owners(west, south, size, THING_M)
        kinds = {"solids": SOLID, "trees": TREE, "patches": PATCH, "spots": SPOT}
        return Contents(
            **{
                name: stacked([_reaching(getattr(part, name), west, south, size) for part in parts], kind)
                for name, kind in kinds.items()
            }
        )

    def _owners(self, west: float, south: float, size: float, margin: float) -> list[Contents]:
        """Return the contents of the districts that own a point of a square or of its margin."""
        steps = np.linspace(-margin, size + margin, 9)
        return [self._contents(*key) for key in self.plan.owners(west + steps[None, :], south + steps[:, None])]

    def _fill(self, i: int, j: int) -> Contents:
        return fill(self.plan, self.plan.district(i, j), self.occlusion)


def _reaching(rows: Table, west: float, south: float, size: float) -> Table:
    names = rows.dtype.names or ()
    reach = rows["radius"] if "radius" in names else np.hypot(rows["a"], rows["b"]) if "a" in names else 0.0
    near = (rows["x"] > west - reach) & (rows["x"] < west + size + reach)
    return rows[near & (rows["y"] > south - reach) & (rows["y"] < south + size + reach)]


def _paint(ground: NDArray[np.uint8], allowed: NDArray[np.bool_], x: Floats, y: Floats, patch: Table) -> None:
    reach = float(np.hypot(patch["a"], patch["b"]))
    c0, c1 = np.searchsorted(x[0], (patch["x"] - reach, patch["x"] + reach))
    r0, r1 = np.searchsorted(y[:, 0], (patch["y"] - reach, patch["y"] + reach))
    dx, dy = x[:, c0:c1] - patch["x"], y[r0:r1] - patch["y"]
    along = (patch["cosine"] * dx + patch["sine"] * dy) / patch["a"]
    across = (patch["cosine"] * dy - patch["sine"] * dx) / patch["b"]
    inside = along**2 + across**2 <= 1 if patch["oval"] else (np.abs(along) <= 1) & (np.abs(across) <= 1)
    ground[r0:r1, c0:c1][inside & allowed[r0:r1, c0:c1]] = patch["ground"]
