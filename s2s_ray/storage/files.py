"""Files at a URI: a local path, `file://`, `s3://` or anything else that `pyarrow.fs` reads.

Each function dispatches to the `Store` of the URI. Transient errors (timeouts, resets, 5xx, throttling) are retried
with growing pauses; all others are a `StorageError` that names the URI and says what to do. Writing is atomic: a reader
sees the old file or the new one, never a part.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any, BinaryIO

from s2s_ray.errors import DamagedError, NotFoundError
from s2s_ray.storage.local_faults import local_faults
from s2s_ray.storage.store import Info, Overwrite, store_of
from s2s_ray.uri import Uri, without_slash

CHUNK = 8 << 20
"""Bytes that are hashed at a time."""
_TEMPORARY = ".tmp~"


def absolute(uri: str) -> str:
    """Return the same place under a name that holds in a process with another working directory."""
    return str(Uri(uri).absolute)


def join(uri: str, *parts: str) -> str:
    """Return the URI of something below `uri`. Raises InputError if `uri` is none, such as an empty text."""
    return str(Uri(uri) / "/".join(part.strip("/") for part in parts)) if parts else uri


def parent(uri: str) -> str:
    """Return the URI of the directory that holds `uri`."""
    return str(Uri(uri).parent)


def name(uri: str) -> str:
    """Return the last part of a URI."""
    return without_slash(uri).rpartition("/")[2]


def exists(uri: str) -> bool:
    """Return whether there is a file or a directory (for an object store: a prefix with something below it)."""
    return store_of(uri).head(Uri(uri)) is not None


def size(uri: str) -> int:
    """Return the size of a file in bytes. Raises `NotFoundError` if there is none."""
    return _file(uri).size


def modified(uri: str) -> float:
    """Return when a file was last written, in seconds since 1970. Raises `NotFoundError` if there is none."""
    return _file(uri).modified


def _file(uri: str) -> Info:
    info = store_of(uri).head(Uri(uri))
    if info is None or info.kind != "file":
        raise NotFoundError(f"{uri} " + ("does not exist" if info is None else "is a directory, expected a file"))
    return info


def list_names(uri: str) -> list[str]:
    """Return the names directly below a directory, sorted; [] if there is no such directory."""
    names = {entry.name for entry in store_of(uri).list(Uri(uri))}
    return sorted(name for name in names if not name.endswith(_TEMPORARY))


def list_folders(uri: str) -> list[str]:
    """Return the names of the directories directly below one, sorted; [] if there is no such directory."""
    return sorted(entry.name for entry in store_of(uri).list(Uri(uri)) if entry.kind == "folder")


def open_input(uri: str) -> BinaryIO:
    """Open a seekable binary file for reading; the caller closes it."""
    return store_of(uri).open(Uri(uri))


def read_bytes(uri: str) -> bytes:
    """Return the content of a file."""
    return store_of(uri).get(Uri(uri)).content


def write_bytes(uri: str, data: bytes) -> None:
    """Write a file in one step, and the local directories above it."""
    store_of(uri).put(Uri(uri), data, Overwrite())


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


def download(uri: str, path: Path, *, checked: bool = False) -> None:
    """Copy a file to a local path, where it appears only when it is complete.

    Args:
        uri: the file.
        path: where to copy it.
        checked: the caller compares the copy with a checksum that it knows, so the storage's own need not be.
    """
    store_of(uri).download(Uri(uri), path, checked=checked)


def upload(path: Path, uri: str) -> None:
    """Copy a local file to a URI, where it appears only when it is complete."""
    store_of(uri).upload(path, Uri(uri))


def delete(uri: str) -> None:
    """Remove a file, or a directory with all below it. Do nothing if there is neither."""
    store_of(uri).delete(Uri(uri))


def sha256(content: Path | bytes | memoryview) -> str:
    """Return the hex digest of a file's content or of bytes."""
    if not isinstance(content, Path):
        return hashlib.sha256(content).hexdigest()
    with local_faults(str(content)), content.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def size_and_sha256(uri: str) -> tuple[int, str]:
    """Return the size and the sha256 of a file, read piece by piece."""
    hasher, length = hashlib.sha256(), 0
    with open_input(uri) as file, local_faults(uri) if Uri(uri).is_local else nullcontext():
        while chunk := file.read(CHUNK):
            hasher.update(chunk)
            length += len(chunk)
    return length, hasher.hexdigest()
