"""Shards as memory-mapped tables: those of a local data set in place, those of others through a cache on this node."""

from __future__ import annotations

import logging
import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from s2s_ray.errors import ConfigError, DamagedError, DatasetError, DiskFullError, StorageError
from s2s_ray.storage import files
from s2s_ray.storage.cache_folder import CachedFile, CacheFolder, HeldFile
from s2s_ray.storage.filesystem import is_local, local_faults, local_path
from s2s_ray.storage.verified import Verified, mark_of

log = logging.getLogger(__name__)

_ATTEMPTS = 3  # if the folder is deleted meanwhile


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


class ShardCache:
    """Opens the shards of one data set in any number of processes of a node.

    Local data sets are mapped where they are. Shards of other data sets are downloaded once per node, by the process
    that needs them first, and kept under their checksum in a `CacheFolder`. The checksum of a shard is verified when a
    process, or one that it forked, first opens it; a cached shard that fails is downloaded again. To make room, the
    least recently used shards that no process has open are evicted. A process keeps `2 * window` shards open, all that
    an epoch's order needs at a time, so no shard of the current window is evicted. If other runs' open shards fill the
    folder, it grows beyond its limit with a warning, because waiting for them could take for ever. If the disk fills up
    before the limit is reached, shards are evicted as well.

    Pickling and forking: open shards are not carried into another process. What was verified is shared with forked
    ones.

    Args:
        uri: the data set.
        shards: all shards that may be requested.
        folder: the directory to keep the cache in; None: one below the temporary directory. Not used for local data
            sets.
        max_bytes: largest size of the cache.
        window: shards whose pairs are shuffled together.

    Raises:
        ConfigError: `max_bytes` is less than two windows of the largest shards.
    """

    def __init__(self, uri: str, shards: Sequence[Shard], *, folder: Path | None, max_bytes: int, window: int) -> None:
        self.uri = files.absolute(uri)
        self.local = is_local(uri)
        self.folder = CacheFolder(folder)
        self.max_bytes = max_bytes
        self.window = window
        needed = sum(sorted((shard.bytes for shard in shards), reverse=True)[: 2 * window])
        if not self.local and needed > max_bytes:
            raise ConfigError(
                f"data.cache_gb={max_bytes / 1e9:g} is less than two windows of shards, which need {needed / 1e9:.3g} "
                f"GB with data.window={window}: raise data.cache_gb or lower data.window"
            )
        self._verified = Verified([shard.name for shard in shards])
        self._forget()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": OrderedDict(), "_pid": 0}

    def _forget(self) -> None:
        self._open: OrderedDict[str, _OpenShard] = OrderedDict()
        self._pid = os.getpid()

    def table(self, shard: Shard) -> pa.Table:
        """Return the rows of a shard.

        Raises:
            NotFoundError: the shard is missing.
            DamagedError: it fails its checksum or is not an Arrow file.
            DatasetError: it has another number of rows.
            DiskFullError: the cache's disk has no room for it beside the shards in use.
            StorageError: it cannot be read, or the cache's folder cannot be used.
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
        with local_faults(str(path)):
            mark = mark_of(path.stat())
            if not self._verified.holds(shard.name, mark):
                fault = _fault(path, shard)
                if fault is not None:
                    raise DamagedError(_damaged(str(path), fault))
                self._verified.add(shard.name, mark)
            return _OpenShard(_map(path, shard))

    def _cached(self, shard: Shard) -> _OpenShard:
        for _ in range(_ATTEMPTS):
            self.folder.claim()
            try:
                return self._from_folder(shard)
            except FileNotFoundError:
                log.warning("the shard cache %s was deleted while it was in use", self.folder.path)
            except OSError:
                with local_faults(str(self.folder.path)):
                    raise
        raise StorageError(
            f"the shard cache {self.folder.path} is deleted again and again: set data.cache_dir to a directory that "
            "nothing else clears"
        )

    def _from_folder(self, shard: Shard) -> _OpenShard:
        path = self.folder.path / f"{shard.sha256}-{shard.name}"
        held = self._held(shard, path)
        # by its inode alone: its modification time is that of its last use
        if not self._verified.holds(shard.name, held.inode):
            found = held.sha256()  # not under the lock, so that many processes may do it at once
            if found != shard.sha256:
                log.warning("the cached shard %s is damaged (sha256 %s): downloading it again", path, found)
                held.close()
                held = self._held(shard, path, damaged=held.inode)
            self._verified.add(shard.name, held.inode)
        with local_faults(str(path)):
            return _OpenShard(_map(path, shard), held)

    def _held(self, shard: Shard, path: Path, damaged: int | None = None) -> HeldFile:
        """Return a shard's file in the cache, downloaded if it is missing, cut short or the damaged one."""
        with self.folder.locked(shard.sha256):
            held = self.folder.hold(path)
            if held is not None and (held.bytes != shard.bytes or held.inode == damaged):
                if held.bytes != shard.bytes:
                    log.warning(
                        "the cached shard %s is damaged (%d bytes, expected %d): downloading it again",
                        path,
                        held.bytes,
                        shard.bytes,
                    )
                held.close()
                path.unlink()
                held = None
            if held is None:
                self._fetch(shard, path)
                # held before the lock is released, so that no other process evicts it in between
                held = self.folder.hold(path)
                if held is None:
                    raise FileNotFoundError(path)
                self._verified.add(shard.name, held.inode)
            return held

    def _fetch(self, shard: Shard, path: Path) -> None:
        """Download a shard, twice if the first copy is damaged, and let it appear when it is whole."""
        partial = path.with_name(path.name + ".part")
        with self.folder.locked():
            self._make_room(shard.bytes)
            self.folder.reserve(partial, shard.bytes)
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
            if self.folder.is_intact():
                os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
            if not self.folder.is_intact():
                self.folder.remove_if_empty()

    def _download(self, uri: str, partial: Path) -> None:
        """Download a shard; while the disk is full, evict shards that no process has open, one after the other."""
        while True:
            try:
                return files.download(uri, partial, checked=True)
            except DiskFullError as error:
                with self.folder.locked():
                    if not any(self.folder.evict(file.path) for file in self._shards()):
                        raise DiskFullError(
                            f"the disk of the shard cache {self.folder.path} is full, and all of its shards are in use "
                            f"({error}): free some space, set data.cache_dir to a larger disk, or lower data.window"
                        ) from None
                log.warning("the disk of the shard cache %s is full: evicted an unused shard", self.folder.path)

    def _make_room(self, size: int) -> None:
        """Evict shards until `size` more bytes fit. The caller holds the cache's lock."""
        shards = self._shards()
        total = sum(file.bytes for file in shards)
        for file in shards:
            if total + size <= self.max_bytes:
                return
            if self.folder.evict(file.path):
                total -= file.bytes
        if total + size > self.max_bytes:
            log.warning(
                "the shard cache %s grows to %.3g GB, beyond its %.3g GB: other processes use all of its shards",
                self.folder.path,
                (total + size) / 1e9,
                self.max_bytes / 1e9,
            )

    def _shards(self) -> list[CachedFile]:
        """Return the shards, whole or being downloaded, the least recently used first.

        Files that killed downloads left are deleted. The caller holds the cache's lock.
        """
        found = self.folder.files()
        for file in found:
            if file.is_transfer:
                self.folder.evict(file.path)  # unless its download is running, in which case its .part is counted
        return [file for file in found if not file.is_transfer]


def _damaged(uri: str, fault: str) -> str:
    return (
        f"shard {uri} fails its checksum ({fault}): the file is damaged; `s2s verify` lists all faults. Restore it, or "
        "delete it and prepare the data set again, which writes what is missing"
    )


def _fault(path: Path, shard: Shard) -> str | None:
    """Return what is wrong with a shard's file, or None."""
    size = path.stat().st_size
    if size != shard.bytes:
        return f"{size} bytes, expected {shard.bytes}"
    found = files.sha256(path)
    return None if found == shard.sha256 else f"sha256 {found}, expected {shard.sha256}"


class _OpenShard:
    """A shard in use. A cached one is held until it is closed or this object is garbage-collected."""

    def __init__(self, table: pa.Table, held: HeldFile | None = None) -> None:
        self.table = table
        self._held = held

    def close(self) -> None:
        if self._held is not None:
            self._held.close()


def _map(path: Path, shard: Shard) -> pa.Table:
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except pa.ArrowInvalid as error:
        raise DamagedError(f"shard {path} is not an Arrow file ({error})") from None
    if len(table) != shard.count:
        raise DatasetError(f"shard {path} holds {len(table)} pairs, its data set lists {shard.count}")
    return table
