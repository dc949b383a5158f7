"""Satellite-to-street geo-localisation and view synthesis (Toker et al., CVPR 2021) on Ray.

`__all__` lists the public API. Every name is imported when it is first used, because PyTorch takes seconds to import
and a process that only reads configuration or calls the service does without it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from s2s_ray.client import Client, ServedFix, ServedLocation, ServedMatch, ServedPeak, ServedQuery
    from s2s_ray.config import Config, load_config
    from s2s_ray.errors import DivergedError, InputError, S2SError, ServiceError, StateError, StoppedError, StorageError
    from s2s_ray.geo.prior import Box, Circle, FileCircle
    from s2s_ray.geo.query import Query
    from s2s_ray.index import Match, ReferenceIndex
    from s2s_ray.inference import Embedder, Localizer, Synthesizer
    from s2s_ray.localization import Fix, Found
    from s2s_ray.model.checkpoint import load_checkpoint
    from s2s_ray.model.s2s import S2S
    from s2s_ray.version import __version__

__all__ = [
    "S2S",
    "Box",
    "Circle",
    "Client",
    "Config",
    "DivergedError",
    "Embedder",
    "FileCircle",
    "Fix",
    "Found",
    "InputError",
    "Localizer",
    "Match",
    "Query",
    "ReferenceIndex",
    "S2SError",
    "ServedFix",
    "ServedLocation",
    "ServedMatch",
    "ServedPeak",
    "ServedQuery",
    "ServiceError",
    "StateError",
    "StoppedError",
    "StorageError",
    "Synthesizer",
    "__version__",
    "load_checkpoint",
    "load_config",
]

_HOMES = {
    "S2S": "model.s2s",
    "load_checkpoint": "model.checkpoint",
    "Embedder": "inference",
    "Localizer": "inference",
    "Synthesizer": "inference",
    "Match": "index",
    "ReferenceIndex": "index",
    "Client": "client",
    "ServedFix": "client",
    "ServedLocation": "client",
    "ServedMatch": "client",
    "ServedPeak": "client",
    "ServedQuery": "client",
    "Box": "geo.prior",
    "Circle": "geo.prior",
    "FileCircle": "geo.prior",
    "Query": "geo.query",
    "Fix": "localization",
    "Found": "localization",
    "Config": "config",
    "load_config": "config",
    "__version__": "version",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
