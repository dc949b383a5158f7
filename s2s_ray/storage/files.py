"""Files at a URI: a local path, `file://`, `s3://` or anything else that `pyarrow.fs` reads.

S3 follows the usual AWS variables, `AWS_ENDPOINT_URL` for another server included. Faults that may pass (timeouts,
resets, 5xx, throttling) are tried again with growing pauses; all others are a `StorageError` that names the URI and
says what to do. Writing is atomic: a reader sees the old file or the new one, never a part.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast
from uuid import uuid4

import pyarrow as pa
from pyarrow import fs

from s2s_ray.errors import DamagedError, NotFoundError, StorageError
from s2s_ray.storage.filesystem import (
    is_full,
    is_local,
    local_faults,
    local_path,
    remotely,
)

__all__ = [
    "MANIFEST",
    "absolute",
    "check",
    "delete",
    "download",
    "exists",
    "fetch",
    "is_complete",
    "is_local",
    "join",
    "list_folders",
    "list_names",
    "local_faults",
    "local_path",
    "modified",
    "name",
    "on_this_machine",
    "open_input",
    "parent",
    "publish",
    "read_bytes",
    "read_json",
    "sha256",
    "size",
    "upload",
    "write_bytes",
    "write_json",
]

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
_CHUNK = 8 << 20
_TEMPORARY = ".tmp~"


def absolute(uri: str) -> str:
    """The same place under a name that holds in a process with another working directory."""
    return str(local_path(uri).absolute()) if is_local(uri) else uri


def join(uri: str, *parts: str) -> str:
    """The URI of something below `uri`."""
    return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts)]) if parts else uri


def parent(uri: str) -> str:
    """The directory that holds `uri`."""
    if "://" in uri:
        return uri.rstrip("/").rpartition("/")[0]
    return str(Path(uri).parent)


def name(uri: str) -> str:
    """The last part of a URI."""
    return uri.rstrip("/").rpartition("/")[2]


def exists(uri: str) -> bool:
    """Whether a file is there, or a directory (for an object store: a prefix with something below it)."""
    if is_local(uri):
        return local_path(uri).exists()
    return remotely(uri, lambda system, path: system.get_file_info(path).type is not fs.FileType.NotFound)


def size(uri: str) -> int:
    """Bytes of a file. Raises `NotFoundError` where there is none."""

    def measure(system: fs.FileSystem, path: str) -> int:
        info = system.get_file_info(path)
        if info.type is not fs.FileType.File:
            raise FileNotFoundError(path)
        return int(info.size)

    if is_local(uri):
        with local_faults(uri):
            return local_path(uri).stat().st_size
    return remotely(uri, measure)


def modified(uri: str) -> float:
    """When a file was last written, in seconds since 1970. Raises `NotFoundError` where there is none."""

    def look(system: fs.FileSystem, path: str) -> float:
        info = system.get_file_info(path)
        if info.type is not fs.FileType.File:
            raise FileNotFoundError(path)
        return float(info.mtime_ns) / 1e9

    if is_local(uri):
        with local_faults(uri):
            return local_path(uri).stat().st_mtime
    return remotely(uri, look)


def list_names(uri: str) -> list[str]:
    """Names directly below a directory, sorted; [] where there is no such directory."""

    def select(system: fs.FileSystem, path: str) -> list[str]:
        return [info.base_name for info in system.get_file_info(fs.FileSelector(path, allow_not_found=True))]

    if is_local(uri):
        path = local_path(uri)
        with local_faults(uri):
            names = [child.name for child in path.iterdir()] if path.is_dir() else []
    else:
        names = remotely(uri, select)
    return sorted(entry for entry in names if not entry.endswith(_TEMPORARY))


def list_folders(uri: str) -> list[str]:
    """Names of the directories directly below one, sorted; [] where there is no such directory."""

    def select(system: fs.FileSystem, path: str) -> list[str]:
        found = system.get_file_info(fs.FileSelector(path, allow_not_found=True))
        return [info.base_name for info in found if info.type is fs.FileType.Directory]

    if not is_local(uri):
        return sorted(remotely(uri, select))
    path = local_path(uri)
    with local_faults(uri):
        return sorted(child.name for child in path.iterdir() if child.is_dir()) if path.is_dir() else []


def open_input(uri: str) -> BinaryIO:
    """A seekable binary file to read from; the caller closes it."""
    if is_local(uri):
        with local_faults(uri):
            return local_path(uri).open("rb")
    return cast(BinaryIO, remotely(uri, lambda system, path: system.open_input_file(path)))


def read_bytes(uri: str) -> bytes:
    """The whole file."""

    def read(system: fs.FileSystem, path: str) -> bytes:
        with system.open_input_file(path) as file:
            return cast(bytes, file.read())

    if is_local(uri):
        with local_faults(uri):
            return local_path(uri).read_bytes()
    return remotely(uri, read)


def write_bytes(uri: str, data: bytes) -> None:
    """Write a file in one step; local directories above it are made."""
    if is_local(uri):
        with local_faults(uri), _replacing(local_path(uri)) as file:
            file.write(data)
    else:
        remotely(uri, lambda system, path: _put(system, path, pa.py_buffer(data)))


def read_json(uri: str) -> Any:
    """The tree in a JSON file."""
    try:
        return json.loads(read_bytes(uri))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DamagedError(f"{uri} is not JSON ({error}): it is damaged or something else") from None


def write_json(uri: str, tree: Any) -> None:
    """Write a tree as JSON; equal trees give equal bytes. NaN and infinity are refused."""
    write_bytes(uri, (json.dumps(tree, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def download(uri: str, path: Path) -> None:
    """Copy a file to a local path, where it appears when it is complete."""

    def copy(system: fs.FileSystem, remote: str) -> None:
        with system.open_input_file(remote) as source, _room_for(path), _replacing(path) as target:
            while chunk := source.read(_CHUNK):
                target.write(chunk)
            _require_whole(target.tell(), source.size())

    if is_local(uri):
        with open_input(uri) as source, local_faults(str(path)), _replacing(path) as target:
            shutil.copyfileobj(source, target, _CHUNK)
    else:
        remotely(uri, copy)


def upload(path: Path, uri: str) -> None:
    """Copy a local file to a URI, where it appears when it is complete."""
    if is_local(uri):
        download(str(path), local_path(uri))
        return
    with local_faults(str(path)):
        # an empty file cannot be mapped
        content = pa.memory_map(str(path)).read_buffer() if path.stat().st_size else pa.py_buffer(b"")
    remotely(uri, lambda system, remote: _put(system, remote, content))


def delete(uri: str) -> None:
    """Remove a file, or a directory with all below it. Where nothing is, nothing happens."""

    def remove(system: fs.FileSystem, path: str) -> None:
        kind = system.get_file_info(path).type
        if kind is fs.FileType.Directory:
            system.delete_dir(path)
        elif kind is not fs.FileType.NotFound:
            system.delete_file(path)

    if not is_local(uri):
        remotely(uri, remove)
        return
    path = local_path(uri)
    with local_faults(uri):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def sha256(content: Path | bytes | memoryview) -> str:
    """Hex digest of a file's content or of bytes."""
    if not isinstance(content, Path):
        return hashlib.sha256(content).hexdigest()
    with local_faults(str(content)), content.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def publish(directory: Path, uri: str) -> None:
    """Copy every file of a local directory to a URI, and its `manifest.json` (sizes, checksums) last.

    A published directory without a manifest does not exist, so one cut short is never mistaken for a whole one. Each
    file is read back before the manifest is written: what is published was whole.

    Raises:
        DamagedError: the store gives back something else than it was given, twice.
    """
    files = sorted(path for path in directory.rglob("*") if path.is_file() and path != directory / MANIFEST)
    if not files:
        raise StorageError(f"{directory} holds no files: there is nothing to publish to {uri}")
    delete(join(uri, MANIFEST))
    entries = {}
    for path in files:
        relative = path.relative_to(directory).as_posix()
        length, digest = path.stat().st_size, sha256(path)
        _upload_whole(path, join(uri, relative), length, digest)
        entries[relative] = {"bytes": length, "sha256": digest}
    write_json(join(uri, MANIFEST), {"files": entries})


