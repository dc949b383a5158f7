"""The folder of the shard cache: its own folder below `data.cache_dir`, the files in it that it wrote, and locks."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import re
import shutil
import stat
import tempfile
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar
from uuid import uuid4

from s2s_ray.errors import DamagedError, S2SError, StorageError
from s2s_ray.storage.documents import Document
from s2s_ray.storage.filesystem import local_faults

log = logging.getLogger(__name__)

FOLDER = "s2s-shards"
MARKER = "s2s-shards.json"
_OWNER = "s2s-ray shard cache"
_SHARD = re.compile(r"([0-9a-f]{64})-.+\.arrow(\.part)?")
_TRANSFER = re.compile(r"\.([0-9a-f]{64})-.+\.arrow\.part\..+\.tmp~")  # the file behind a .part while it is downloaded
_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH


class _Marker(Document):
    """The content of `s2s-shards.json`, which says that the folder is the cache's."""

    ERROR: ClassVar[type[S2SError]] = StorageError
    NOUN: ClassVar[str] = "marker of a shard cache"

    owner: str = _OWNER


@dataclass(frozen=True, slots=True)
class CachedFile:
    """A file that the cache wrote: time of last use in ns, bytes, and path."""

    used: int
    bytes: int
    path: Path

    @property
    def is_transfer(self) -> bool:
        """True for the file behind a download that is running or was killed."""
        return _TRANSFER.fullmatch(self.path.name) is not None


class HeldFile:
    """A cached file that no process evicts until it is closed or this object is garbage-collected."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.close = weakref.finalize(self, _touch_and_close, descriptor)
        info = os.fstat(descriptor)
        self.inode, self.bytes = info.st_ino, info.st_size

    def sha256(self) -> str:
        """Return the checksum of its content."""
        with open(self._descriptor, "rb", closefd=False) as file:
            file.seek(0)
            return hashlib.file_digest(file, "sha256").hexdigest()


class CacheFolder:
    """The cache's own folder, `s2s-shards` below `data.cache_dir`.

    A marker file in it names its format and owner. A folder of that name without the marker, a symbolic link, and a
    folder of another user are refused. In the folder, only regular files whose names the cache gives are counted or
    deleted; nothing else is touched, and nothing beside the folder is.

    The default `data.cache_dir` lies in the temporary directory, where other users could have made it first. So it is
    created for its owner alone, closed to others if an earlier version left it open, and refused if it is somebody
    else's. What others put into it before is not used: the folder in it must be this user's own.

    All methods raise FileNotFoundError if the folder is deleted while it is used, and StorageError for other faults.

    Args:
        cache_dir: the configured directory; None: the default one.
    """

    def __init__(self, cache_dir: Path | None) -> None:
        self.is_default = cache_dir is None
        self.parent = default_cache_dir() if cache_dir is None else cache_dir
        self.path = self.parent / FOLDER

    def claim(self) -> None:
        """Make the folder if there is none, and check that it is the cache's own.

        Raises:
            DiskFullError: there is no room for it.
            StorageError: it is not the cache's, or cannot be made.
        """
        with local_faults(str(self.path)):
            self._make_parent()
            if not self._is_made():
                self._make()
                if not self._is_made():
                    raise StorageError(f"the shard cache {self.path} was deleted as soon as it was made")

    def is_intact(self) -> bool:
        """Return whether the folder still has its marker."""
        return (self.path / MARKER).exists()

    def remove_if_empty(self) -> None:
        """Remove a folder without files, which a download made after the folder had been deleted."""
        with suppress(OSError):
            self.path.rmdir()

    @contextmanager
    def locked(self, name: str = "cache") -> Iterator[None]:
        """Hold one of the folder's locks against the other processes of this node."""
        path = self.path / f"{name}.lock"
        with _exclusive(self._open_lock(path), path):
            yield

    def hold(self, path: Path) -> HeldFile | None:
        """Open a cached file so that it is not evicted; None if there is none. The caller holds its lock."""
        try:
            descriptor = self._open(path, os.O_RDONLY)
        except FileNotFoundError:
            return None
        _lock(descriptor, fcntl.LOCK_SH, path)
        return HeldFile(descriptor)

    def reserve(self, path: Path, size: int) -> None:
        """Create a file of `size` bytes that takes no room yet, so that other processes count its final size."""
        descriptor = self._open(path, os.O_WRONLY | os.O_CREAT)
        with local_faults(str(path)), open(descriptor, "wb") as file:
            file.truncate(size)

    def files(self) -> list[CachedFile]:
        """Return the files that the cache wrote, the least recently used first."""
        found = []
        with _faults(self.path), os.scandir(self.path) as entries:
            for entry in entries:
                if _SHARD.fullmatch(entry.name) is None and _TRANSFER.fullmatch(entry.name) is None:
                    continue
                try:
                    info = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue  # a download has just ended
                if stat.S_ISREG(info.st_mode):
                    found.append(CachedFile(info.st_mtime_ns, info.st_size, Path(entry.path)))
        return sorted(found, key=lambda file: (file.used, file.bytes, file.path))

    def evict(self, path: Path) -> bool:
        """Delete a file that the cache wrote if no process has it open; return whether it is gone."""
        named = _SHARD.fullmatch(path.name) or _TRANSFER.fullmatch(path.name)
        assert named is not None, path
        lock = self.path / f"{named[1]}.lock"
        try:
            with _exclusive(self._open_lock(lock), lock, fcntl.LOCK_NB):
                descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
                with _exclusive(descriptor, path, fcntl.LOCK_NB):
                    path.unlink()
        except (OSError, StorageError):  # in use, gone already, or not to be deleted
            return False
        return True

    def _make_parent(self) -> None:
        if not self.is_default:
            try:
                self.parent.mkdir(parents=True, exist_ok=True)
            except FileExistsError:
                raise StorageError(f"data.cache_dir={str(self.parent)!r} is not a directory") from None
            return
        with suppress(FileExistsError):
            self.parent.mkdir(mode=0o700)
        info = self.parent.lstat()
        fault = None
        if stat.S_ISLNK(info.st_mode):
            fault = "is a symbolic link"
        elif not stat.S_ISDIR(info.st_mode):
            fault = "is not a directory"
        elif info.st_uid != os.geteuid():
            fault = f"belongs to another user (uid {info.st_uid})"
        if fault is not None:
            raise StorageError(
                f"the default shard cache {self.parent} {fault}, so its content cannot be trusted: delete it, or set "
                "data.cache_dir to a directory of your own"
            )
        if info.st_mode & _OTHERS_MAY_WRITE:  # an earlier version made it as the umask said
            self.parent.chmod(0o700)
            log.warning(
                "other users could write the default shard cache %s (mode %o): it is open to you alone now",
                self.parent,
                stat.S_IMODE(info.st_mode),
            )

    def _is_made(self) -> bool:
        """Return whether the folder exists. Raises StorageError if something else has its name."""
        try:
            info = self.path.lstat()
        except FileNotFoundError:
            return False
        if stat.S_ISLNK(info.st_mode):
            raise self._refused("is a symbolic link")
        if not stat.S_ISDIR(info.st_mode):
            raise self._refused("is not a directory")
        # the owner of the directory above it could replace it anyway
        if info.st_uid not in (os.geteuid(), self.parent.stat().st_uid):
            raise self._refused(f"belongs to another user (uid {info.st_uid})")
        marker = self.path / MARKER
        try:
            if not stat.S_ISREG(marker.lstat().st_mode):
                raise self._refused(f"was not made by s2s-ray: its {MARKER} is not a file")
        except FileNotFoundError:
            raise self._refused(f"was not made by s2s-ray: it has no {MARKER}") from None
        try:
            found = _Marker.read(str(marker))
        except DamagedError:
            raise self._refused(f"has a damaged {MARKER}") from None
        if found.owner != _OWNER:
            raise self._refused(f"belongs to {found.owner!r}")
        return True

    def _refused(self, fault: str) -> StorageError:
        return StorageError(
            f"{self.path} {fault}, so the shard cache does not use it: delete it, or set data.cache_dir to another "
            "directory"
        )

    def _make(self) -> None:
        """Make the folder with its marker in one step, so that no process ever sees it without."""
        draft = self.parent / f".{FOLDER}.{uuid4().hex}.tmp~"
        draft.mkdir(mode=0o700)
        try:
            _Marker().write(str(draft / MARKER))
            os.rename(draft, self.path)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):  # another process made it first
                raise
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        self._report_earlier_shards()

    def _report_earlier_shards(self) -> None:
        """Log the shards that an earlier version wrote beside the folder. They stay where they are."""
        with os.scandir(self.parent) as entries:
            found = sum(_SHARD.fullmatch(entry.name) is not None for entry in entries)
        if found:
            log.warning(
                "%s holds %d shards of an earlier version, which are not used any more: the cache is in %s now. Delete "
                "them to free the space",
                self.parent,
                found,
                self.path,
            )

    def _open_lock(self, path: Path) -> int:
        return self._open(path, os.O_RDWR | os.O_CREAT)

    def _open(self, path: Path, flags: int) -> int:
        """Open a file of the cache; refuse anything that is not a regular file, without waiting or following it."""
        with _faults(path):
            try:
                descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
            except OSError as error:
                if error.errno not in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
                    raise
            else:
                if stat.S_ISREG(os.fstat(descriptor).st_mode):
                    return descriptor
                os.close(descriptor)
        raise StorageError(f"{path} is not a file that the shard cache wrote: remove it, or set another data.cache_dir")


