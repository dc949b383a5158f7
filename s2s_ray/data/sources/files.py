"""Files of a source: images, and the indexes of published archives."""

from __future__ import annotations

from s2s_ray import storage
from s2s_ray.errors import ArchiveError, NotFoundError, UnreadableImageError
from s2s_ray.geo.images import Pixels, decode


def read_image(view: str, uri: str, reference: str) -> Pixels:
    """Return the image at a URI; `reference` is its name in the source.

    Raises:
        UnreadableImageError: missing, empty or damaged; the message begins with `view`.
        StorageError: the storage cannot be reached.
    """
    try:
        return decode(storage.read_bytes(uri))
    except NotFoundError as error:
        raise UnreadableImageError(f"{view} image is missing: {error}") from None
    except UnreadableImageError as error:
        raise UnreadableImageError(f"{view} image {reference} {error}") from None


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
