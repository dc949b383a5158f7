"""The operations of every kind of storage. Each method is one operation, which takes place as a whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, Literal, Protocol, TypeAlias

from s2s_ray.errors import StorageError
from s2s_ray.references import refuse_secret
from s2s_ray.uri import Uri

SCHEMES = ("file", "s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs")
_LISTED = ", ".join(f"{scheme}://" for scheme in SCHEMES)
Kind: TypeAlias = Literal["file", "folder"]


@dataclass(frozen=True)
class Stored:
    """The content of a file, and its version for `Replace`."""

    content: bytes
    version: str


@dataclass(frozen=True)
class Info:
    """Facts about a file or folder; `size` in bytes and `modified` in seconds since 1970 are 0 for a folder."""

    kind: Kind
    size: int
    modified: float


@dataclass(frozen=True)
class Entry:
    """A file or folder directly below another folder."""

    name: str
    kind: Kind


@dataclass(frozen=True)
class Create:
    """Write only if there is no such file."""


@dataclass(frozen=True)
class Replace:
    """Write only if the file still has this version."""

    version: str


@dataclass(frozen=True)
class Overwrite:
    """Write in any case."""


Mode: TypeAlias = Create | Replace | Overwrite


class Store(Protocol):
    """The files of one kind of storage.

    Operations that are safe to repeat are retried while the storage does not respond. A conditional write is sent once:
    if its response is lost, only the caller can find out whether it took place.

    Every method raises `RefusedError` if permissions or credentials do not allow it, `UnreachableError` if the storage
    does not respond, and `StorageError` for any other reason; the message names the URI.
    """

    def get(self, uri: Uri) -> Stored:
        """Return the content of a file.

        Raises:
            NotFoundError: there is no such file.
            DamagedError: the content is changed each time on its way.
        """

    def put(self, uri: Uri, content: bytes, mode: Mode) -> str:
        """Write a file in one step, with the directories above it where the storage has directories.

        Returns:
            The new version.

        Raises:
            ConflictError: the mode's condition does not hold.
            DiskFullError: there is no room.
        """

    def head(self, uri: Uri) -> Info | None:
        """Return the facts about a file or folder; None if there is neither."""

    def list(self, uri: Uri) -> list[Entry]:
        """Return what is directly below a folder, sorted by name; [] if there is no such folder."""

    def delete(self, uri: Uri) -> None:
        """Remove a file, or a folder with all below it. Do nothing if there is neither."""

    def download(self, uri: Uri, path: Path, *, checked: bool = False) -> None:
        """Copy a file to a local path, where it appears only when it is complete.

        With `checked` the caller compares the copy with a checksum that it knows, so the storage's own need not be.

        Raises:
            NotFoundError: there is no such file.
            DamagedError: the content is changed each time on its way.
            DiskFullError: there is no room on the local disk.
        """

    def upload(self, path: Path, uri: Uri) -> None:
        """Copy a local file to a URI, where it appears only when it is complete."""

    def open(self, uri: Uri) -> BinaryIO:
        """Open a file for reading; it is seekable and stays the same if another one takes its place.

        Raises:
            NotFoundError: there is no such file.
        """


_registered: dict[str, Store] = {}


def store_of(uri: str) -> Store:
    """Return the storage that a URI belongs to, by its scheme.

    Raises:
        InputError: the URI is empty, holds a NUL, or a password or key, which messages and files would repeat.
        StorageError: there is no storage for its scheme.
    """
    refuse_secret(uri)
    scheme = Uri(uri).scheme
    found = _registered.get(scheme)
    if found is None and scheme not in SCHEMES:
        raise StorageError(f"{uri}: there is no storage for {scheme}://; use a path or one of {_LISTED}")
    return found or _store(scheme)


@contextmanager
def registered(scheme: str, store: Store) -> Iterator[None]:
    """Use `store` for all URIs of a scheme until the block ends."""
    before = _registered.get(scheme)
    _registered[scheme] = store
    try:
        yield
    finally:
        if before is None:
            del _registered[scheme]
        else:
            _registered[scheme] = before


@lru_cache(maxsize=16)
def _store(scheme: str) -> Store:
    """Import the storage of a scheme when it is first used: those for S3 and others take long to import."""
    if scheme == "file":
        from s2s_ray.storage.local import LocalStore

        return LocalStore()
    if scheme == "s3":
        from s2s_ray.storage.s3 import S3Store

        return S3Store()
    from s2s_ray.storage.arrow import ArrowStore

    return ArrowStore(scheme)
