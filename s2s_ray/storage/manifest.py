"""The manifest of a published folder: the files that belong to it, with sizes and checksums.

    FOLDER/manifest.json           written when all that it lists is there; without it nothing is published
          /NAME                    the files, as they were published first
          /files-ID/NAME           the files of a replacement, which `manifest.json` names instead
          /manifest.claim.json     the manifest of a publication that has begun and not ended

Files beside those that the manifest lists do not belong to the folder, so nobody reads them. A file that a manifest
lists is never written again with another content: a replacement has a folder of its own for its files. Folders that
were never replaced have the layout of earlier versions, and these read them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import ClassVar, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from s2s_ray.errors import DamagedError, NotFoundError, StorageError
from s2s_ray.storage import files
from s2s_ray.storage.documents import Document, Tree

T = TypeVar("T")
MANIFEST = "manifest.json"


class PublishedFile(BaseModel):
    """Size and checksum of one file."""

    model_config = ConfigDict(frozen=True)

    bytes: int
    sha256: str


class Manifest(Document):
    """`manifest.json`: the files of a published folder by their relative paths."""

    FORMAT: ClassVar[int] = 2
    MIGRATIONS: ClassVar = {1: dict}  # version 2 added `folder`
    NOUN: ClassVar[str] = "list of published files"

    model_config = ConfigDict(frozen=True, extra="ignore", validate_by_name=True, serialize_by_alias=True)

    folder: str = Field("", pattern=r"^(files-[0-9a-f]{32})?$")
    """The folder below the published one that holds the files of a replacement; empty: they were never replaced."""
    paths: Mapping[str, PublishedFile] = Field(alias="files")
    """The files by their paths below the published folder; `files` has them by their names."""

    @model_validator(mode="after")
    def _inside_folder(self) -> Self:
        if self.folder and not all(path.startswith(f"{self.folder}/") for path in self.paths):
            raise ValueError(f"files outside of {self.folder}")
        return self

    @cached_property
    def files(self) -> Mapping[str, PublishedFile]:
        """The files by the names under which they were published."""
        return {path[len(self.path("")) :]: info for path, info in self.paths.items()}

    def path(self, name: str) -> str:
        """Return the path of a file below the published folder."""
        return f"{self.folder}/{name}" if self.folder else name

    def tree(self) -> Tree:
        """Return the content of the file: equal files that were never replaced give the manifest of version 1."""
        tree = super().tree()
        return tree if self.folder else {"files": tree["files"]}


def is_complete(uri: str) -> bool:
    """Return whether a published folder has its manifest."""
    return files.exists(files.join(uri, MANIFEST))


def read_manifest(uri: str) -> Manifest:
    """Return the manifest of a published folder.

    Raises:
        NotFoundError: nothing was published at the URI.
        DamagedError: the manifest is not valid.
        StateError: a newer version that this one cannot read wrote it.
        StorageError: it names a file outside of the folder, or cannot be read.
    """
    path = files.join(uri, MANIFEST)
    try:
        return parse_manifest(files.read_bytes(path), path)
    except NotFoundError:
        raise NotFoundError(
            f"{uri} has no {MANIFEST}: nothing was published there, or its publication was cut short"
        ) from None


def parse_manifest(content: bytes, uri: str) -> Manifest:
    """Validate the content of a manifest. Raises the errors of `read_manifest`."""
    manifest = Manifest.from_bytes(content, uri)
    for path in manifest.paths:
        if any(part in ("", ".", "..") for part in path.split("/")):
            raise StorageError(f"{uri} names {path!r}, which is not a file inside of the directory")
    if MANIFEST in manifest.files:
        raise StorageError(f"{uri} names a manifest among its files")
    return manifest


def with_manifest(uri: str, read: Callable[[Manifest], T]) -> T:
    """Return `read(manifest)` of a published folder, and start again if the folder was replaced meanwhile.

    A replacement leaves the files that a reader has not opened yet for a moment only, so the reader may miss one.

    Raises:
        NotFoundError, DamagedError: a file or the manifest is missing or damaged.
        StorageError: the manifest cannot be read.
    """
    return _read_steadily(uri, read_manifest(uri), read)


def read_published(uri: str, name: str) -> bytes:
    """Return the content of one file of a published folder; of the file below `uri` if nothing was published there.

    Raises:
        NotFoundError: there is no such file, or the manifest does not list it.
        StorageError: the file or the manifest cannot be read.
    """

    def read(manifest: Manifest) -> bytes:
        if name not in manifest.files:
            raise NotFoundError(f"{uri} was published without {name}; it holds {', '.join(manifest.files)}")
        return files.read_bytes(files.join(uri, manifest.path(name)))

    try:
        manifest = read_manifest(uri)
    except NotFoundError:
        return files.read_bytes(files.join(uri, name))
    return _read_steadily(uri, manifest, read)


def _read_steadily(uri: str, manifest: Manifest, read: Callable[[Manifest], T]) -> T:
    while True:
        try:
            return read(manifest)
        except (NotFoundError, DamagedError):
            before, manifest = manifest, read_manifest(uri)
            if manifest == before:
                raise
