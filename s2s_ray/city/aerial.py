"""The aerial tile: the scene seen vertically from above."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from s2s_ray.city import surface
from s2s_ray.city.light import Light, cast_shade
from s2s_ray.city.noise import Floats, lattice
from s2s_ray.city.pixels import shrink
from s2s_ray.city.roofs import roof_slope
from s2s_ray.city.scene import Scene
from s2s_ray.city.things import FLAT, HEDGE
from s2s_ray.city.traffic import Boxes


def render_tile(
    scene: Scene, light: Light, traffic: Boxes, x: float, y: float, pixels: int, metres: float
) -> NDArray[np.uint8]:
    """Render a north-up tile of `pixels` x `pixels` that covers `metres` x `metres`: S S 3.

    Pixel (row, column) shows the point (column - S/2, S/2 - row) * metres / S east and north of (x, y): the
    centre of the polar transform is exactly (x, y).
    """
    step = metres / pixels
    fine = max(1, min(4, round(step / scene.cell)))
    offsets = (np.arange(pixels * fine) + 0.5) / fine - 0.5 - pixels / 2
    east, north = x + offsets * step, y - offsets * step
    rows, columns = scene.rows(north), scene.columns(east)
    cells = scene.flat(rows[:, None], columns[None, :])
    ground = scene.rasters.ground.take(cells)
    height, canopy = scene.rasters.height.take(cells), scene.rasters.canopy.take(cells)
    colour = light.ground.take(ground, axis=0)
    colour *= _grain(ground, rows, columns)[..., None]
    slope = np.full(height.shape, light.sun[2], np.float32)
    flat_colour, flat_slope = colour.reshape(-1, 3), slope.reshape(-1)
    built = np.flatnonzero(height > 0)
    row, column = np.divmod(built, len(east))
    roofs = scene.solid_rows(cells.take(built))
    flat_colour[built], flat_slope[built] = _roofs(scene, light, roofs, east[column], north[row])
    _park(colour, height, traffic, east, north)
    leafy = np.flatnonzero(canopy > height)
    row, column = np.divmod(leafy, len(east))
    trees = scene.tree_rows(cells.take(leafy))
    flat_colour[leafy], flat_slope[leafy] = _crowns(scene, light, trees, east[column], north[row])
    shade = cast_shade(scene, light, x, y, metres / 2 + 1)
    slope *= shade.reaches(np.maximum(height, canopy), shade.level_at(east[None, :], north[:, None]))
    colour *= light.shine(np.maximum(slope, 0))
    return light.expose(shrink(colour, fine))


def _grain(ground: NDArray[np.uint8], rows: NDArray[np.int32], columns: NDArray[np.int32]) -> NDArray[np.float32]:
    """Return the brightness of the ground's texture; grass and fields are rough."""
    soft = (ground == surface.GRASS) | (ground == surface.FIELD)
    fleck = lattice(columns[None, :] // 2, rows[:, None] // 2) - np.float32(0.5)
    broad = np.sin(columns * 0.052)[None, :] * np.sin(rows * 0.043)[:, None]
    rough = np.where(soft, np.float32(0.3), np.float32(0.1))
    return np.asarray(1 + rough * (fleck + np.float32(0.3) * broad.astype(np.float32)))


def _roofs(
    scene: Scene, light: Light, rows: NDArray[np.int32], east: Floats, north: Floats
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the colour of roofs and their cosine to the sun; element k shows solid `rows[k]` at (east, north)."""
    solids = scene.solids
    dx, dy = (east - solids["x"][rows]).astype(np.float32), (north - solids["y"][rows]).astype(np.float32)
    c, s, key = solids["cosine"][rows], solids["sine"][rows], solids["key"][rows]
    along, across = c * dx + s * dy, c * dy - s * dx
    tiles = lattice((along * 2).astype(np.int32), (across * 2).astype(np.int32), key)
    edge = np.minimum(solids["a"][rows] - np.abs(along), solids["b"][rows] - np.abs(across))
    plant = lattice((along * 0.4 + 99).astype(np.int32), (across * 0.4 + 99).astype(np.int32), key)
    bright = 0.93 + 0.14 * tiles
    flat = solids["roof"][rows] == FLAT
    bright[flat & (plant < 0.06) & (edge > 1.5)] *= 0.62
    bright[flat & (edge < 0.45)] *= 1.16
    colour = solids["top"][rows]
    hedge = solids["style"][rows] == HEDGE
    colour[hedge] = light.leaf
    colour *= bright[:, None]
    return colour, roof_slope(solids, rows, light, along, across)


def _crowns(
    scene: Scene, light: Light, rows: NDArray[np.int32], east: Floats, north: Floats
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the colour of treetops and their cosine to the sun."""
    trees = scene.trees
    radius = trees["radius"][rows]
    nx = (east - trees["x"][rows]).astype(np.float32) / radius
    ny = (north - trees["y"][rows]).astype(np.float32) / radius
    up = np.sqrt(np.maximum(1 - nx * nx - ny * ny, 0))
    leaves = lattice((nx * radius * 2.5).astype(np.int32), (ny * radius * 2.5).astype(np.int32), trees["key"][rows])
    colour = light.leaf * (trees["shade"][rows] * (0.62 + 0.5 * leaves))[:, None]
    slope = nx * light.sun[0] + ny * light.sun[1] + up * light.sun[2]
    return colour, 0.25 + 0.75 * slope


def _park(colour: Floats, height: Floats, traffic: Boxes, east: Floats, north: Floats) -> None:
    """Paint vehicles and people into colours and heights, the lowest boxes first."""
    near = (traffic.x > east[0]) & (traffic.x < east[-1]) & (traffic.y > north[-1]) & (traffic.y < north[0])
    shown = np.flatnonzero(near & (traffic.high > 0.45))  # without wheels
    for k in shown[np.argsort(traffic.high[shown], kind="stable")]:
        x, y, c, s, a, b = (
            float(part[k]) for part in (traffic.x, traffic.y, traffic.cosine, traffic.sine, traffic.a, traffic.b)
        )
        reach = float(np.hypot(a, b))
        c0, c1 = np.searchsorted(east, (x - reach, x + reach))
        r0, r1 = np.searchsorted(-north, (-y - reach, -y + reach))
        dx, dy = east[None, c0:c1] - x, north[r0:r1, None] - y
        inside = (np.abs(c * dx + s * dy) <= a) & (np.abs(c * dy - s * dx) <= b)
        colour[r0:r1, c0:c1][inside] = traffic.colour[k]
        height[r0:r1, c0:c1][inside] = traffic.high[k]
