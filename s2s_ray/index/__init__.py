"""The reference index: descriptors of a region's satellite tiles and the position of each tile.

The names are imported on first use: reading `index.json` alone needs no FAISS.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from s2s_ray.data.entries import COLUMNS
    from s2s_ray.geo.images import Descriptors
    from s2s_ray.index.index import ENTRIES_FILE, Match, ReferenceIndex
    from s2s_ray.index.info import INFO_FILE, IndexInfo, read_info
    from s2s_ray.index.vectors import INDEX_FILE

_MODULES = {
    "COLUMNS": "s2s_ray.data.entries",
    "Descriptors": "s2s_ray.geo.images",
    "ENTRIES_FILE": "s2s_ray.index.index",
    "INDEX_FILE": "s2s_ray.index.vectors",
    "INFO_FILE": "s2s_ray.index.info",
    "IndexInfo": "s2s_ray.index.info",
    "Match": "s2s_ray.index.index",
    "ReferenceIndex": "s2s_ray.index.index",
    "read_info": "s2s_ray.index.info",
}

__all__ = [
    "COLUMNS",
    "ENTRIES_FILE",
    "INDEX_FILE",
    "INFO_FILE",
    "Descriptors",
    "IndexInfo",
    "Match",
    "ReferenceIndex",
    "read_info",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
