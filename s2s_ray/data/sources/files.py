"""Images of a source's files, with the fault of one that cannot be read told in a clause."""

from __future__ import annotations

from s2s_ray import storage
from s2s_ray.errors import ArchiveError, NotFoundError, UnreadableImageError
from s2s_ray.geo.images import (
    Pixels,
    decode,
)


def read_image(view: str, uri: str, reference: str) -> Pixels:
    """The image at a URI. `reference` is how the source names it.

    Raises:
        UnreadableImageError: missing, empty or damaged; the message begins with the `view` it is of.
        StorageError: the storage cannot be reached.
    """
    try:
        return decode(storage.read_bytes(uri))
    except NotFoundError as error:
        raise UnreadableImageError(f"{view} image is missing: {error}") from None
    except UnreadableImageError as error:
        raise UnreadableImageError(f"{view} image {reference} {error}") from None


def read_archive_file(uri: str, what: str) -> bytes:
    """A file that an archive cannot do without. Raises `ArchiveError` where it is missing, StorageError."""
    try:
        return storage.read_bytes(uri)
    except NotFoundError:
        folder = storage.parent(uri)
        there = ", ".join(storage.list_names(folder)[:8]) or "nothing"
        raise ArchiveError(f"{uri} is missing: expected {what}; {folder} holds {there}") from None


def require_panorama(street: Pixels, aspect: float, expected: str) -> None:
    """Raise `UnreadableImageError` where a panorama's width and height are not, within 2%, in the archive's ratio."""
    height, width = street.shape[:2]
    if abs(width / height / aspect - 1) > 0.02:
        raise UnreadableImageError(f"street image is {width} x {height} pixels (width x height), expected {expected}")
