"""Releases of a model by name: published once, then promoted and rolled back by a pointer."""

from __future__ import annotations

from s2s_ray.model.checkpoint_meta import fingerprint
from s2s_ray.registry.attachments import read_calibration
from s2s_ray.registry.floor import FLOOR_FILE, Floor, read_floor, set_floor
from s2s_ray.registry.pointer import POINTER_FILE, current, lineage, promote, promote_best, resolve, rollback
from s2s_ray.registry.releases import (
    RELEASE_FILE,
    Release,
    attach_calibration,
    attach_index,
    list_releases,
    publish,
    release_id,
    require_publishable,
)

__all__ = [
    "FLOOR_FILE",
    "POINTER_FILE",
    "RELEASE_FILE",
    "Floor",
    "Release",
    "attach_calibration",
    "attach_index",
    "current",
    "fingerprint",
    "lineage",
    "list_releases",
    "promote",
    "promote_best",
    "publish",
    "read_calibration",
    "read_floor",
    "release_id",
    "require_publishable",
    "resolve",
    "rollback",
    "set_floor",
]
