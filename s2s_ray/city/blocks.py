"""Contents of a block: one function for each kind of block, which adds things to a plot in local coordinates."""

from __future__ import annotations

import numpy as np

from s2s_ray.city import surface
from s2s_ray.city.district import FARM, HOUSES, MARKET, PARK, ROWS, SLABS, SQUARE, TOWERS
from s2s_ray.city.things import BLANK, FLAT, GABLE, HIP, HOUSE, OFFICE, SHOP, Plot, Rect


def houses(plot: Plot, rect: Rect) -> None:
    """Add detached houses in gardens along both long sides."""
    rng = plot.rng
    for side in (-1, 1):
        kerb = rect.u0 if side < 0 else rect.u1
        start = rect.v0 + 1.0
        while (size := rng.uniform(13.0, 22.0)) and start + size < rect.v1:
            middle, depth = start + size / 2, rect.width / 2
            _lot(plot, kerb, -side, middle, size, depth)
            start += size


def _lot(plot: Plot, kerb: float, inward: int, middle: float, size: float, depth: float) -> None:
    rng = plot.rng
    if rng.random() < 0.10:
        near, far = sorted((kerb + inward * 3, kerb + inward * (depth - 3)))
        plot.scatter(Rect(near, far, middle - 6, middle + 6), 5)
        return
    setback = rng.uniform(2.5, 8.0)
    half = (min(rng.uniform(3.8, 6.0), (depth - setback) / 2 - 1.5), min(rng.uniform(3.8, 7.0), size / 2 - 1.2))
    storeys = int(rng.choice((1, 2), p=(0.6, 0.4)))
    roof = int(rng.choice((GABLE, HIP, FLAT), p=(0.5, 0.35, 0.15)))
    u = kerb + inward * (setback + half[0])
    ridge = "u" if rng.random() < 0.4 else "v"
    rise = 0.0 if roof == FLAT else (half[1] if ridge == "u" else half[0]) * rng.uniform(0.5, 0.85)
    plot.solid((u, middle), half, 3.0 * storeys + 0.3, rise=rise, roof=roof, ridge=ridge)
    gap = size / 2 - half[1]
    if gap > 2.6:  # room for a garage and its drive
        v = middle + (half[1] + gap / 2 - 0.4) * rng.choice((-1, 1))
        plot.patch((kerb + inward * setback / 2, v), (setback / 2 + 2, 1.4), surface.YARD)
        plot.solid((kerb + inward * (setback + 3.0), v), (2.8, gap / 2 - 0.6), 2.5, style=BLANK)
    if rng.random() < 0.45:
        plot.hedge((kerb + inward * 0.7, middle - size * 0.12), (0.45, size * 0.34))
    if rng.random() < 0.5:
        plot.hedge((kerb + inward * depth / 2, middle - size / 2 + 0.4), (depth / 2 - 1.5, 0.4))
    for _ in range(rng.integers(0, 3)):
        plot.tree(
            kerb + inward * rng.uniform(2.0, max(2.5, setback)),
            middle + rng.uniform(-0.5, 0.5) * size,
            size=0.8,
            low=1.6,
        )
    for _ in range(rng.integers(0, 3)):
        plot.tree(kerb + inward * rng.uniform(setback + 2 * half[0] + 2, depth), middle + rng.uniform(-0.4, 0.4) * size)


def rows(plot: Plot, rect: Rect) -> None:
    """Add attached houses around a yard."""
    rng = plot.rng
    depth = rng.uniform(9.0, 12.0)
    storeys = rng.uniform(1.6, 5.0)
    closed = rect.width > 2 * depth + 12
    for side in (-1, 1):
        middle = rect.u0 + depth / 2 if side < 0 else rect.u1 - depth / 2
        _terrace(plot, middle, rect.v0, rect.v1, depth, storeys, "v")
        if closed:
            middle = rect.v0 + depth / 2 if side < 0 else rect.v1 - depth / 2
            _terrace(plot, middle, rect.u0 + depth, rect.u1 - depth, depth, storeys, "u")
    yard = Rect(rect.u0 + depth + 2, rect.u1 - depth - 2, rect.v0 + depth, rect.v1 - depth)
    if yard.width > 6 and yard.length > 6:
        ground = int(rng.choice((surface.GRASS, surface.PARKING, surface.YARD)))
        plot.patch(yard.middle, (yard.width / 2, yard.length / 2), ground)
        plot.scatter(yard, int(rng.integers(2, 9)))


