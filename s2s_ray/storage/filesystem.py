"""Paths on this machine, and pyarrow's file systems for libraries that read and write with them (Ray Train)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from s2s_ray.storage.local_faults import is_full, local_faults
from s2s_ray.uri import Uri

if TYPE_CHECKING:
    from pyarrow import fs

__all__ = ["is_full", "is_local", "local_faults", "local_path", "open_filesystem"]


def is_local(uri: str) -> bool:
    """Return whether the URI is a path on this machine."""
    return Uri(uri).is_local


def local_path(uri: str) -> Path:
    """Return the path of a local URI."""
    return Uri(uri).path


def open_filesystem(uri: str) -> tuple[fs.FileSystem, str]:
    """Return a pyarrow file system for a URI and the path in it, for libraries that take both.

    Beside local ones it is a view of the URI's `Store`, with its settings, credentials, time-outs and retries.
    """
    from pyarrow import fs

    place = Uri(uri)
    if place.is_local:
        return fs.LocalFileSystem(), str(place.path.absolute())
    from s2s_ray.storage.arrow_view import StoreHandler

    scheme, _, path = place.partition("://")
    return fs.PyFileSystem(StoreHandler(scheme)), path.strip("/")
