"""The deployment that searches an index. It starts without PyTorch, in half the time."""

from __future__ import annotations

import asyncio
import time

import faiss

from s2s_ray.geo.prior import Prior
from s2s_ray.index import Descriptors, ReferenceIndex
from s2s_ray.service.replicas.replica import Replica, Timed
from s2s_ray.service.rollout.releases import ReleaseKey
from s2s_ray.service.settings import ServeArgs
from s2s_ray.service.telemetry import ProcessMetrics


class Search(Replica[ReferenceIndex]):
    """The index: ranked tiles for descriptors, and the images of tiles."""

    async def __init__(self, args: ServeArgs) -> None:  # type: ignore[misc]
        started = time.monotonic()
        super().__init__()
        faiss.omp_set_num_threads(args.threads)
        await self._slots.start(args)
        ProcessMetrics().started(time.monotonic() - started)

    def _load(self, key: ReleaseKey) -> ReferenceIndex:
        return ReferenceIndex.load(key.index_uri)

    async def __call__(self, key: ReleaseKey, descriptor: Descriptors, k: int, prior: Prior | None) -> Timed:
        """Return the fields of each `Match` of one descriptor."""
        index = await self._slots.get(key)
        started = time.perf_counter()
        [matches] = await asyncio.to_thread(index.search, descriptor[None], k, prior)
        return Timed([match._asdict() for match in matches], time.perf_counter() - started)

    async def thumbnail(self, key: ReleaseKey, id: str) -> Timed:
        """Return the JPEG of a tile; None if the tile does not exist or the index has no pictures."""
        index, started = await self._slots.get(key), time.perf_counter()
        row = await asyncio.to_thread(index.row, id)
        picture = None if row is None or index.pictures is None else index.pictures.thumbnail(row)
        return Timed(picture, time.perf_counter() - started)

    async def examples(self, key: ReleaseKey) -> Timed:
        """Return the fields of each `Example` of the index."""
        index, started = await self._slots.get(key), time.perf_counter()
        places = [] if index.pictures is None else [example._asdict() for example in index.pictures.examples()]
        return Timed(places, time.perf_counter() - started)
