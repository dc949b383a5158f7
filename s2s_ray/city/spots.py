"""Spots for vehicles and people: fixed in the city, occupied differently in each picture."""

from __future__ import annotations

import numpy as np

from s2s_ray.city import surface
from s2s_ray.city.district import CELL_M, FAR, District
from s2s_ray.city.noise import generator
from s2s_ray.city.streets import Streets
from s2s_ray.city.things import SPOT, Table

KERB, LANE, LOT, WALK = range(4)
_DARTS = 14000
_BETWEEN_M = 5.7  # between the centres of two vehicles


def draw_spots(plan: Streets, district: District) -> Table:
    """Draw the spots of one district: random points that lie on streets, with vehicles apart from each other."""
    rng = generator(plan.seed, 6, *district.key)
    middle = plan.straighten(np.array([district.x]), np.array([district.y]))
    x, y = (at + rng.uniform(-0.8, 0.8, _DARTS) * CELL_M for at in middle)
    places = plan.locate(x, y, only=district.key)
    edge, ground = places.edge, places.ground
    use = np.full(x.shape, -1)
    use[(edge > -1.7) & (edge < -0.9)] = KERB
    use[(edge < -2.3) & (ground == surface.ASPHALT)] = LANE
    use[(edge > 5) & (ground == surface.PARKING)] = LOT
    use[(edge > 0.4) & (edge < 1.9)] = WALK
    chosen = np.flatnonzero((use >= 0) & (edge > -FAR))
    spots = np.zeros(len(chosen), SPOT)
    spots["x"], spots["y"], spots["use"] = x[chosen], y[chosen], use[chosen]
    spots["angle"], _ = plan.unbend(x[chosen], y[chosen], places.along[chosen])
    return spots[_apart(spots)]


def _apart(spots: Table) -> list[int]:
    taken: dict[tuple[int, int], list[tuple[float, float]]] = {}
    kept = []
    for k, (x, y, use) in enumerate(zip(spots["x"].tolist(), spots["y"].tolist(), spots["use"].tolist(), strict=True)):
        i, j = int(x // _BETWEEN_M), int(y // _BETWEEN_M)
        near = [p for a in (-1, 0, 1) for b in (-1, 0, 1) for p in taken.get((i + a, j + b), ())]
        if use == WALK or all((x - u) ** 2 + (y - v) ** 2 > _BETWEEN_M**2 for u, v in near):
            kept.append(k)
            if use != WALK:
                taken.setdefault((i, j), []).append((x, y))
    return kept
