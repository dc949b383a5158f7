"""The reference index: descriptors of a region's satellite tiles and the position of each tile."""

from __future__ import annotations

from s2s_ray.index.index import (
    COLUMNS,
    ENTRIES_FILE,
    INFO_FILE,
    IndexInfo,
    Match,
    ReferenceIndex,
    read_info,
)
from s2s_ray.index.vectors import INDEX_FILE, Descriptors

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
