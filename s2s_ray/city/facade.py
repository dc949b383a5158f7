"""Walls and roofs seen from the street."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from s2s_ray.city.camera import Camera, Hits, Strikes
from s2s_ray.city.light import Light, Shade
from s2s_ray.city.noise import Floats, lattice
from s2s_ray.city.roofs import roof_slope, sun_across, sun_along
from s2s_ray.city.things import BLANK, FLAT, HEDGE, OFFICE, SHOP, Table

_DOOR = np.array((0.26, 0.17, 0.12), np.float32)
_GLASS = np.array((0.17, 0.21, 0.26), np.float32)
_FRAME = np.array((0.84, 0.83, 0.80), np.float32)


def paint(
    solids: Table, light: Light, shade: Shade, camera: Camera, strikes: Strikes, hits: Hits
) -> NDArray[np.float32]:
    """Return the colours of rays that end on a solid, N x 3."""
    rows = strikes.solid
    colour = np.empty((len(hits.row), 3), np.float32)
    walls, tops = np.flatnonzero(hits.on_wall), np.flatnonzero(~hits.on_wall)
    colour[walls] = _walls(solids, light, strikes, hits.strike[walls], hits.z[walls], camera)
    toward = np.where(strikes.wall == 1, sun_along(solids, light)[rows], sun_across(solids, light)[rows])
    slope = np.maximum(strikes.facing * toward, 0)[hits.strike]
    colour[tops], slope[tops] = _tops(solids, light, strikes, hits.strike[tops], hits.distance[tops], hits.z[tops])
    before = strikes.distance - np.float32(0.4)
    level = shade.level_at(
        camera.x + camera.east[strikes.column] * before, camera.y + camera.north[strikes.column] * before
    )
    sunny = slope * shade.reaches(hits.z, level[hits.strike])
    sky = np.float32(0.70) + np.float32(0.05) * np.minimum(hits.z, np.float32(6))  # streets are darker near the ground
    colour *= light.shine(sunny, sky)
    return light.haze(colour, hits.distance)


def _walls(
    solids: Table, light: Light, strikes: Strikes, strike: NDArray[np.intp], z: Floats, camera: Camera
) -> NDArray[np.float32]:
    """Return the colours of walls and hedges.

    Walls have windows in storeys and bays, doors and shop fronts on the ground floor, a plinth and a cornice.
    """
    rows, side = strikes.solid, strikes.wall
    style, key = solids["style"][rows], solids["key"][rows] + side
    half = np.where(side == 1, solids["b"][rows], solids["a"][rows])
    bays = np.maximum(np.floor(2 * half / solids["bay"][rows]), 1)
    across = (np.where(side == 1, strikes.across, strikes.along) / half + 1) * (bays / 2)
    bay = np.floor(across)
    aside = np.abs(across - bay - np.float32(0.5))
    office = style == OFFICE
    storey, eave = solids["storey"][rows], solids["eave"][rows]
    entry = np.floor(lattice(key, key) * bays) == bay
    door = entry & (aside < np.minimum(0.45, 1.1 * bays / (4 * half))) & ~office & (style != HEDGE)
    ray = np.float32(2 * np.pi * camera.fine / len(camera.east)) * strikes.distance
    sharp = np.clip(2.4 - ray * 1.1, 0, 1)  # windows smaller than a pixel fade into their wall
    wall = solids["wall"][rows]
    wall[style == HEDGE] = light.leaf
    plain = (style == BLANK) | (style == HEDGE)

    height = z / storey[strike]
    floor = np.floor(height)
    v = height - floor
    chance = lattice(bay.astype(np.int32)[strike], floor.astype(np.int32), key[strike])
    shop = (style == SHOP)[strike] & (floor == 0)
    wide = np.where(shop, np.float32(0.46), np.where(office, np.float32(0.42), np.float32(0.25))[strike])
    low = np.where(shop, np.float32(0.12), np.where(office, np.float32(0.18), np.float32(0.30))[strike])
    beside = aside[strike]
    window = (beside < wide) & (v > low) & (v < 0.82) & (chance < 0.93) & ~plain[strike]
    window &= (floor + np.float32(0.82)) < (eave / storey)[strike]
    shade = np.where(z < 0.5, np.float32(0.74), np.float32(1))
    shade[((solids["roof"][rows] == FLAT) & ~plain)[strike] & (z > (eave - 0.35)[strike])] = 0.82
    hedge = np.flatnonzero((style == HEDGE)[strike])
    spot = ((strikes.along + strikes.across) * 4).astype(np.int32)[strike[hedge]]
    shade[hedge] = 0.6 + 0.5 * lattice(spot, (z[hedge] * 4).astype(np.int32))
    colour = wall.take(strike, axis=0)
    colour *= shade[:, None]

    glazed = np.flatnonzero(window)
    sky = np.where(office, np.float32(0.24), np.float32(0.08))[strike[glazed]]
    pane = _GLASS * (0.75 + 0.6 * chance[glazed])[:, None] + light.zenith * sky[:, None]
    framed = ((beside > wide - 0.045) | (v > 0.775))[glazed] & ~office[strike[glazed]]
    pane[framed] = _FRAME
    _blend(colour, glazed, pane, sharp[strike[glazed]])
    doors = np.flatnonzero(door[strike] & (z < 2.2))
    tint = 0.6 + 1.1 * lattice(key, side)
    _blend(colour, doors, _DOOR * tint[strike[doors]][:, None], sharp[strike[doors]])
    return colour


def _blend(colour: Floats, at: NDArray[np.intp], over: Floats, share: Floats) -> None:
    """Blend `over` into the rows `at`; detail that is too small to be resolved (`share` 0) nearly vanishes."""
    colour[at] += (over - colour[at]) * (0.18 + 0.82 * share)[:, None].astype(np.float32)


def _tops(
    solids: Table, light: Light, strikes: Strikes, strike: NDArray[np.intp], distance: Floats, z: Floats
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the colour of roofs and of everything below eye level, and their cosine to the sun."""
    rows, beyond = strikes.solid[strike], distance - strikes.distance[strike]
    along = strikes.along[strike] + beyond * strikes.toward_along[strike]
    across = strikes.across[strike] + beyond * strikes.toward_across[strike]
    courses = lattice((along * 1.5).astype(np.int32), (z * 3).astype(np.int32))
    colour = solids["top"][rows] * (0.92 + 0.16 * courses)[:, None]
    hedge = solids["style"][rows] == HEDGE
    colour[hedge] = light.leaf * (0.7 + 0.4 * courses[hedge])[:, None]
    return colour, np.maximum(roof_slope(solids, rows, light, along, across), 0)
