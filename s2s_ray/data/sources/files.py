"""Files of a source: images, and the indexes of published archives."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import numpy as np

from s2s_ray import storage
from s2s_ray.errors import (
    ArchiveError,
    DamagedError,
    InputError,
    NotFoundError,
    StorageError,
    UnreadableImageError,
)
from s2s_ray.geo.images import Pixels, Seen, decode_seen
from s2s_ray.geo.metadata import PhotoMetadata, read_metadata
from s2s_ray.storage.store import store_of


def read_image(view: str, uri: str, reference: str, *, listed_in: str) -> Pixels:
    """Return the image at a URI; `reference` is its name in the source, and `listed_in` the file that lists it.

    Raises:
        UnreadableImageError: missing, empty, damaged, or no file that this user may read; or, for a satellite tile,
            transparent within the circle that becomes the polar image. The message begins with `view`.
        StorageError: the storage cannot be reached, or the source has disappeared.
    """
    try:
        return read_existing_image(view, uri, reference)
    except NotFoundError as error:
        require_source(listed_in)
        raise UnreadableImageError(f"{view} image is missing: {error}") from None


def read_existing_image(view: str, uri: str, reference: str) -> Pixels:
    """Return the image at a URI as `read_image` does. Raises its errors, and `NotFoundError` if there is none."""
    try:
        pixels, seen = read_pixels(uri)
    except UnreadableImageError as error:
        raise UnreadableImageError(f"{view} image {reference} {error}") from None
    if view == "satellite" and seen is not None and (unseen := _unseen_in_circle(seen)):
        raise UnreadableImageError(f"satellite image {reference} has no imagery in {unseen:.0%} of it (transparent)")
    return pixels


def read_pixels(uri: str) -> tuple[Pixels, Seen | None]:
    """Return an image of a source as `decode_seen` does.

    A fault of this one file is an `UnreadableImageError`, so that the other pairs can be prepared without it. A fault
    that other files are likely to share is a `StorageError`: the storage is away, or refuses these credentials.

    Raises:
        UnreadableImageError: the file is empty, damaged, or not a file that this user may read. The message is a clause
            that continues "the image ...".
        NotFoundError: there is no such file.
        StorageError: the storage cannot be reached.
    """
    fault = _fault_of_place(uri)
    if fault is not None:
        raise UnreadableImageError(fault)
    try:
        data = storage.read_bytes(uri)
    except DamagedError as error:
        raise UnreadableImageError(f"is damaged ({error})") from None
    return decode_seen(data)


def read_photo(uri: str) -> PhotoMetadata:
    """Return what a file says of its picture; nothing if there is no file, which reading its image reports.

    Raises:
        StorageError: the storage cannot be reached.
    """
    if _fault_of_place(uri) is not None:
        return PhotoMetadata()
    try:
        return read_metadata(storage.read_bytes(uri))
    except (NotFoundError, DamagedError):
        return PhotoMetadata()


def require_source(uri: str) -> None:
    """Raise `StorageError` if a file or folder of the source itself is gone, so that its images only seem missing."""
    if not storage.exists(uri):
        raise StorageError(
            f"{uri} has disappeared while its images were read: make it available again; the same command resumes"
        )


def read_archive_file(uri: str, what: str) -> bytes:
    """Return a file that an archive must have. Raises `ArchiveError` if it is missing, StorageError."""
    try:
        return storage.read_bytes(uri)
    except NotFoundError:
        folder = storage.parent(uri)
        present = ", ".join(storage.list_names(folder)[:8]) or "nothing"
        raise ArchiveError(f"{uri} is missing: expected {what}; {folder} holds {present}") from None


def require_panorama(street: Pixels, aspect: float, expected: str) -> None:
    """Raise `UnreadableImageError` unless a panorama has, within 2%, the archive's ratio of width to height."""
    height, width = street.shape[:2]
    if abs(width / height / aspect - 1) > 0.02:
        raise UnreadableImageError(f"street image is {width} x {height} pixels (width x height), expected {expected}")


def _fault_of_place(uri: str) -> str | None:
    """Return why there cannot be an image at a URI, although its store may be fine; None if there may be one."""
    try:
        store_of(uri)
    except (InputError, StorageError) as error:  # no URI, or one of an unknown kind
        return f"cannot be opened ({error})"
    if storage.is_local(uri):
        return _fault_of_file(storage.local_path(uri))
    bucket, _, key = uri.partition("://")[2].partition("/")
    return None if bucket and key.strip("/") else f"is no file of a store ({uri})"


def _fault_of_file(path: Path) -> str | None:
    """Return why a path cannot be one image although its directory can be read; None if it may be one or is missing."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, PermissionError):
        return None  # reading it says so
    except (OSError, ValueError) as error:  # a file as a directory, a loop of links, a name that is too long
        return f"cannot be opened ({getattr(error, 'strerror', error)})"
    if stat.S_ISDIR(mode):
        return "is a directory, expected a file"
    if not stat.S_ISREG(mode):
        return "is not a regular file"
    if not os.access(path, os.R_OK) and os.access(path.parent, os.R_OK | os.X_OK):
        return "may not be read by this user (permission denied)"
    return None


def _unseen_in_circle(seen: Seen) -> float:
    """Return the part of the inscribed circle, all that the polar image shows of a tile, that shows nothing."""
    rows, columns = (np.abs(np.arange(size) + 0.5 - size / 2) / (size / 2) for size in seen.shape)
    inside = rows[:, None] ** 2 + columns[None] ** 2 <= 1
    return float(1 - seen[inside].mean())
