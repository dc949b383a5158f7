"""Shards as memory-mapped tables: those of a local data set in place, others through a cache on this node."""

from __future__ import annotations

import fcntl
import logging
import os
import tempfile
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from s2s_ray import storage
from s2s_ray.data.description import (
    FileInfo,
)
from s2s_ray.errors import ConfigError, DatasetError, DiskFullError, StorageError

log = logging.getLogger(__name__)


def default_cache_dir() -> Path:
    """A folder of this user below the temporary directory."""
    return Path(tempfile.gettempdir()) / f"s2s-ray-cache-{os.getuid()}"


class ShardCache:
    """Opens the shards of one data set in any number of processes of a node.

    Local data sets are mapped where they are; each shard's checksum is taken when a process first opens it. Shards
    of other data sets are downloaded once a node, whoever asks first, checked, and kept under their checksum in
    `folder`; the least recently used that nobody has open make room. A process keeps `2 * window` shards open,
    all that an epoch's order needs at a time, so no shard of the current window is evicted. If other runs' open shards
    fill the folder, it grows beyond its limit with a warning: waiting for them could be for ever. Where the disk is
    full before the limit is reached, shards make room as well.

    Pickles and forks: open shards are not carried into another process.

    Args:
        uri: the data set.
        shards: all shards that may be asked for.
        folder: the cache; `default_cache_dir()` where None. Not used for local data sets.
        max_bytes: largest size of the cache.
        window: shards whose pairs are shuffled together.

    Raises:
        ConfigError: `max_bytes` is less than two windows of the largest shards.
    """

    def __init__(
        self, uri: str, shards: Sequence[FileInfo], *, folder: Path | None, max_bytes: int, window: int
    ) -> None:
        self.uri = storage.absolute(uri)
        self.local = storage.is_local(uri)
        self.folder = default_cache_dir() if folder is None else folder
        self.max_bytes = max_bytes
        self.window = window
        needed = sum(sorted((shard.bytes for shard in shards), reverse=True)[: 2 * window])
        if not self.local and needed > max_bytes:
            raise ConfigError(
                f"data.cache_gb={max_bytes / 1e9:g} is less than two windows of shards need: {needed / 1e9:.3g} "
                f"with data.window={window}; raise the one or lower the other"
            )
        self._forget()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": OrderedDict(), "_pid": 0}

    def _forget(self) -> None:
        self._open: OrderedDict[str, _OpenShard] = OrderedDict()
        self._checked: set[str] = set()
        self._pid = os.getpid()

    def table(self, shard: FileInfo) -> pa.Table:
        """The pairs of a shard.

        Raises:
            StorageError: the shard is missing, fails its checksum or cannot be reached.
            DiskFullError: the cache's disk has no room for it beside the shards in use.
        """
        if self._pid != os.getpid():
            self._forget()
        entry = self._open.get(shard.name)
        if entry is None:
            while len(self._open) >= 2 * self.window:
                self._open.popitem(last=False)[1].close()
            entry = self._open[shard.name] = self._in_place(shard) if self.local else self._cached(shard)
        self._open.move_to_end(shard.name)
        return entry.table

    def _in_place(self, shard: FileInfo) -> _OpenShard:
        path = storage.local_path(storage.join(self.uri, shard.name))
        if shard.name not in self._checked:
            fault = _fault(path, shard)
            if fault is not None:
                raise StorageError(_damaged(str(path), fault))
            self._checked.add(shard.name)
        return _map(path, shard)

    def _cached(self, shard: FileInfo) -> _OpenShard:
        path = self.folder / f"{shard.sha256}-{shard.name}"
        with _locked(self._lock_of(shard.sha256)):
            if not path.exists() or path.stat().st_size != shard.bytes:
                self._bring(shard, path)
            # locked before the download's lock is released, so that no other process evicts it in between
            return _map(path, shard, lock=True)

    def _bring(self, shard: FileInfo, path: Path) -> None:
        """Download a shard, twice if need be, and let it appear when it is whole."""
        partial = path.with_name(path.name + ".part")
        with _locked(self.folder / "cache.lock"):
            self._make_room(shard.bytes)
            with storage.local_faults(str(partial)), partial.open("wb") as file:
                file.truncate(shard.bytes)  # reserves the room in the sum that other processes take
        uri = storage.join(self.uri, shard.name)
        try:
            self._download(uri, partial)
            fault = _fault(partial, shard)
            if fault is not None:
                log.warning("%s fails its checksum (%s), once more", uri, fault)
                self._download(uri, partial)
                fault = _fault(partial, shard)
            if fault is not None:
                raise StorageError(_damaged(uri, fault))
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)

    def _download(self, uri: str, partial: Path) -> None:
        """While the disk is full, shards that nobody has open make room, one after the other."""
        while True:
            try:
                return storage.download(uri, partial)
            except DiskFullError as error:
                with _locked(self.folder / "cache.lock"):
                    if not any(self._evict(path) for _, _, path in self._entries() if path.suffix == ".arrow"):
                        raise DiskFullError(
                            f"the disk of the shard cache {self.folder} is full, and all of its shards are in use "
                            f"({error}): free some of it, set data.cache_dir to a larger one, or lower data.window"
                        ) from None
                log.warning("the disk of the shard cache %s is full: a shard not in use made room", self.folder)

    def _make_room(self, size: int) -> None:
        """Evict until `size` more bytes fit. The caller holds the cache's lock."""
        entries = self._entries()
        total = sum(entry[1] for entry in entries)
        for _, length, path in entries:
            if total + size <= self.max_bytes:
                return
            if self._evict(path):
                total -= length
        if total + size > self.max_bytes:
            log.warning(
                "the shard cache %s grows to %.3g GB of data.cache_gb=%.3g: other processes use all of its shards",
                self.folder,
                (total + size) / 1e9,
                self.max_bytes / 1e9,
            )

    def _entries(self) -> list[tuple[int, int, Path]]:
        """Time of last use, bytes and path of the shards, whole or being downloaded, the oldest first.

        What killed downloads left is cleared. The caller holds the cache's lock.
        """
        entries = []
        for path in self.folder.iterdir():
            try:
                stat = path.stat()
            except FileNotFoundError:
                continue  # a download just ended
            if path.suffix in (".arrow", ".part"):
                entries.append((stat.st_mtime_ns, stat.st_size, path))
            elif path.suffix != ".lock":
                self._evict(path)  # unless its download is under way, and then its .part is in the sum
        return sorted(entries)

    def _evict(self, path: Path) -> bool:
        """Delete a shard that nobody has open, or what a killed download left. Whether it is gone."""
        digest = path.name.lstrip(".").partition("-")[0]
        try:
            with self._lock_of(digest).open("ab") as lock, path.open("rb") as file:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
        except (BlockingIOError, FileNotFoundError):
            return False
        return True

    def _lock_of(self, digest: str) -> Path:
        return self.folder / f"{digest}.lock"


