"""Light, season and camera of one picture, and the shadows its sun casts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from s2s_ray.city import surface
from s2s_ray.city.noise import Floats
from s2s_ray.city.scene import Scene

SHADOW_REACH_M = 48.0
_LUSH, _DRY, _AUTUMN = (0.30, 0.42, 0.16), (0.52, 0.46, 0.27), (0.50, 0.34, 0.14)

_GROUND = np.zeros((10, 3), np.float32)
_GROUND[surface.ASPHALT] = (0.30, 0.30, 0.31)
_GROUND[surface.PAVEMENT] = (0.58, 0.56, 0.53)
_GROUND[surface.MARKING] = (0.86, 0.86, 0.84)
_GROUND[surface.PLAZA] = (0.64, 0.59, 0.52)
_GROUND[surface.FIELD] = (0.46, 0.35, 0.23)
_GROUND[surface.PARKING] = (0.40, 0.40, 0.41)
_GROUND[surface.WATER] = (0.17, 0.29, 0.38)
_GROUND[surface.PATH] = (0.66, 0.57, 0.42)
_GROUND[surface.YARD] = (0.52, 0.48, 0.44)


@dataclass(frozen=True, eq=False)
class Light:
    """Lighting and exposure of a picture. `sun` points to the sun (east, north, up); colours are linear RGB."""

    sun: NDArray[np.float32]
    direct: NDArray[np.float32]
    ambient: NDArray[np.float32]
    ground: NDArray[np.float32]
    leaf: NDArray[np.float32]
    zenith: NDArray[np.float32]
    horizon: NDArray[np.float32]
    cloud: float
    haze_m: float
    gain: NDArray[np.float32]
    gamma: float

    def shine(self, sunny: Floats, sky: Floats | float = 1.0) -> NDArray[np.float32]:
        """Return the light on surfaces that receive these shares of the sun's and the sky's light: ... to ... 3."""
        light = np.empty((*sunny.shape, 3), np.float32)
        for k in range(3):  # one plane at a time: inner loops over three numbers are slow
            np.multiply(sunny, self.direct[k], out=light[..., k])
            light[..., k] += sky * self.ambient[k]
        return light

    def clear(self, distance: Floats) -> NDArray[np.float32]:
        """Return the share of a colour that the air transmits over `distance` metres."""
        return np.asarray(np.exp(distance * np.float32(-1 / self.haze_m)))

    def haze(self, linear: Floats, distance: Floats) -> NDArray[np.float32]:
        """Return colours (N x 3) as seen through `distance` metres (N) of air."""
        clear = self.clear(distance)
        seen = np.empty(linear.shape, np.float32)
        for k in range(3):
            np.subtract(linear[:, k], self.horizon[k], out=seen[:, k])
            seen[:, k] *= clear
            seen[:, k] += self.horizon[k]
        return seen

    def expose(self, linear: Floats) -> NDArray[np.uint8]:
        """Convert linear colours to the camera's pixels: ... 3 floats to uint8."""
        shown = np.clip(linear * self.gain, 0.0, 1.0).astype(np.float32) ** np.float32(self.gamma)
        return np.asarray((shown * 255 + 0.5).astype(np.uint8))


def draw_light(rng: np.random.Generator) -> Light:
    """Draw the light of one picture, an hour and a season, independent of every other picture."""
    bearing, elevation = np.deg2rad(rng.uniform(-100, 100)), np.deg2rad(rng.uniform(26, 62))
    level = np.cos(elevation)
    sun = np.array([level * np.sin(bearing), level * np.cos(bearing), np.sin(elevation)])
    cloud = float(rng.beta(0.9, 1.6))
    warm = rng.uniform(-1, 1) * 0.05
    season = rng.dirichlet((2.0, 0.9, 0.6))
    leaf = season @ np.array([_LUSH, _DRY, _AUTUMN])
    grass = season @ np.array([_LUSH, _DRY, np.array(_LUSH) * 0.6 + np.array(_DRY) * 0.4])
    ground = _GROUND * rng.uniform(0.9, 1.1, (10, 1))
    ground[surface.GRASS] = grass * 1.08
    zenith = np.array([0.25, 0.45, 0.78]) * (1 - cloud) + np.array([0.66, 0.69, 0.73]) * cloud
    horizon = np.array([0.72, 0.80, 0.88]) * (1 - cloud) + np.array([0.80, 0.81, 0.82]) * cloud
    fields = {
        "sun": sun,
        "direct": (1.12 - 0.75 * cloud) * np.array([1 + warm + 0.03, 1.0, 1 - warm - 0.05]),
        "ambient": (0.48 + 0.24 * cloud) * np.array([0.95, 1.0, 1.08]),
        "ground": ground,
        "leaf": leaf * rng.uniform(0.85, 1.1),
        "zenith": zenith,
        "horizon": horizon * (1 + np.array([1, 0, -1]) * warm),
        "gain": rng.uniform(0.82, 1.18) * rng.uniform(0.95, 1.05, 3),
    }
    return Light(
        **{name: np.asarray(value, np.float32) for name, value in fields.items()},
        cloud=cloud,
        haze_m=float(rng.uniform(180, 420)),
        gamma=float(rng.uniform(0.78, 1.15)),
    )