def _terrace(plot: Plot, across: float, start: float, stop: float, depth: float, storeys: float, ridge: str) -> None:
    rng = plot.rng
    while (size := rng.uniform(7.0, 17.0)) and start + size <= stop:
        if rng.random() > 0.13:
            floors = max(1, round(storeys + rng.normal(0, 1.0)))
            pitched = rng.random() < 0.6
            back = rng.choice((0.0, 0.0, 0.6, 2.0)) / 2
            at = (across, start + size / 2) if ridge == "v" else (start + size / 2, across)
            half = (depth / 2 - back, size / 2) if ridge == "v" else (size / 2, depth / 2 - back)
            plot.solid(
                at,
                half,
                3.1 * floors + 0.5,
                rise=depth * rng.uniform(0.25, 0.42) if pitched else 0.0,
                roof=GABLE if pitched else FLAT,
                ridge=ridge if rng.random() < 0.8 else ("u" if ridge == "v" else "v"),
                style=SHOP if rng.random() < 0.35 else HOUSE,
            )
        start += size


def slabs(plot: Plot, rect: Rect) -> None:
    """Add long blocks of flats on lawns, with cars and trees between them."""
    rng = plot.rng
    start = rect.v0 + rng.uniform(2, 8)
    while (size := rng.uniform(11.0, 15.0)) and start + size < rect.v1:
        v = start + size / 2
        if rng.random() < 0.75:
            half = rng.uniform(0.28, 0.46) * rect.width
            u = rng.uniform(rect.u0 + half, rect.u1 - half)
            plot.solid(
                (u, v), (half, size / 2), 3.0 * rng.integers(3, 9) + 0.6, style=OFFICE if rng.random() < 0.4 else HOUSE
            )
        gap = rng.uniform(10.0, 26.0)
        between = Rect(rect.u0 + 2, rect.u1 - 2, start + size + 1.5, start + size + gap - 1.5)
        if rng.random() < 0.45:
            plot.patch(between.middle, (between.width / 2 - 3, between.length / 2), surface.PARKING)
        plot.scatter(between, int(rng.integers(1, 7)))
        start += size + gap


def towers(plot: Plot, rect: Rect) -> None:
    """Add a few tall buildings on paved ground, with low ones between them."""
    rng = plot.rng
    start = rect.v0 + rng.uniform(1, 6)
    while (size := rng.uniform(16.0, 30.0)) and start + size < rect.v1:
        for u0, u1 in ((rect.u0, rect.u0 + rect.width / 2), (rect.u0 + rect.width / 2, rect.u1)):
            half = (rng.uniform(0.26, 0.44) * (u1 - u0), size / 2 - rng.uniform(1.5, 5.0))
            at = (rng.uniform(u0 + half[0] + 1, u1 - half[0] - 1), start + size / 2)
            if rng.random() < 0.72:
                plot.solid(at, half, float(rng.choice((7, 14, 22, 30, 38, 46)) + rng.uniform(0, 4)), style=OFFICE)
            elif rng.random() < 0.6:
                plot.patch(at, half, surface.GRASS)
                plot.scatter(Rect(at[0] - half[0], at[0] + half[0], at[1] - half[1], at[1] + half[1]), 4)
        start += size + rng.uniform(1, 9)


def market(plot: Plot, rect: Rect) -> None:
    """Add a low hall beside its car park."""
    rng = plot.rng
    share, far = rng.uniform(0.3, 0.5), rng.random() < 0.5
    length = rect.length * share
    v = rect.v1 - length / 2 - 3 if far else rect.v0 + length / 2 + 3
    plot.solid(
        (rect.u0 + rect.width / 2, v),
        (rect.width * rng.uniform(0.3, 0.44), length / 2 - 2),
        rng.uniform(5, 9),
        style=SHOP,
    )
    lot = Rect(
        rect.u0 + 3, rect.u1 - 3, *((rect.v0 + 3, rect.v1 - length - 6) if far else (rect.v0 + length + 6, rect.v1 - 3))
    )
    for u in np.arange(lot.u0 + 8, lot.u1 - 4, 17.0):
        plot.patch((u, lot.middle[1]), (0.9, lot.length / 2), surface.GRASS)
        for v in np.arange(lot.v0 + 2, lot.v1, rng.uniform(8, 14)):
            plot.tree(u, v, size=0.7)


