"""Directories that are published as a whole: their `manifest.json`, with sizes and checksums, is written last.

A published directory without a manifest does not exist, so one that was cut short is never mistaken for a whole one.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Collection, Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, ClassVar

from pydantic import BaseModel, ConfigDict

from s2s_ray.errors import DamagedError, NotFoundError, StorageError
from s2s_ray.storage import files
from s2s_ray.storage.documents import Document, Tree
from s2s_ray.storage.filesystem import is_local, local_faults, local_path, remotely

if TYPE_CHECKING:
    from pyarrow import fs

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"


class PublishedFile(BaseModel):
    """Size and checksum of one file."""

    model_config = ConfigDict(frozen=True)

    bytes: int
    sha256: str


class Manifest(Document):
    """`manifest.json`: the files of a published directory by their relative paths."""

    NOUN: ClassVar[str] = "list of published files"

    files: Mapping[str, PublishedFile]

    def tree(self) -> Tree:
        """Return the content of the file; version 1 is not written, so that equal files have equal manifests."""
        tree = super().tree()
        return tree if self.FORMAT > 1 else {key: value for key, value in tree.items() if key != "format"}


def publish(directory: Path, uri: str) -> None:
    """Copy every file of a local directory to a URI, and its `manifest.json` last.

    Each file is read back before the manifest is written, so a published directory was whole at that moment.

    Raises:
        DamagedError: the store returns something else than it was given, twice.
        StorageError: there is nothing to publish, or a file cannot be read or written.
    """
    paths = sorted(path for path in directory.rglob("*") if path.is_file() and path != directory / MANIFEST)
    if not paths:
        raise StorageError(f"{directory} holds no files: there is nothing to publish to {uri}")
    files.delete(files.join(uri, MANIFEST))
    entries = {}
    for path in paths:
        relative = path.relative_to(directory).as_posix()
        info = PublishedFile(bytes=path.stat().st_size, sha256=files.sha256(path))
        _upload_whole(path, files.join(uri, relative), info)
        entries[relative] = info
    Manifest(files=entries).write(files.join(uri, MANIFEST))


def is_complete(uri: str) -> bool:
    """Return whether a published directory has its manifest."""
    return files.exists(files.join(uri, MANIFEST))


def read_manifest(uri: str) -> Manifest:
    """Return the manifest of a published directory.

    Raises:
        NotFoundError: nothing was published at the URI.
        DamagedError: the manifest is not valid.
        StorageError: it names a file outside of the directory, or cannot be read.
    """
    path = files.join(uri, MANIFEST)
    try:
        manifest = Manifest.read(path)
    except NotFoundError:
        raise NotFoundError(
            f"{uri} has no {MANIFEST}: nothing was published there, or its publication was cut short"
        ) from None
    for relative in manifest.files:
        if PurePosixPath(relative).is_absolute() or ".." in PurePosixPath(relative).parts:
            raise StorageError(f"{path} names {relative!r}, which is outside of the directory")
    return manifest


def check(uri: str) -> None:
    """Read every file of a published directory where it is.

    Raises:
        DamagedError: a file fails its checksum.
        NotFoundError: a file or the manifest is missing.
        StorageError: a file cannot be read.
    """
    for relative, info in read_manifest(uri).files.items():
        _check_file(files.join(uri, relative), info)


def fetch(uri: str, into: Path, only: Collection[str] | None = None) -> Path:
    """Copy a published directory to `into` and check every file; whole files that `into` already has are kept.

    Args:
        uri: the published directory.
        into: a local directory.
        only: names of the files to copy; by default all of them and `manifest.json`.

    Returns:
        `into`.

    Raises:
        NotFoundError: a file or the manifest is missing.
        DamagedError: a file fails its checksum.
        StorageError: a file cannot be read or written.
    """
    published = read_manifest(uri).files
    for relative in published if only is None else only:
        if relative not in published:
            raise NotFoundError(f"{uri} was published without {relative}; it holds {', '.join(published)}")
        info = published[relative]
        path = into / relative
        if _is_whole(path, info):
            continue
        files.download(files.join(uri, relative), path)
        if (found := files.sha256(path)) != info.sha256:
            path.unlink()
            raise _damaged(files.join(uri, relative), found, info)
    if only is None:
        files.download(files.join(uri, MANIFEST), into / MANIFEST)
    return into


def on_this_machine(uri: str, into: Path) -> Path:
    """Return a published directory as local files, every one checked: itself if it is local, else fetched to `into`.

    Raises:
        NotFoundError: a file or the manifest is missing.
        DamagedError: a file fails its checksum.
        StorageError: a file cannot be read or written.
    """
    if not is_local(uri):
        return fetch(uri, into)
    for relative, info in read_manifest(uri).files.items():
        path = local_path(uri) / relative
        if not path.is_file():
            raise NotFoundError(f"{path} does not exist, though {MANIFEST} beside it lists it: publish {uri} again")
        if not _is_whole(path, info):
            raise DamagedError(f"{path} fails its checksum: it is damaged, publish {uri} again")
    return local_path(uri)


def _is_whole(path: Path, info: PublishedFile) -> bool:
    return path.is_file() and path.stat().st_size == info.bytes and files.sha256(path) == info.sha256


def _upload_whole(path: Path, uri: str, info: PublishedFile) -> None:
    """Upload a file and read it back; repeat both once if it is damaged."""
    files.upload(path, uri)
    try:
        _check_file(uri, info)
    except DamagedError as error:
        log.warning("the upload is damaged, retrying: %s", error)
        files.upload(path, uri)
        _check_file(uri, info)


def _check_file(uri: str, info: PublishedFile) -> None:
    length, digest = _digest(uri)
    if (length, digest) != (info.bytes, info.sha256):
        raise _damaged(uri, digest, info)


def _damaged(uri: str, found: str, info: PublishedFile) -> DamagedError:
    return DamagedError(
        f"{uri} fails its checksum (sha256 {found}, expected {info.sha256}): it is damaged, publish it again"
    )


def _digest(uri: str) -> tuple[int, str]:
    """Return the size and the sha256 of a file, read piece by piece."""

    def digest(system: fs.FileSystem, path: str) -> tuple[int, str]:
        with files.open_remote(system, path) as file:
            hasher = hashlib.sha256()
            while chunk := file.read(files.CHUNK):
                hasher.update(chunk)
            files.require_whole(file.tell(), file.size())
            return file.tell(), hasher.hexdigest()

    if is_local(uri):
        path = local_path(uri)
        with local_faults(uri):
            return path.stat().st_size, files.sha256(path)
    return remotely(uri, digest)