def _upload_whole(path: Path, uri: str, length: int, digest: str) -> None:
    """Upload a file and read it back, twice if need be."""
    upload(path, uri)
    try:
        _check_file(uri, length, digest)
    except DamagedError as error:
        log.warning("the upload is damaged, once more: %s", error)
        upload(path, uri)
        _check_file(uri, length, digest)


def is_complete(uri: str) -> bool:
    """Whether a published directory is there with its manifest."""
    return exists(join(uri, MANIFEST))


def check(uri: str) -> None:
    """Read every file of a published directory where it is.

    Raises:
        DamagedError: one fails its checksum. NotFoundError: one is missing, or the manifest.
    """
    for relative, (length, digest) in _published(uri).items():
        _check_file(join(uri, relative), length, digest)


def _check_file(uri: str, length: int, digest: str) -> None:
    found = _digest(uri)
    if found != (length, digest):
        raise _damaged(uri, found[1], digest)


def _damaged(uri: str, found: str, expected: str) -> DamagedError:
    return DamagedError(
        f"{uri} fails its checksum (sha256 {found}, expected {expected}): it is damaged, publish it again"
    )


def _digest(uri: str) -> tuple[int, str]:
    """Bytes and sha256 of a file, read piece by piece."""

    def digest(system: fs.FileSystem, path: str) -> tuple[int, str]:
        with system.open_input_file(path) as file:
            hasher = hashlib.sha256()
            while chunk := file.read(_CHUNK):
                hasher.update(chunk)
            _require_whole(file.tell(), file.size())
            return file.tell(), hasher.hexdigest()

    if is_local(uri):
        path = local_path(uri)
        with local_faults(uri):
            return path.stat().st_size, sha256(path)
    return remotely(uri, digest)