def park(plot: Plot, rect: Rect) -> None:
    """Add trees, paths and sometimes a pond."""
    rng = plot.rng
    u, v = rect.middle
    plot.patch((u + rng.uniform(-6, 6), v), (1.3, rect.length / 2 + 2), surface.PATH)
    plot.patch((u, v + rng.uniform(-9, 9)), (rect.width / 2 + 2, 1.3), surface.PATH)
    if rng.random() < 0.5:
        at = (u + rng.uniform(-0.2, 0.2) * rect.width, v + rng.uniform(-0.25, 0.25) * rect.length)
        half = (rng.uniform(6, 12), rng.uniform(8, 18))
        plot.patch(at, (half[0] + 1.5, half[1] + 1.5), surface.PATH, oval=True)
        plot.patch(at, half, surface.WATER, oval=True)
    for _ in range(rng.integers(2, 5)):  # groves, with lawns between them
        a, b = rng.uniform(rect.u0, rect.u1), rng.uniform(rect.v0, rect.v1)
        plot.scatter(Rect(a - 10, a + 10, b - 10, b + 10), int(rng.integers(3, 12)), size=1.25)


def square(plot: Plot, rect: Rect) -> None:
    """Add a paved square with a church or a fountain, and rows of trees."""
    rng = plot.rng
    u, v = rect.middle
    if rng.random() < 0.55:
        plot.solid((u, v), (5.5, 12.0), 9.5, rise=6.5, roof=GABLE, ridge="v", style=BLANK)
        plot.solid(
            (u, v + 14.5 * rng.choice((-1, 1))), (3.2, 3.2), rng.uniform(18, 26), rise=9.0, roof=HIP, style=BLANK
        )
    else:
        plot.patch((u, v), (6.5, 6.5), surface.WATER, oval=True)
        plot.solid((u, v), (0.8, 0.8), 4.5, style=BLANK)
    for side in (rect.u0 + 3.5, rect.u1 - 3.5):
        if rng.random() < 0.7:
            for along in np.arange(rect.v0 + 4, rect.v1 - 3, rng.uniform(6, 10)):
                plot.tree(side, along, size=0.85)
    if rng.random() < 0.6:
        plot.patch((rect.u0 + rect.width * 0.25, v), (rect.width * 0.13, rect.length * 0.3), surface.GRASS)
        plot.patch((rect.u1 - rect.width * 0.25, v), (rect.width * 0.13, rect.length * 0.3), surface.GRASS)


def farm(plot: Plot, rect: Rect) -> None:
    """Add allotments: beds, hedges, sheds."""
    rng = plot.rng
    for v in np.arange(rect.v0 + 7, rect.v1 - 6, 14.0):
        for u in np.arange(rect.u0 + 8, rect.u1 - 7, 16.0):
            if rng.random() < 0.5:
                plot.patch((u, v), (7.0, 5.5), surface.GRASS)
            if rng.random() < 0.35:
                plot.solid((u + rng.uniform(-4, 4), v), (1.8, 1.5), 2.3, rise=0.9, roof=GABLE, style=BLANK)
            if rng.random() < 0.4:
                plot.tree(u + rng.uniform(-5, 5), v + rng.uniform(-4, 4), size=0.8, low=1.5)
    plot.hedge((rect.u0 + 1, rect.middle[1]), (0.5, rect.length / 2 - 4))
    plot.hedge((rect.u1 - 1, rect.middle[1]), (0.5, rect.length / 2 - 4))


def house(plot: Plot) -> None:
    """Add one house at the origin, its long side along u; the caller moves it."""
    rng = plot.rng
    pitched = rng.random() < 0.7
    half = (rng.uniform(4.5, 7.5), rng.uniform(4.0, 5.0))
    plot.solid(
        (0.0, 0.0),
        half,
        3.1 * rng.integers(1, 5) + 0.4,
        rise=half[1] * rng.uniform(0.5, 0.8) if pitched else 0.0,
        roof=int(rng.choice((GABLE, HIP))) if pitched else FLAT,
    )


FILL = {
    HOUSES: houses,
    ROWS: rows,
    SLABS: slabs,
    TOWERS: towers,
    MARKET: market,
    PARK: park,
    SQUARE: square,
    FARM: farm,
}
