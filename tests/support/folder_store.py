"""Directories of this machine under URIs of a remote storage, so that a test meets what is done with remote files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pytest

from s2s_ray.errors import StorageError
from s2s_ray.storage import store as stores
from s2s_ray.storage.local import LocalStore
from s2s_ray.storage.store import Entry, Info, Mode, Stored
from s2s_ray.uri import Uri


class FolderStore:
    """The files below a directory: `SCHEME://a/b` is `PLACE/a/b`."""

    def __init__(self, place: Path) -> None:
        self.place, self._local = place, LocalStore()

    def path(self, uri: str) -> Path:
        """Return where the file of a URI is."""
        return self.place / uri.partition("://")[2].strip("/")

    def get(self, uri: Uri) -> Stored:
        with self._named(uri) as local:
            return self._local.get(local)

    def put(self, uri: Uri, content: bytes, mode: Mode) -> str:
        with self._named(uri) as local:
            return self._local.put(local, content, mode)

    def head(self, uri: Uri) -> Info | None:
        with self._named(uri) as local:
            return self._local.head(local)

    def list(self, uri: Uri) -> list[Entry]:
        with self._named(uri) as local:
            return self._local.list(local)

    def delete(self, uri: Uri) -> None:
        with self._named(uri) as local:
            self._local.delete(local)

    def download(self, uri: Uri, path: Path, *, checked: bool = False) -> None:
        with self._named(uri) as local:
            self._local.download(local, path)

    def upload(self, path: Path, uri: Uri) -> None:
        with self._named(uri) as local:
            self._local.upload(path, local)

    def open(self, uri: Uri) -> BinaryIO:
        with self._named(uri) as local:
            return self._local.open(local)

    @contextmanager
    def _named(self, uri: Uri) -> Iterator[Uri]:
        """Yield the local URI of a remote one, and name the remote one in errors."""
        local = Uri(str(self.path(uri)))
        try:
            yield local
        except StorageError as error:
            raise type(error)(str(error).replace(local, uri)) from None


def serve_folder(patch: pytest.MonkeyPatch, place: Path, scheme: str = "s3") -> Callable[[str], Path]:
    """Serve the URIs of a scheme from a directory until the patch ends; return the function that maps them."""
    store = FolderStore(place)
    patch.setitem(stores._registered, scheme, store)
    return store.path
