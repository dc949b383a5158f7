"""Images of a source's files, with the fault of one that cannot be read told in a clause."""

from __future__ import annotations

from s2s_ray import storage
from s2s_ray.geo.images import Pixels, UnreadableImage, decode


class ArchiveError(ValueError):
    """A published archive that cannot be used; the message names the file and what was expected."""


def read_image(view: str, uri: str, reference: str) -> Pixels:
    """The image at a URI. `reference` is how the source names it.

    Raises:
        UnreadableImage: missing, empty or damaged; the message begins with the `view` it is of.
        StorageError: the storage cannot be reached.
    """
    try:
        return decode(storage.read_bytes(uri))
    except storage.NotFoundError as error:
        raise UnreadableImage(f"{view} image is missing: {error}") from None
    except UnreadableImage as error:
        raise UnreadableImage(f"{view} image {reference} {error}") from None


def read_archive_file(uri: str, what: str) -> bytes:
    """A file that an archive cannot do without. Raises `ArchiveError` where it is missing, StorageError."""
    try:
        return storage.read_bytes(uri)
    except storage.NotFoundError:
        folder = storage.parent(uri)
        there = ", ".join(storage.list_names(folder)[:8]) or "nothing"
        raise ArchiveError(f"{uri} is missing: expected {what}; {folder} holds {there}") from None


def require_panorama(street: Pixels, aspect: float, expected: str) -> None:
    """Raise `UnreadableImage` where a panorama's width and height are not, within 2%, in the archive's ratio."""
    height, width = street.shape[:2]
    if abs(width / height / aspect - 1) > 0.02:
        raise UnreadableImage(f"street image is {width} x {height} pixels (width x height), expected {expected}")
