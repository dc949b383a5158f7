"""Files on this machine. A write is atomic and on disk when it returns; conditional ones are guarded by a lock file."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from s2s_ray.errors import ConflictError
from s2s_ray.storage.local_faults import local_faults
from s2s_ray.storage.store import Create, Entry, Info, Mode, Overwrite, Stored
from s2s_ray.uri import Uri

CHUNK = 8 << 20
"""Bytes that are copied at a time."""
_TEMPORARY = ".tmp~"
"""The end of the names of unfinished files and of lock files; they are not listed."""
_CANNOT_SYNC = (errno.EINVAL, errno.ENOTSUP)
"""What some file systems (CIFS, FUSE) reply where directories cannot be synced."""


class LocalStore:
    """The files of this machine; the version of one is the digest of its content."""

    def get(self, uri: Uri) -> Stored:
        with local_faults(uri):
            content = uri.path.read_bytes()
        return Stored(content, _version(content))

    def put(self, uri: Uri, content: bytes, mode: Mode) -> str:
        path = uri.path
        with local_faults(uri):
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(mode, Overwrite):
                _write(path, content)
            else:
                with _locked(path):
                    _compare(uri, None if isinstance(mode, Create) else mode.version)
                    _write(path, content)
        return _version(content)

    def head(self, uri: Uri) -> Info | None:
        with local_faults(uri):
            try:
                found = os.stat(uri.path)
            except (FileNotFoundError, NotADirectoryError):
                return None
        if stat.S_ISDIR(found.st_mode):
            return Info("folder", 0, 0.0)
        return Info("file", found.st_size, found.st_mtime)

    def list(self, uri: Uri) -> list[Entry]:
        with local_faults(uri):
            try:
                with os.scandir(uri.path) as children:
                    entries = [Entry(child.name, "folder" if child.is_dir() else "file") for child in children]
            except (FileNotFoundError, NotADirectoryError):
                return []
        return sorted((entry for entry in entries if _is_listed(entry.name)), key=lambda entry: entry.name)

    def delete(self, uri: Uri) -> None:
        path = uri.path
        with local_faults(uri):
            while True:
                try:
                    if path.is_dir() and not path.is_symlink():
                        shutil.rmtree(path)
                    else:
                        path.unlink()
                    return
                except (FileNotFoundError, NotADirectoryError):
                    if not os.path.lexists(path):
                        return  # otherwise another process deletes it at the same time, and has left the rest

    def download(self, uri: Uri, path: Path, *, checked: bool = False) -> None:
        with self.open(uri) as source, local_faults(str(path)), replacing(path) as target:
            shutil.copyfileobj(source, target, CHUNK)

    def upload(self, path: Path, uri: Uri) -> None:
        self.download(Uri(str(path)), uri.path)

    def open(self, uri: Uri) -> BinaryIO:
        with local_faults(uri):
            return uri.path.open("rb")


def _is_listed(name: str) -> bool:
    """Return whether a name belongs to a file that can have been written here: no URI holds what is not UTF-8."""
    return not name.endswith(_TEMPORARY) and name.encode(errors="ignore").decode() == name


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
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
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise
    finally:
        os.close(folder)


def _write(path: Path, content: bytes) -> None:
    with replacing(path) as file:
        file.write(content)


def _version(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _compare(uri: Uri, version: str | None) -> None:
    try:
        found = _version(uri.path.read_bytes())
    except FileNotFoundError:
        found = None
    if found != version:
        raise ConflictError(f"{uri} was changed by another process since it was read")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file: it is beside it, stays there, and may be deleted with the directory by another."""
    lock = path.with_name(f".{path.name}.lock{_TEMPORARY}")
    while True:
        descriptor = os.open(lock, os.O_CREAT | os.O_RDWR, 0o666)
        try:
            with _exclusive(descriptor):
                if _is_same(lock, descriptor):
                    yield
                    return
            path.parent.mkdir(parents=True, exist_ok=True)
        finally:
            os.close(descriptor)


@contextmanager
def _exclusive(descriptor: int) -> Iterator[None]:
    """Hold an exclusive lock of an open file.

    It is released explicitly: a process that is forked meanwhile has a copy of the descriptor, and would keep the lock
    of a file that is only closed here.
    """
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)


def _is_same(path: Path, descriptor: int) -> bool:
    """Return whether a path still leads to an open file."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False