def _damaged(uri: str, fault: str) -> str:
    return (
        f"shard {uri} fails its checksum ({fault}): the file is damaged; `s2s verify` lists all faults. Restore it, or "
        "delete it and prepare the data set again, which writes what is missing"
    )


def _fault(path: Path, shard: FileInfo) -> str | None:
    """What is wrong with a shard's file, or None."""
    with storage.local_faults(str(path)):
        size = path.stat().st_size
    if size != shard.bytes:
        return f"{size} bytes, expected {shard.bytes}"
    found = storage.sha256(path)
    return None if found == shard.sha256 else f"sha256 {found}, expected {shard.sha256}"


class _OpenShard:
    """A shard in use. With a lock, nobody evicts it until it is closed or this object is gone."""

    def __init__(self, table: pa.Table, path: Path, *, lock: bool) -> None:
        self.table = table
        self._release: Callable[[], object] | None = None
        if lock:
            descriptor = os.open(path, os.O_RDONLY)
            self._release = weakref.finalize(self, _touch_and_close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_SH)

    def close(self) -> None:
        if self._release is not None:
            self._release()


def _touch_and_close(descriptor: int) -> None:
    """Release a cached shard; its time of change is the time of its last use, by which shards are evicted."""
    now = time.time_ns()  # the file system's own clock ticks too slowly to order uses by
    os.utime(descriptor, ns=(now, now))
    os.close(descriptor)


def _map(path: Path, shard: FileInfo, *, lock: bool = False) -> _OpenShard:
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except pa.ArrowInvalid as error:
        raise StorageError(f"shard {path} is not an Arrow file ({error})") from None
    if len(table) != shard.count:
        raise DatasetError(f"shard {path} holds {len(table)} pairs, its data set lists {shard.count}")
    return _OpenShard(table, path, lock=lock)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock file against the other processes of this node."""
    with storage.local_faults(str(path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("ab")
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
