"""Localisation: from the descriptors of pictures and an index to a fix with its uncertainty.

Everything here computes with NumPy alone, so that a process which only searches needs no PyTorch.
"""

from __future__ import annotations

from s2s_ray.localization.calibration import CALIBRATION_FILE, Calibration
from s2s_ray.localization.fix import Fix, Found, HeadedMatch, Peak, Surface
from s2s_ray.localization.locate import locate
from s2s_ray.localization.turned import Turned

__all__ = [
    "CALIBRATION_FILE",
    "Calibration",
    "Fix",
    "Found",
    "HeadedMatch",
    "Peak",
    "Surface",
    "Turned",
    "locate",
]
