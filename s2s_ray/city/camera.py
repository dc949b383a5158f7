"""The panorama's rays, and the first solid that each of them meets in the height field."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from s2s_ray.city.noise import Floats
from s2s_ray.city.relief import roof_height
from s2s_ray.city.scene import Scene
from s2s_ray.city.things import Table

EYE_M = 2.0
VIEW_M = 100.0
ELEVATION = np.pi / 4  # the rows extend this far above and below the horizon
_SKIN_M = 0.02


@dataclass(frozen=True, eq=False)
class Camera:
    """A panorama camera at (x, y) in world metres; bearings grow clockwise with the column, rows go upward.

    `east` and `north` are each column's direction, `rise` each row's tangent: the point t metres away along the
    ground in (column, row) is (x + t * east, y + t * north, EYE_M + t * rise).
    """

    x: float
    y: float
    east: NDArray[np.float32]
    north: NDArray[np.float32]
    rise: NDArray[np.float32]
    start: float
    fine: int


def aim(x: float, y: float, height: int, width: int, fine: int, heading: float) -> Camera:
    """Return a camera with `fine` rays per pixel along each axis.

    Pixel column j looks at bearing 180 + 360 j / width + heading, in degrees.
    """
    column = (np.arange(width * fine) + 0.5) / fine - 0.5
    bearing = np.deg2rad(180.0 + 360.0 * column / width + heading)
    up = (np.arange(height * fine) + 0.5) / (height * fine) * 2 - 1
    return Camera(
        x=x,
        y=y,
        east=np.sin(bearing).astype(np.float32),
        north=np.cos(bearing).astype(np.float32),
        rise=np.tan(ELEVATION * up).astype(np.float32),
        start=float(bearing[0]),
        fine=fine,
    )


@dataclass(frozen=True, eq=False)
class Strikes:
    """Columns of rays that enter a solid, in the order in which each column's skyline rises.

    `distance` is where the rays enter the solid's outline, `along` and `across` the local point there, `toward_*`
    the rays' local direction, `wall` 1 for a wall across side a and 2 for one along it, `facing` the sign of its
    outward direction, `top` the solid's height there.
    """

    column: NDArray[np.intp]
    solid: NDArray[np.int32]
    distance: NDArray[np.float32]
    along: NDArray[np.float32]
    across: NDArray[np.float32]
    toward_along: NDArray[np.float32]
    toward_across: NDArray[np.float32]
    wall: NDArray[np.int8]
    facing: NDArray[np.float32]
    top: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Hits:
    """Rays that end on a solid: index of the strike, row, distance, height in metres, and true on a wall."""

    strike: NDArray[np.intp]
    row: NDArray[np.intp]
    distance: NDArray[np.float32]
    z: NDArray[np.float32]
    on_wall: NDArray[np.bool_]


def march(scene: Scene, camera: Camera) -> tuple[Strikes, Hits]:
    """Find the first solid along each ray: march outward and record each solid that raises the skyline."""
    reach = _distances(scene.cell, len(camera.east))
    x, y = (np.float32(at / scene.cell - corner) for at, corner in ((camera.x, scene.west), (camera.y, scene.south)))
    paces = (reach / scene.cell).astype(np.float32)
    columns = (x + camera.east[:, None] * paces).astype(np.int32)
    rows = (y + camera.north[:, None] * paces).astype(np.int32)
    cells = scene.flat(rows, columns)
    top = scene.rasters.height.take(cells)
    steep = (top - np.float32(EYE_M)) / reach
    steep[top < 0.05] = -np.inf
    skyline = np.maximum.accumulate(steep, axis=1)
    raised = np.empty(skyline.shape, bool)
    raised[:, 0] = skyline[:, 0] > -np.inf
    np.greater(skyline[:, 1:], skyline[:, :-1], out=raised[:, 1:])
    column, sample = np.nonzero(raised)
    covered = np.searchsorted(camera.rise, skyline[raised], side="right")
    before = np.concatenate([[0], covered[:-1]])
    before[np.concatenate([[True], column[1:] != column[:-1]])[: len(before)]] = 0
    seen = np.flatnonzero(covered > before)
    column, sample, first, count = column[seen], sample[seen], before[seen], (covered - before)[seen]
    strikes = _enter(camera, scene.solids, column, scene.solid_rows(cells[column, sample]))
    strike = np.repeat(np.arange(len(column)), count)
    row = np.arange(len(strike)) - np.repeat(np.cumsum(count) - count - first, count)
    return strikes, _ends(camera, scene.solids, strikes, strike, row, reach[sample])


def _distances(cell: float, width: int) -> NDArray[np.float32]:
    """Return the distances at which rays are sampled: every cell nearby, then in proportion to the distance."""
    growth = 1 + min(0.014, 8.0 / width)
    near = np.arange(3 * cell, max(cell / (growth - 1), 4 * cell), cell)
    count = int(np.log(VIEW_M / near[-1]) / np.log(growth)) + 1
    return np.concatenate([near, near[-1] * growth ** np.arange(1, count)]).astype(np.float32)


def _enter(camera: Camera, solids: Table, column: NDArray[np.intp], solid: NDArray[np.int32]) -> Strikes:
    """Return the exact points at which columns of rays enter the outlines of the solids found by the march."""
    ox = (camera.x - solids["x"]).astype(np.float32)[solid]
    oy = (camera.y - solids["y"]).astype(np.float32)[solid]
    sides: list[NDArray[np.float32]] = [solids[name][solid] for name in ("cosine", "sine", "a", "b")]
    c, s, a, b = sides
    east, north = camera.east[column], camera.north[column]
    o_along, o_across = c * ox + s * oy, c * oy - s * ox
    toward_along, toward_across = c * east + s * north, c * north - s * east
    enter_a, enter_b = _slab(o_along, toward_along, a), _slab(o_across, toward_across, b)
    by_a = enter_a > enter_b
    distance = np.maximum(np.where(by_a, enter_a, enter_b), np.float32(0.05))
    along = np.clip(o_along + distance * toward_along, -a, a)
    across = np.clip(o_across + distance * toward_across, -b, b)
    top = roof_height(solids["roof"][solid], a, b, solids["eave"][solid], solids["rise"][solid], along, across)
    wall = np.where(by_a, np.int8(1), np.int8(2))
    facing = -np.sign(np.where(by_a, toward_along, toward_across))
    return Strikes(column, solid, distance, along, across, toward_along, toward_across, wall, facing, top)


def _slab(origin: Floats, toward: Floats, half: Floats) -> NDArray[np.float32]:
    """Return the distance at which rays pass the nearer of two parallel planes; -inf for rays parallel to them."""
    along = np.abs(toward) < 1e-4
    steady = np.where(along, np.float32(1), toward)
    return np.where(along, np.float32(-np.inf), -origin / steady - half / np.abs(steady))


def _ends(
    camera: Camera, solids: Table, strikes: Strikes, strike: NDArray[np.intp], row: NDArray[np.intp], reach: Floats
) -> Hits:
    """Return where single rays end: on the wall through which they enter, or on top at the marched distance."""
    enter, rise = strikes.distance[strike], camera.rise[row]
    z = EYE_M + enter * rise
    on_wall = z <= strikes.top[strike] + _SKIN_M
    over = np.flatnonzero(~on_wall)
    solid = strikes.solid[strike[over]]
    distance = enter.copy()
    distance[over] = np.maximum(reach[strike[over]], enter[over])
    level = np.flatnonzero((solids["rise"][solid] == 0) & (rise[over] < -1e-3))  # a flat top seen from above
    at = over[level]
    distance[at] = np.maximum((solids["eave"][solid[level]] - np.float32(EYE_M)) / rise[at], enter[at])
    z[over] = EYE_M + distance[over] * rise[over]
    above = z > 0.0  # otherwise the ray ends on the ground before the solid
    return Hits(strike[above], row[above], distance[above], z[above], on_wall[above])