@dataclass(frozen=True, eq=False)
class Shade:
    """Height of the shadow, below which the sun does not reach, on cells with a corner at (west, south)."""

    west: float
    south: float
    cell: float
    level: NDArray[np.float32]

    def level_at(self, x: Floats, y: Floats) -> NDArray[np.float32]:
        """Return the shadow's interpolated height at points, given as two lists or as a row `x` and a column `y`."""
        rows, columns = self.level.shape
        column = np.clip((x - self.west) / self.cell - 0.5, 0, columns - 1.001)
        row = np.clip((y - self.south) / self.cell - 0.5, 0, rows - 1.001)
        c0, r0 = column.astype(np.int32), row.astype(np.int32)
        fc, fr = (column - c0).astype(np.float32), (row - r0).astype(np.float32)
        if column.shape != row.shape:
            lines = self.level[:, c0[0]] * (1 - fc) + self.level[:, c0[0] + 1] * fc
            return np.asarray(lines[r0[:, 0]] * (1 - fr) + lines[r0[:, 0] + 1] * fr)
        flat, at = self.level, r0 * columns + c0
        south = flat.take(at)
        south += (flat.take(at + 1) - south) * fc
        at += columns
        north = flat.take(at)
        north += (flat.take(at + 1) - north) * fc
        return np.asarray(south + (north - south) * fr)

    def reaches(self, z: Floats | np.float32, level: Floats) -> NDArray[np.float32]:
        """Return the share of sunlight at height `z` where the shadow's height is `level`."""
        return np.clip((z - level) * np.float32(2) + np.float32(1), 0, 1)


def cast_shade(scene: Scene, light: Light, x: float, y: float, radius: float) -> Shade:
    """Compute the shadows of solids and crowns within `radius` of a point.

    The height of the shadow at p is the largest top(p + t * direction) - t * tan(elevation) over t > 0; doubling
    the reach in each pass needs a few passes instead of one for each step.
    """
    stride = 2 if scene.cell < 0.4 else 1
    cell = stride * scene.cell
    level = np.hypot(light.sun[0], light.sun[1])
    east, north, drop = light.sun[0] / level, light.sun[1] / level, light.sun[2] / level
    more_e, more_n = east * SHADOW_REACH_M, north * SHADOW_REACH_M
    columns = scene.columns(np.array([x - radius + min(0, more_e), x + radius + max(0, more_e)])).tolist()
    rows = scene.rows(np.array([y - radius + min(0, more_n), y + radius + max(0, more_n)])).tolist()
    top = scene.tops((rows[0], rows[1]), (columns[0], columns[1]), stride)
    shadow = _shifted(top, east, north, cell, 1.0, drop)
    reach = 1.0
    while reach < SHADOW_REACH_M:
        np.maximum(shadow, _shifted(shadow, east, north, cell, reach, drop), out=shadow)
        reach *= 2
    west, south = (scene.west + columns[0]) * scene.cell, (scene.south + rows[0]) * scene.cell
    return Shade(west, south, cell, shadow)


def _shifted(field: Floats, east: float, north: float, cell: float, reach: float, drop: float) -> NDArray[np.float32]:
    """Shift the field by `reach` metres, away from the sun, and lower it by the rise of a ray over that distance."""
    moved = np.full(field.shape, -1e3, np.float32)
    dc, dr = round(east * reach / cell), round(north * reach / cell)
    rows, columns = field.shape
    to = (slice(max(0, -dr), rows - max(0, dr)), slice(max(0, -dc), columns - max(0, dc)))
    of = (slice(max(0, dr), rows - max(0, -dr)), slice(max(0, dc), columns - max(0, -dc)))
    if abs(dr) < rows and abs(dc) < columns:
        np.subtract(field[of], np.float32(reach * drop), out=moved[to])
    return moved