def _require_whole(read: int, length: int) -> None:
    if read != length:
        raise OSError(f"the transfer ended early, after {read} of {length} bytes")


def fetch(uri: str, into: Path, only: Collection[str] | None = None) -> Path:
    """Bring a published directory to `into`, every file checked; those already there and whole are kept.

    With `only`, no more than the files of these names; without it `manifest.json` comes too.

    Returns `into`. Raises `StorageError` naming the file that is missing, `DamagedError` one that fails its
    checksum.
    """
    files = _published(uri)
    for relative in files if only is None else only:
        if relative not in files:
            raise NotFoundError(f"{uri} was published without {relative}; it holds {', '.join(files)}")
        length, digest = files[relative]
        path = into / relative
        if path.is_file() and path.stat().st_size == length and sha256(path) == digest:
            continue
        download(join(uri, relative), path)
        if (found := sha256(path)) != digest:
            path.unlink()
            raise _damaged(join(uri, relative), found, digest)
    if only is None:
        download(join(uri, MANIFEST), into / MANIFEST)
    return into


def on_this_machine(uri: str, into: Path) -> Path:
    """A published directory as local files, every one checked: itself where it is local, else fetched to `into`.

    Raises `StorageError` naming the file that is missing or fails its checksum.
    """
    if not is_local(uri):
        return fetch(uri, into)
    for relative, (length, digest) in _published(uri).items():
        path = local_path(uri) / relative
        if not path.is_file():
            raise NotFoundError(f"{path} does not exist, though {MANIFEST} beside it lists it: publish {uri} again")
        if path.stat().st_size != length or sha256(path) != digest:
            raise StorageError(f"{path} fails its checksum: it is damaged, publish {uri} again")
    return local_path(uri)


def _published(uri: str) -> dict[str, tuple[int, str]]:
    manifest = join(uri, MANIFEST)
    try:
        entries = read_json(manifest)["files"].items()
        files = {str(relative): (int(entry["bytes"]), str(entry["sha256"])) for relative, entry in entries}
    except NotFoundError:
        raise NotFoundError(
            f"{uri} has no {MANIFEST}: nothing was published there, or its publication was cut short"
        ) from None
    except (KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"{manifest} does not list published files ({error!r})") from None
    for relative in files:
        if PurePosixPath(relative).is_absolute() or ".." in PurePosixPath(relative).parts:
            raise StorageError(f"{manifest} names {relative!r}, which is outside of the directory")
    return files


def _put(system: fs.FileSystem, path: str, content: pa.Buffer) -> None:
    if system.type_name not in ("s3", "gcs", "abfs"):  # object stores have no directories to make
        system.create_dir(path.rpartition("/")[0], recursive=True)
    # One write call: closing a stream publishes whatever it was given, so an interrupted loop of writes would
    # leave a part of the file under its final name.
    with system.open_output_stream(path) as target:
        target.write(content)


@contextmanager
def _room_for(path: Path) -> Iterator[None]:
    """Tell a full disk here from the faults of a transfer from elsewhere."""
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
        with local_faults(str(path)):
            raise


@contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` when it is complete and on disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid4().hex}{_TEMPORARY}")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