def default_cache_dir() -> Path:
    """Return a folder of this user below the temporary directory."""
    return Path(tempfile.gettempdir()) / f"s2s-ray-cache-{os.getuid()}"


@contextmanager
def _faults(path: Path) -> Iterator[None]:
    """Turn the errors of the operating system into StorageErrors, except for a missing file."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError:
        with local_faults(str(path)):
            raise


@contextmanager
def _exclusive(descriptor: int, path: Path, how: int = 0) -> Iterator[None]:
    """Hold the exclusive lock of an open file, and close it.

    The lock is released explicitly, because a process that is forked meanwhile has a copy of the descriptor.
    """
    with open(descriptor, "rb"):
        _lock(descriptor, fcntl.LOCK_EX | how, path)
        try:
            yield
        finally:
            fcntl.flock(descriptor, fcntl.LOCK_UN)


def _lock(descriptor: int, how: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, how)
    except BlockingIOError:
        raise
    except OSError as error:
        raise StorageError(
            f"{path} cannot be locked ({error.strerror}): the file system of data.cache_dir has no locks; set it to a "
            "local disk"
        ) from error


def _touch_and_close(descriptor: int) -> None:
    """Release a cached file and set its modification time to now, the time of its last use."""
    now = time.time_ns()  # the file system's own clock ticks too slowly to order uses by
    with suppress(OSError):  # a disk that has become read-only
        os.utime(descriptor, ns=(now, now))
    os.close(descriptor)
