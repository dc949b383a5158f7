"""Small shards behind an s3:// URI that is a directory of this machine, and caches in front of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pytest

from s2s_ray import storage
from s2s_ray.storage.cache import ShardCache
from tests.support.folder_store import serve_folder

SHARDS = 6
URI = "s3://bucket/set"


@dataclass(frozen=True)
class Info:
    """The facts about a shard that the cache needs."""

    name: str
    count: int
    bytes: int
    sha256: str


class RemoteShards:
    """Six shards of the same size; the one called k holds the numbers 10 k to 10 k + 9."""

    def __init__(self, place: Path, patch: pytest.MonkeyPatch) -> None:
        serve_folder(patch, place)
        self.path = place / "bucket" / "set"
        self.shards = []
        for k in range(SHARDS):
            table = pa.table({"number": pa.array(range(10 * k, 10 * k + 10), pa.int64())})
            sink = pa.BufferOutputStream()
            with pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table)
            data = sink.getvalue().to_pybytes()
            name = f"train-{k:05d}.arrow"
            storage.write_bytes(storage.join(URI, name), data)
            self.shards.append(Info(name=name, count=10, bytes=len(data), sha256=storage.sha256(data)))
        assert (self.path / "train-00000.arrow").exists()
        assert len({info.bytes for info in self.shards}) == 1

    def first(self, info: Info) -> int:
        """Return the first number in a shard."""
        return int(info.name[6:11]) * 10

    def cache(self, folder: Path | None, room: int = SHARDS, window: int = 1) -> ShardCache:
        """Return a cache with room for some shards."""
        return ShardCache(URI, self.shards, folder=folder, max_bytes=room * self.shards[0].bytes, window=window)
