"""Files at a URI: a local path, `file://`, `s3://` or anything else that `pyarrow.fs` reads.

S3 follows the usual AWS variables, `AWS_ENDPOINT_URL` for another server included. Transient errors (timeouts, resets,
5xx, throttling) are retried with growing pauses; all others are a `StorageError` that names the URI and says what to
do. Writing is atomic: a reader sees the old file or the new one, never a part.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast
from uuid import uuid4

from s2s_ray.errors import DamagedError
from s2s_ray.storage.filesystem import is_full, is_local, local_faults, local_path, remotely

if TYPE_CHECKING:
    from pyarrow import fs

CHUNK = 8 << 20
"""Bytes that are copied or hashed at a time."""
_TEMPORARY = ".tmp~"


def absolute(uri: str) -> str:
    """Return the same place under a name that holds in a process with another working directory."""
    return str(local_path(uri).absolute()) if is_local(uri) else uri


def join(uri: str, *parts: str) -> str:
    """Return the URI of something below `uri`."""
    return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts)]) if parts else uri


def parent(uri: str) -> str:
    """Return the URI of the directory that holds `uri`."""
    if "://" in uri:
        return uri.rstrip("/").rpartition("/")[0]
    return str(Path(uri).parent)


def name(uri: str) -> str:
    """Return the last part of a URI."""
    return uri.rstrip("/").rpartition("/")[2]


def exists(uri: str) -> bool:
    """Return whether there is a file or a directory (for an object store: a prefix with something below it)."""
    if is_local(uri):
        return local_path(uri).exists()
    return remotely(uri, lambda system, path: _kind(system, path) != "NotFound")


def size(uri: str) -> int:
    """Return the size of a file in bytes. Raises `NotFoundError` if there is none."""

    def measure(system: fs.FileSystem, path: str) -> int:
        info = system.get_file_info(path)
        if not info.is_file:
            raise FileNotFoundError(path)
        return int(info.size)

    if is_local(uri):
        with local_faults(uri):
            return local_path(uri).stat().st_size
    return remotely(uri, measure)


def modified(uri: str) -> float:
    """Return when a file was last written, in seconds since 1970. Raises `NotFoundError` if there is none."""

    def read_time(system: fs.FileSystem, path: str) -> float:
        info = system.get_file_info(path)
        if not info.is_file:
            raise FileNotFoundError(path)
        return float(info.mtime_ns) / 1e9

    if is_local(uri):
        with local_faults(uri):
            return local_path(uri).stat().st_mtime
    return remotely(uri, read_time)


def list_names(uri: str) -> list[str]:
    """Return the names directly below a directory, sorted; [] if there is no such directory."""

    def select(system: fs.FileSystem, path: str) -> list[str]:
        return [info.base_name for info in _entries(system, path)]

    if is_local(uri):
        path = local_path(uri)
        with local_faults(uri):
            names = [child.name for child in path.iterdir()] if path.is_dir() else []
    else:
        names = remotely(uri, select)
    return sorted(entry for entry in names if not entry.endswith(_TEMPORARY))


def list_folders(uri: str) -> list[str]:
    """Return the names of the directories directly below one, sorted; [] if there is no such directory."""

    def select(system: fs.FileSystem, path: str) -> list[str]:
        return [info.base_name for info in _entries(system, path) if info.type.name == "Directory"]

    if not is_local(uri):
        return sorted(remotely(uri, select))
    path = local_path(uri)
    with local_faults(uri):
        return sorted(child.name for child in path.iterdir() if child.is_dir()) if path.is_dir() else []


def open_input(uri: str) -> BinaryIO:
    """Open a seekable binary file for reading; the caller closes it."""
    if is_local(uri):
        with local_faults(uri):
            return local_path(uri).open("rb")
    return cast(BinaryIO, remotely(uri, open_remote))


def read_bytes(uri: str) -> bytes:
    """Return the content of a file."""

    def read(system: fs.FileSystem, path: str) -> bytes:
        with open_remote(system, path) as file:
            return cast(bytes, file.read())

    if is_local(uri):
        with local_faults(uri):
            return local_path(uri).read_bytes()
    return remotely(uri, read)


def write_bytes(uri: str, data: bytes) -> None:
    """Write a file in one step, and the local directories above it."""
    if is_local(uri):
        with local_faults(uri), _replacing(local_path(uri)) as file:
            file.write(data)
    else:
        remotely(uri, lambda system, path: _put(system, path, data))


def read_json(uri: str) -> Any:
    """Return the tree in a JSON file. Raises `DamagedError` if it is not JSON, and `StorageError`."""
    return parse_json(read_bytes(uri), uri)


def parse_json(content: bytes, uri: str) -> Any:
    """Return the tree in the content of a JSON file. Raises `DamagedError` if it is not JSON."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, too long a number
        raise DamagedError(f"{uri} is not JSON ({error}): it is damaged or another kind of file") from None


