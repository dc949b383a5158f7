"""Orientation of roofs and walls to the sun."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from s2s_ray.city.light import Light
from s2s_ray.city.noise import Floats
from s2s_ray.city.things import FLAT, GABLE, Table


def sun_along(solids: Table, light: Light) -> NDArray[np.float32]:
    """Return the component of the sun's direction along side a of each solid."""
    return np.asarray(solids["cosine"] * light.sun[0] + solids["sine"] * light.sun[1])


def sun_across(solids: Table, light: Light) -> NDArray[np.float32]:
    """Return the component of the sun's direction along side b of each solid."""
    return np.asarray(solids["cosine"] * light.sun[1] - solids["sine"] * light.sun[0])


def roof_slope(
    solids: Table, rows: NDArray[np.int32], light: Light, along: Floats, across: Floats
) -> NDArray[np.float32]:
    """Return the cosine between the sun and the roof of solid `rows[k]` at local point k."""
    a, b, roof = solids["a"][rows], solids["b"][rows], solids["roof"][rows]
    hipped = (roof != GABLE) & ((a - np.abs(along)) < (b - np.abs(across)))
    tilt = np.where(roof == FLAT, np.float32(0), solids["rise"][rows] / np.maximum(b, np.float32(0.1)))
    ends = np.sign(along) * sun_along(solids, light)[rows]
    sides = np.sign(across) * sun_across(solids, light)[rows]
    return np.asarray((tilt * np.where(hipped, ends, sides) + light.sun[2]) / np.sqrt(1 + tilt * tilt))
