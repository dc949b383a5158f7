"""Releases of a model by name: published once, promoted and rolled back by a pointer."""

from __future__ import annotations

from s2s_ray.model.checkpoint_meta import fingerprint
from s2s_ray.registry.releases import (
    POINTER_FILE,
    RELEASE_FILE,
    Release,
    attach_index,
    current,
    lineage,
    list_releases,
    promote,
    promote_best,
    publish,
    release_id,
    resolve,
    rollback,
)

__all__ = [
    "POINTER_FILE",
    "RELEASE_FILE",
    "Release",
    "attach_index",
    "current",
    "fingerprint",
    "lineage",
    "list_releases",
    "promote",
    "promote_best",
    "publish",
    "release_id",
    "resolve",
    "rollback",
]