def write_json(uri: str, tree: Any) -> None:
    """Write a tree as JSON; equal trees give equal bytes. NaN and infinity are refused."""
    write_bytes(uri, json_bytes(tree))


def json_bytes(tree: Any) -> bytes:
    """Return a tree as the content of a JSON file; equal trees give equal bytes. NaN and infinity are refused."""
    return (json.dumps(tree, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def download(uri: str, path: Path) -> None:
    """Copy a file to a local path, where it appears only when it is complete."""

    def copy(system: fs.FileSystem, remote: str) -> None:
        with open_remote(system, remote) as source, _room_for(path), _replacing(path) as target:
            while chunk := source.read(CHUNK):
                target.write(chunk)
            require_whole(target.tell(), source.size())

    if is_local(uri):
        with open_input(uri) as source, local_faults(str(path)), _replacing(path) as target:
            shutil.copyfileobj(source, target, CHUNK)
    else:
        remotely(uri, copy)


def upload(path: Path, uri: str) -> None:
    """Copy a local file to a URI, where it appears only when it is complete."""
    if is_local(uri):
        download(str(path), local_path(uri))
        return
    with local_faults(str(path)):
        import pyarrow as pa

        # an empty file cannot be mapped
        content = pa.memory_map(str(path)).read_buffer() if path.stat().st_size else b""
    remotely(uri, lambda system, remote: _put(system, remote, content))


def delete(uri: str) -> None:
    """Remove a file, or a directory with all below it. Do nothing if there is neither."""

    def remove(system: fs.FileSystem, path: str) -> None:
        kind = _kind(system, path)
        if kind == "Directory":
            system.delete_dir(path)
        elif kind != "NotFound":
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
    """Return the hex digest of a file's content or of bytes."""
    if not isinstance(content, Path):
        return hashlib.sha256(content).hexdigest()
    with local_faults(str(content)), content.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_remote(system: fs.FileSystem, path: str) -> Any:
    """Open a remote file to read from.

    An S3 client takes a response that was cut off within its headers for that of an empty file, so a file that looks
    empty is looked at a second time; if it has content, the error makes `remotely` retry.
    """
    file = system.open_input_file(path)
    if not file.size() and (size := system.get_file_info(path).size):
        file.close()
        raise OSError(f"the transfer ended early: the file has {size} bytes, and none were announced")
    return file


def require_whole(read: int, length: int) -> None:
    """Raise the error that makes `remotely` retry if a transfer ended before the end of its file."""
    if read != length:
        raise OSError(f"the transfer ended early, after {read} of {length} bytes")


def _kind(system: fs.FileSystem, path: str) -> str:
    return str(system.get_file_info(path).type.name)


def _entries(system: fs.FileSystem, path: str) -> list[fs.FileInfo]:
    from pyarrow import fs

    return list(system.get_file_info(fs.FileSelector(path, allow_not_found=True)))


def _put(system: fs.FileSystem, path: str, content: Any) -> None:
    if system.type_name not in ("s3", "gcs", "abfs"):  # object stores have no directories
        system.create_dir(path.rpartition("/")[0], recursive=True)
    # One write call: closing a stream publishes whatever it was given, so an interrupted loop of writes would leave a
    # part of the file under its final name.
    with system.open_output_stream(path) as target:
        target.write(content)


@contextmanager
def _room_for(path: Path) -> Iterator[None]:
    """Distinguish a full local disk from errors of the remote side of a transfer."""
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
        with local_faults(str(path)):
            raise


@contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a file that takes the place of `path` when it is complete and on disk."""
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
