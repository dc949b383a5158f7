"""Reading published folders: only what their manifest lists, and never a part of one and a part of its replacement."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from s2s_ray.errors import DamagedError, NotFoundError
from s2s_ray.storage import files
from s2s_ray.storage.filesystem import is_local, local_path
from s2s_ray.storage.manifest import MANIFEST, Manifest, PublishedFile, with_manifest

_REPAIR = "restore the file from a copy, or make the whole folder again"


def check(uri: str) -> None:
    """Read every file of a published folder where it is.

    Raises:
        DamagedError: a file fails its checksum.
        NotFoundError: a file or the manifest is missing.
        StorageError: a file cannot be read.
    """

    def check_all(manifest: Manifest) -> None:
        for path, info in manifest.paths.items():
            check_file(files.join(uri, path), info)

    with_manifest(uri, check_all)


def fetch(uri: str, into: Path, only: Collection[str] | None = None) -> Path:
    """Copy a published folder to `into` and check every file; whole files that `into` already has are kept.

    Args:
        uri: the published folder.
        into: a local directory.
        only: names of the files to copy; by default all of them and `manifest.json`.

    Returns:
        `into`.

    Raises:
        NotFoundError: a file or the manifest is missing.
        DamagedError: a file fails its checksum.
        StorageError: a file cannot be read or written.
    """
    return with_manifest(uri, lambda manifest: _fetch(uri, manifest, into, only))


def on_this_machine(uri: str, into: Path) -> Path:
    """Return a published folder as local files, every one checked: itself if it is local, else fetched to `into`.

    The directory may hold other files as well: look only at those that the manifest lists.

    Raises:
        NotFoundError: a file or the manifest is missing.
        DamagedError: a file fails its checksum.
        StorageError: a file cannot be read or written.
    """
    return with_manifest(uri, lambda manifest: local_copy(uri, manifest, into))


def local_copy(uri: str, manifest: Manifest, into: Path) -> Path:
    """Return the files of a manifest like `on_this_machine`, for a reader that goes on to open them.

    The reader is called by `with_manifest`, because the folder may be replaced before it has opened all files.
    """
    if not is_local(uri):
        return _fetch(uri, manifest, into, None)
    for relative, info in manifest.paths.items():
        path = local_path(uri) / relative
        if not path.is_file():
            raise NotFoundError(f"{path} does not exist, though {uri}/{MANIFEST} lists it: {_REPAIR}")
        if not _is_whole(path, info):
            raise DamagedError(f"{path} fails its checksum, so it is damaged: {_REPAIR}")
    return local_path(uri) / manifest.folder


def _fetch(uri: str, manifest: Manifest, into: Path, only: Collection[str] | None) -> Path:
    for name in manifest.files if only is None else only:
        if name not in manifest.files:
            raise NotFoundError(f"{uri} was published without {name}; it holds {', '.join(manifest.files)}")
        info, path, source = manifest.files[name], into / name, files.join(uri, manifest.path(name))
        if _is_whole(path, info):
            continue
        files.download(source, path, checked=True)
        if (found := files.sha256(path)) != info.sha256:
            path.unlink()
            raise _damaged(source, found, info)
    if only is None:
        Manifest(paths=manifest.files).write(str(into / MANIFEST))
    return into


def check_file(uri: str, info: PublishedFile) -> None:
    """Read a file. Raises DamagedError if it fails its checksum, NotFoundError, StorageError."""
    length, digest = files.size_and_sha256(uri)
    if (length, digest) != (info.bytes, info.sha256):
        raise _damaged(uri, digest, info)


def _is_whole(path: Path, info: PublishedFile) -> bool:
    return path.is_file() and path.stat().st_size == info.bytes and files.sha256(path) == info.sha256


def _damaged(uri: str, found: str, info: PublishedFile) -> DamagedError:
    return DamagedError(f"{uri} fails its checksum (sha256 {found}, expected {info.sha256}): it is damaged; {_REPAIR}")
