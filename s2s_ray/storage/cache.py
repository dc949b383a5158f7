"""Shards as memory-mapped tables: those of a local data set in place, those of others through a cache on this node."""

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
from typing import Any, Protocol

import pyarrow as pa

from s2s_ray.errors import DamagedError, DatasetError, DiskFullError, InputError
from s2s_ray.storage import files
from s2s_ray.storage.filesystem import is_local, local_faults, local_path

log = logging.getLogger(__name__)


class Shard(Protocol):
    """One Arrow file of a data set."""

    @property
    def name(self) -> str:
        """File name below the data set's URI."""

    @property
    def count(self) -> int:
        """Number of rows."""

    @property
    def bytes(self) -> int:
        """Size of the file."""

    @property
    def sha256(self) -> str:
        """Checksum of the file."""


def default_cache_dir() -> Path:
    """Return a folder of this user below the temporary directory."""
    return Path(tempfile.gettempdir()) / f"s2s-ray-cache-{os.getuid()}"


class ShardCache:
    """Opens the shards of one data set in any number of processes of a node.

    Local data sets are mapped where they are; the checksum of a shard is verified when a process first opens it.
    Shards of other data sets are downloaded once per node, by the process that needs them first, checked, and kept
    under their checksum in `folder`. To make room, the least recently used shards that no process has open are
    evicted. A process keeps `2 * window` shards open, all that an epoch's order needs at a time, so no shard of the
    current window is evicted. If other runs' open shards fill the folder, it grows beyond its limit with a warning,
    because waiting for them could take for ever. If the disk fills up before the limit is reached, shards are evicted
    as well.

    Pickling and forking: open shards are not carried into another process.

    Args:
        uri: the data set.
        shards: all shards that may be requested.
        folder: the cache; None: `default_cache_dir()`. Not used for local data sets.
        max_bytes: largest size of the cache.
        window: shards whose pairs are shuffled together.

    Raises:
        InputError: `max_bytes` is less than two windows of the largest shards.
    """

    def __init__(self, uri: str, shards: Sequence[Shard], *, folder: Path | None, max_bytes: int, window: int) -> None:
        self.uri = files.absolute(uri)
        self.local = is_local(uri)
        self.folder = default_cache_dir() if folder is None else folder
        self.max_bytes = max_bytes
        self.window = window
        needed = sum(sorted((shard.bytes for shard in shards), reverse=True)[: 2 * window])
        if not self.local and needed > max_bytes:
            raise InputError(
                f"a shard cache of {max_bytes / 1e9:g} GB holds less than two windows of shards, which need "
                f"{needed / 1e9:.3g} GB with window={window}"
            )
        self._forget()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": OrderedDict(), "_pid": 0}

    def _forget(self) -> None:
        self._open: OrderedDict[str, _OpenShard] = OrderedDict()
        self._checked: set[str] = set()
        self._pid = os.getpid()

    def table(self, shard: Shard) -> pa.Table:
        """Return the rows of a shard.

        Raises:
            NotFoundError: the shard is missing.
            DamagedError: it fails its checksum or is not an Arrow file.
            DatasetError: it has another number of rows.
            DiskFullError: the cache's disk has no room for it beside the shards in use.
            StorageError: it cannot be read.
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

    def _in_place(self, shard: Shard) -> _OpenShard:
        path = local_path(files.join(self.uri, shard.name))
        if shard.name not in self._checked:
            fault = _fault(path, shard)
            if fault is not None:
                raise DamagedError(_damaged(str(path), fault))
            self._checked.add(shard.name)
        return _map(path, shard)

    def _cached(self, shard: Shard) -> _OpenShard:
        path = self.folder / f"{shard.sha256}-{shard.name}"
        with _locked(self._lock_of(shard.sha256)):
            if not path.exists() or path.stat().st_size != shard.bytes:
                self._fetch(shard, path)
            # locked before the download's lock is released, so that no other process evicts it in between
            return _map(path, shard, lock=True)

    def _fetch(self, shard: Shard, path: Path) -> None:
        """Download a shard, twice if the first copy is damaged, and let it appear when it is whole."""
        partial = path.with_name(path.name + ".part")
        with _locked(self.folder / "cache.lock"):
            self._make_room(shard.bytes)
            with local_faults(str(partial)), partial.open("wb") as file:
                file.truncate(shard.bytes)  # so that other processes count its final size
        uri = files.join(self.uri, shard.name)
        try:
            self._download(uri, partial)
            fault = _fault(partial, shard)
            if fault is not None:
                log.warning("%s fails its checksum (%s), downloading it again", uri, fault)
                self._download(uri, partial)
                fault = _fault(partial, shard)
            if fault is not None:
                raise DamagedError(_damaged(uri, fault))
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)

    def _download(self, uri: str, partial: Path) -> None:
        """Download a shard; while the disk is full, evict shards that no process has open, one after the other."""
        while True:
            try:
                return files.download(uri, partial)
            except DiskFullError as error:
                with _locked(self.folder / "cache.lock"):
                    if not any(self._evict(path) for _, _, path in self._entries() if path.suffix == ".arrow"):
                        raise DiskFullError(
                            f"the disk of the shard cache {self.folder} is full, and all of its shards are in use "
                            f"({error}): free some space, set data.cache_dir to a larger disk, or lower data.window"
                        ) from None
                log.warning("the disk of the shard cache %s is full: evicted an unused shard", self.folder)

    def _make_room(self, size: int) -> None:
        """Evict shards until `size` more bytes fit. The caller holds the cache's lock."""
        entries = self._entries()
        total = sum(entry[1] for entry in entries)
        for _, length, path in entries:
            if total + size <= self.max_bytes:
                return
            if self._evict(path):
                total -= length
        if total + size > self.max_bytes:
            log.warning(
                "the shard cache %s grows to %.3g GB, beyond its %.3g GB: other processes use all of its shards",
                self.folder,
                (total + size) / 1e9,
                self.max_bytes / 1e9,
            )

    def _entries(self) -> list[tuple[int, int, Path]]:
        """Return time of last use, bytes and path of all shards, whole or being downloaded, the oldest first.

        Files that killed downloads left are deleted. The caller holds the cache's lock.
        """
        entries = []
        for path in self.folder.iterdir():
            try:
                stat = path.stat()
            except FileNotFoundError:
                continue  # a download has just ended
            if path.suffix in (".arrow", ".part"):
                entries.append((stat.st_mtime_ns, stat.st_size, path))
            elif path.suffix != ".lock":
                self._evict(path)  # unless its download is running, in which case its .part is counted
        return sorted(entries)

    def _evict(self, path: Path) -> bool:
        """Delete a shard, or the rest of a killed download, if no process has it open; return whether it is gone."""
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


def _fault(path: Path, shard: Shard) -> str | None:
    """Return what is wrong with a shard's file, or None."""
    with local_faults(str(path)):
        size = path.stat().st_size
    if size != shard.bytes:
        return f"{size} bytes, expected {shard.bytes}"
    found = files.sha256(path)
    return None if found == shard.sha256 else f"sha256 {found}, expected {shard.sha256}"


class _OpenShard:
    """A shard in use. With a lock, no process evicts it until it is closed or this object is garbage-collected."""

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
    """Release a cached shard and set its modification time to now, the time of its last use."""
    now = time.time_ns()  # the file system's own clock ticks too slowly to order uses by
    os.utime(descriptor, ns=(now, now))
    os.close(descriptor)


def _map(path: Path, shard: Shard, *, lock: bool = False) -> _OpenShard:
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except pa.ArrowInvalid as error:
        raise DamagedError(f"shard {path} is not an Arrow file ({error})") from None
    if len(table) != shard.count:
        raise DatasetError(f"shard {path} holds {len(table)} pairs, its data set lists {shard.count}")
    return _OpenShard(table, path, lock=lock)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock file against the other processes of this node."""
    with local_faults(str(path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("ab")
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
