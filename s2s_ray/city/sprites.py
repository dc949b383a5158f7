"""Things that a height field cannot hold, intersected exactly: crowns on their trunks, vehicles, people."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from s2s_ray.city.camera import EYE_M, VIEW_M, Camera
from s2s_ray.city.light import Light
from s2s_ray.city.noise import Floats, lattice
from s2s_ray.city.things import Table
from s2s_ray.city.traffic import Boxes

_BARK = np.array((0.30, 0.24, 0.19), np.float32)
_GLASS = np.array((0.20, 0.24, 0.28), np.float32)


@dataclass(frozen=True, eq=False)
class Sprites:
    """Rays that hit a sprite: flat pixel index (column-major), distance, colour, cosine to the sun."""

    pixel: NDArray[np.intp]
    distance: NDArray[np.float32]
    colour: NDArray[np.float32]
    slope: NDArray[np.float32]


def crowns(camera: Camera, light: Light, trees: Table) -> Sprites:
    """Render crowns as ellipsoids of leaves with ragged edges."""
    dx, dy = trees["x"] - camera.x, trees["y"] - camera.y
    away = np.hypot(dx, dy)
    radius = trees["radius"].astype(np.float64)
    keep = (away < VIEW_M) & (radius > 0)
    trees, dx, dy, away, radius = trees[keep], dx[keep], dy[keep], away[keep], radius[keep]
    which, column, row = _candidates(
        camera,
        dx,
        dy,
        np.where(away > radius, np.arcsin(np.minimum(radius / away, 1)), np.pi),
        np.maximum(away - radius, 0.3),
        away + radius,
        trees["low"],
        trees["high"],
    )
    thing = {name: trees[name][which] for name in ("radius", "low", "high", "shade", "key")}
    half = (thing["high"] - thing["low"]) / 2
    east, north = camera.east[column].astype(np.float32), camera.north[column].astype(np.float32)
    rise = camera.rise[row].astype(np.float32) / half
    ox, oy = (-dx[which].astype(np.float32) / thing["radius"], -dy[which].astype(np.float32) / thing["radius"])
    oz = (np.float32(EYE_M) - (thing["high"] + thing["low"]) / 2) / half
    ex, ey = east / thing["radius"], north / thing["radius"]
    quadratic = ex * ex + ey * ey + rise * rise
    linear = ox * ex + oy * ey + oz * rise
    constant = ox * ox + oy * oy + oz * oz - 1
    depth = linear * linear - quadratic * constant
    met = np.flatnonzero(depth > 0)
    distance = (-linear[met] - np.sqrt(depth[met])) / quadratic[met]
    nx, ny = ox[met] + distance * ex[met], oy[met] + distance * ey[met]
    nz = oz[met] + distance * rise[met]
    clump = 0.45 / np.maximum(thing["radius"][met], 1.0)
    leaves = lattice(
        np.floor(np.arctan2(ny, nx) / clump).astype(np.int32), np.floor(nz / clump).astype(np.int32), thing["key"][met]
    )
    solid = (distance > 0.1) & (
        depth[met] > leaves * quadratic[met] * np.float32(0.14)
    )  # 0 at the outline: a ragged edge
    shadeless = nx * light.sun[0] + ny * light.sun[1] + nz * light.sun[2]
    colour = light.leaf * (thing["shade"][met] * (0.68 + 0.5 * leaves) * (0.9 + 0.3 * nz))[:, None]
    pixel = column[met] * len(camera.rise) + row[met]
    fields = (pixel, distance, colour.astype(np.float32), 0.3 + 0.7 * shadeless)
    return Sprites(*(part[solid] for part in fields))


def trunks(camera: Camera, light: Light, trees: Table) -> Sprites:
    """Render trunks as upright cylinders from the ground into the crowns."""
    dx, dy = trees["x"] - camera.x, trees["y"] - camera.y
    away = np.hypot(dx, dy)
    thick = 0.08 + 0.045 * trees["radius"].astype(np.float64)
    keep = (away > 0.6) & (away < 60.0) & (trees["radius"] > 0)
    trees, dx, dy, away, thick = trees[keep], dx[keep], dy[keep], away[keep], thick[keep]
    which, column, row = _candidates(
        camera, dx, dy, np.arcsin(thick / away), away, away, 0.0 * away, trees["low"] + 0.5
    )
    side = (dx[which] * camera.north[column] - dy[which] * camera.east[column]) / thick[which]
    slope = 0.35 - 0.45 * side
    count = len(which)
    return Sprites(
        column * len(camera.rise) + row,
        away[which].astype(np.float32),
        np.broadcast_to(_BARK, (count, 3)),
        slope.astype(np.float32),
    )


def boxes(camera: Camera, light: Light, things: Boxes) -> Sprites:
    """Render vehicles and people, each made of upright boxes."""
    dx, dy = things.x - camera.x, things.y - camera.y
    away, reach = np.hypot(dx, dy), np.hypot(things.a, things.b)
    near = np.maximum(away - reach, 0.3)
    spread = np.arcsin(np.minimum(reach / away, 1.0))
    which, column, row = _candidates(camera, dx, dy, spread, near, away + reach, things.low, things.high)
    c, s = things.cosine[which], things.sine[which]
    east, north, rise = camera.east[column], camera.north[column], camera.rise[row]
    origin = (
        -(c * dx[which] + s * dy[which]),
        -(c * dy[which] - s * dx[which]),
        EYE_M - (things.low + things.high)[which] / 2,
    )
    ray = (c * east + s * north, c * north - s * east, rise)
    half = (things.a[which], things.b[which], (things.high - things.low)[which] / 2)
    enter, leave = [], []
    for o, d, h in zip(origin, ray, half, strict=True):
        d = np.where(np.abs(d) < 1e-9, 1e-9, d)
        one, two = (-o - h) / d, (-o + h) / d
        enter.append(np.minimum(one, two))
        leave.append(np.maximum(one, two))
    first = np.max(enter, 0)
    met = np.flatnonzero((first < np.min(leave, 0)) & (first > 0.2))
    axis = np.argmax(enter, 0)[met]
    sign = -np.sign(np.choose(axis, [d[met] for d in ray]))
    toward = np.choose(
        axis,
        [
            c[met] * light.sun[0] + s[met] * light.sun[1],
            c[met] * light.sun[1] - s[met] * light.sun[0],
            np.full(len(met), light.sun[2]),
        ],
    )
    colour = things.colour[which[met]].copy()
    glass = things.glass[which[met]]
    colour[glass] = _GLASS * (0.6 + 0.8 * np.clip(rise[met][glass] + 0.3, 0, 1))[:, None]
    return Sprites(
        column[met] * len(camera.rise) + row[met],
        first[met].astype(np.float32),
        colour,
        (sign * toward).astype(np.float32),
    )


def _candidates(
    camera: Camera, dx: Floats, dy: Floats, spread: Floats, near: Floats, far: Floats, low: Floats, high: Floats
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
    """Return every (thing, column, row) whose ray may hit a thing within `spread` radians of (dx, dy)."""
    width = len(camera.east)
    turn = 2 * np.pi / width
    bearing = (np.arctan2(dx, dy) - camera.start) % (2 * np.pi)
    c0 = np.ceil((bearing - spread) / turn).astype(np.intp)
    c1 = np.floor((bearing + spread) / turn).astype(np.intp) + 1
    top, bottom = high - EYE_M, low - EYE_M
    r0 = np.searchsorted(camera.rise, np.where(bottom < 0, bottom / near, bottom / far))
    r1 = np.searchsorted(camera.rise, np.where(top > 0, top / near, top / far))
    tall, wide = np.maximum(r1 - r0, 0), np.maximum(np.minimum(c1 - c0, width), 0)
    count = tall * wide
    which = np.repeat(np.arange(len(count)), count)
    place = np.arange(len(which)) - np.repeat(np.cumsum(count) - count, count)
    rows = tall[which]
    return which, (c0[which] + place // np.maximum(rows, 1)) % width, r0[which] + place % np.maximum(rows, 1)
