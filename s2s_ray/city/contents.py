"""Contents of a district: its blocks filled, its streets lined with trees, everything in world metres."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from s2s_ray.city import surface
from s2s_ray.city.blocks import FILL, house
from s2s_ray.city.district import CELL_M, PAVEMENT_M, District
from s2s_ray.city.noise import Floats, generator
from s2s_ray.city.spots import draw_spots
from s2s_ray.city.streets import Streets
from s2s_ray.city.things import PATCH, SOLID, TREE, Plot, Rect, Table, stacked, table

VERGE_M = 1.1  # street trees stand this far behind the kerb


@dataclass(frozen=True, eq=False)
class Contents:
    """Everything that stands in one district, and the spots where vehicles and people may be; world metres."""

    solids: Table
    trees: Table
    patches: Table
    spots: Table


def fill(plan: Streets, district: District, occlusion: float) -> Contents:
    """Fill the blocks of one district and plant street trees; nothing stands on a street or in the water."""
    plot = Plot(generator(plan.seed, 3, *district.key))
    for i, j in _own_blocks(plan, district):
        rect = _inner(district, i, j)
        if min(rect.width, rect.length) > 16:
            FILL[int(district.blocks[i, j])](plot, rect)
    _line_streets(plot, district, occlusion)
    solids = _fitted(plan, district, _placed(plan, district, table(plot.solids, SOLID)))
    trees = _placed(plan, district, table(plot.trees, TREE))
    patches = _placed(plan, district, table(plot.patches, PATCH))
    return Contents(
        solids=stacked([solids, _infill(plan, district, plot, solids)], SOLID),
        trees=trees[_open(plan, district, trees["x"], trees["y"], 0.6)],
        patches=patches[_open(plan, district, patches["x"], patches["y"], PAVEMENT_M)],
        spots=draw_spots(plan, district),
    )


def _own_blocks(plan: Streets, district: District) -> list[tuple[int, int]]:
    """Return the blocks with a corner, the middle of a side or their centre in the district."""
    low, high = district.cross[:, :-1, None], district.cross[:, 1:, None]
    left, right = (part[:, None, None] for part in (district.lines[:-1], district.lines[1:]))
    share = np.arange(9)
    u = left + (right - left) * (share % 3) / 2
    v = low + (high - low) * (share // 3) / 2
    qx, qy = district.bent(u, v)
    i, j = district.key
    others = [plan.district(i + a, j + b) for a in range(-2, 3) for b in range(-2, 3)]
    squares = [(qx - other.x) ** 2 + (qy - other.y) ** 2 for other in others]
    own = (squares[12] <= np.min(squares, 0)).any(2)
    return [(int(a), int(b)) for a, b in zip(*np.nonzero(own), strict=True)]


def _inner(district: District, i: int, j: int) -> Rect:
    """Return block (i, j) without its pavements."""
    pavement = PAVEMENT_M
    return Rect(
        district.lines[i] + district.line_half[i] + pavement,
        district.lines[i + 1] - district.line_half[i + 1] - pavement,
        district.cross[i, j] + district.cross_half[i, j] + pavement,
        district.cross[i, j + 1] - district.cross_half[i, j + 1] - pavement,
    )


def _line_streets(plot: Plot, district: District, occlusion: float) -> None:
    """Plant trees along the pavements; their density differs between the sides of each street."""
    rng = plot.rng
    reach = CELL_M
    for i in np.flatnonzero(np.abs(district.lines) < reach):
        for side in (-1, 1):
            u = district.lines[i] + side * (district.line_half[i] + VERGE_M)
            _tree_row(plot, [(u, v) for v in np.arange(-reach, reach, rng.uniform(7, 14))], occlusion)
    for i, j in zip(*np.nonzero(np.abs(district.cross) < reach), strict=True):
        if i + 1 < len(district.lines) and np.abs(district.lines[i]) < reach:
            v = district.cross[i, j] + rng.choice((-1, 1)) * (district.cross_half[i, j] + VERGE_M)
            steps = np.arange(district.lines[i] + 9, district.lines[i + 1] - 8, rng.uniform(7, 14))
            _tree_row(plot, [(u, v) for u in steps], occlusion)


def _tree_row(plot: Plot, spots: list[tuple[float, float]], occlusion: float) -> None:
    share = plot.rng.choice((0.0, 0.25, 1.0)) * min(1.0, 0.15 + occlusion)
    for u, v in spots:
        if plot.rng.random() < share:
            plot.tree(u, v + plot.rng.uniform(-1.0, 1.0), size=0.72, low=2.9)


def _placed(plan: Streets, district: District, things: Table) -> Table:
    """Convert local coordinates to world metres.

    Outlines are turned and stretched with the plane, so neighbours still meet.
    """
    placed = things.copy()
    placed["x"], placed["y"] = plan.straighten(*district.bent(things["x"], things["y"]))
    if "cosine" in (things.dtype.names or ()):
        own = np.arctan2(things["sine"], things["cosine"]) + np.arctan2(district.sine, district.cosine)
        angle, stretch = plan.unbend(placed["x"], placed["y"], own)
        placed["cosine"], placed["sine"] = np.cos(angle), np.sin(angle)
        placed["a"] *= stretch
        placed["b"] *= plan.unbend(placed["x"], placed["y"], own + np.pi / 2)[1]
    return placed


def _open(plan: Streets, district: District, x: Floats, y: Floats, margin: float) -> NDArray[np.bool_]:
    """Return True for points that the district owns, dry and more than `margin` metres from the kerbs."""
    if x.size == 0:
        return np.zeros(x.shape, bool)
    places = plan.locate(x, y, only=district.key)
    return np.asarray((places.edge > margin) & (places.ground != surface.WATER))


def _fitted(plan: Streets, district: District, solids: Table) -> Table:
    """Return the solids whose outline lies on the district's dry blocks, some of them after shrinking."""
    fits = _stands(plan, district, solids)
    for _ in range(2):
        for side in ("a", "b"):
            solids[side][~fits] *= 0.85
        fits[~fits] = _stands(plan, district, solids[~fits])
    return solids[fits]


