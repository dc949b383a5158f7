"""Localisation: from the descriptors of pictures and an index to a fix with its uncertainty.

Fixes are computed with NumPy alone, so that a process which only searches needs no PyTorch. The names are imported on
first use: reading a calibration needs no FAISS.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from s2s_ray.localization.calibration import CALIBRATION_FILE, Calibration
    from s2s_ray.localization.fix import Fix, Found, HeadedMatch, Peak, Surface
    from s2s_ray.localization.location import locate
    from s2s_ray.localization.turned import Turned

_MODULES = {
    "CALIBRATION_FILE": "calibration",
    "Calibration": "calibration",
    "Fix": "fix",
    "Found": "fix",
    "HeadedMatch": "fix",
    "Peak": "fix",
    "Surface": "fix",
    "Turned": "turned",
    "locate": "location",
}

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


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    return value
