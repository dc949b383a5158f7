"""Sky: gradient, clouds, the sun's glow, hills at the horizon."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from s2s_ray.city.camera import Camera
from s2s_ray.city.light import Light

_SUN = np.array((1.0, 0.95, 0.82), np.float32)


def paint(light: Light, camera: Camera, first: int) -> NDArray[np.float32]:
    """Return the colours of rows `first` and up: columns x rows x 3; one ray per pixel is enough for a smooth sky."""
    fine = camera.fine
    east, north, rise = camera.east[::fine, None], camera.north[::fine, None], camera.rise[first::fine]
    share = np.sqrt(rise)[:, None]
    gradient = light.horizon * (1 - share) + light.zenith * share
    cloud = _clouds(light, east, north, rise)
    toward = (east * light.sun[0] + north * light.sun[1] + rise * light.sun[2]) / np.sqrt(1 + rise * rise)
    near = np.square(np.square(np.maximum(toward, 0)))
    wide = near * near * near
    glow = wide * np.float32(0.30 * (1 - 0.7 * light.cloud))
    glow += np.square(np.square(np.square(np.square(wide)))) * np.float32(0.9 * (1 - 0.7 * light.cloud))
    colour = np.empty((*cloud.shape, 3), np.float32)
    for k in range(3):
        colour[..., k] = gradient[:, k] + (light.horizon[k] * np.float32(1.06) - gradient[:, k]) * cloud
        colour[..., k] += glow * _SUN[k]
    bearing = np.arctan2(east, north)
    crest = 0.045 + 0.022 * np.sin(3 * bearing + 1) + 0.012 * np.sin(7 * bearing + 2) + 0.005 * np.sin(19 * bearing)
    low = int(np.searchsorted(rise, 0.1))
    hill = np.clip((crest - rise[:low]) / 0.012, 0, 1)[..., None]
    colour[:, :low] += (light.horizon * 0.62 + light.zenith * 0.16 - colour[:, :low]) * hill
    return np.asarray(colour.repeat(fine, 0).repeat(fine, 1)[:, : len(camera.rise) - first])


def _clouds(
    light: Light, east: NDArray[np.float32], north: NDArray[np.float32], rise: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return the cover of a flat layer of clouds, 0 to 1; columns x rows."""
    flat = 1 / (rise + np.float32(0.18))
    x, y = east * flat + 9 * light.sun[0], north * flat + 9 * light.sun[1]
    field = np.sin(1.7 * x + 0.6 * y) + np.sin(2.3 * y - 0.8 * x + 1) + 0.6 * np.sin(4.1 * x + 3.3 * y)
    field += 0.4 * np.sin(8.3 * y - 5.1 * x) + 0.25 * np.sin(14.0 * x + 9.0 * y)
    return np.asarray(np.clip(0.45 * (field - 1.6 + 3.2 * light.cloud), 0, 1) * np.minimum(rise * 4, 1))