def _stands(plan: Streets, district: District, solids: Table) -> NDArray[np.bool_]:
    side = np.array([-1.0, 0.0, 1.0])
    a, b = (part.ravel() for part in np.meshgrid(side, side))
    along, across = solids["a"][:, None] * a, solids["b"][:, None] * b
    x = solids["x"][:, None] + solids["cosine"][:, None] * along - solids["sine"][:, None] * across
    y = solids["y"][:, None] + solids["sine"][:, None] * along + solids["cosine"][:, None] * across
    return np.asarray(_open(plan, district, x, y, 1.2).all(1))


def _infill(plan: Streets, district: District, plot: Plot, solids: Table) -> Table:
    """Return houses for gaps along the streets, most of them beside the avenues."""
    darts = 1200
    middle = plan.straighten(np.array([district.x]), np.array([district.y]))
    x, y = (at + plot.rng.uniform(-0.8, 0.8, darts) * CELL_M for at in middle)
    places = plan.locate(x, y)
    near = (
        (places.edge > 7.5) & (places.edge < 14) & np.isin(places.ground, (surface.YARD, surface.PLAZA, surface.GRASS))
    )
    x, y, along = x[near], y[near], places.along[near]
    angle, _ = plan.unbend(x, y, along)
    for _ in range(len(x)):
        house(plot)
    extra = table(plot.solids[len(plot.solids) - len(x) :], SOLID)
    extra["x"], extra["y"], extra["cosine"], extra["sine"] = x, y, np.cos(angle), np.sin(angle)
    extra = extra[_stands(plan, district, extra)]
    kept: list[int] = []
    reach = np.hypot(extra["a"], extra["b"])
    clear = _gap(extra, solids).min(1, initial=np.inf) > reach
    for k in np.flatnonzero(clear):
        others = extra[kept]
        away = np.hypot(others["x"] - extra["x"][k], others["y"] - extra["y"][k])
        if (away > reach[kept] + reach[k] + 1).all():
            kept.append(int(k))
    return extra[kept]


def _gap(things: Table, solids: Table) -> Floats:
    """Return the distance from the centre of each thing to the outline of each solid; things x solids."""
    dx = things["x"][:, None] - solids["x"]
    dy = things["y"][:, None] - solids["y"]
    along = np.abs(solids["cosine"] * dx + solids["sine"] * dy) - solids["a"]
    across = np.abs(solids["cosine"] * dy - solids["sine"] * dx) - solids["b"]
    return np.asarray(np.hypot(np.maximum(along, 0), np.maximum(across, 0)))
