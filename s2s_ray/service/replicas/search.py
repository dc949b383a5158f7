"""The deployment that searches an index. It starts without PyTorch, in half the time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

import faiss

from s2s_ray.geo.prior import Prior
from s2s_ray.index import ReferenceIndex
from s2s_ray.localization import Calibration, Turned, locate
from s2s_ray.service.answers import found_tree
from s2s_ray.service.replicas.replica import Replica, Timed
from s2s_ray.service.rollout.releases import ReleaseKey
from s2s_ray.service.settings import ServeArgs
from s2s_ray.service.telemetry import ProcessMetrics


@dataclass(frozen=True, slots=True)
class Searched:
    """An index, and the calibration of fixes in it, if the release has one."""

    index: ReferenceIndex
    calibration: Calibration | None


class Search(Replica[Searched]):
    """The index: fixes and ranked tiles for descriptors, and the images of tiles."""

    async def __init__(self, args: ServeArgs) -> None:  # type: ignore[misc]
        started = time.monotonic()
        super().__init__()
        faiss.omp_set_num_threads(args.threads)
        await self._slots.start(args)
        ProcessMetrics().started(time.monotonic() - started)

    def _load(self, key: ReleaseKey) -> Searched:
        calibration = None if key.calibration_uri is None else Calibration.read(key.calibration_uri)
        return Searched(ReferenceIndex.load(key.index_uri), calibration)

    async def __call__(
        self, key: ReleaseKey, pictures: Sequence[Turned], k: int, prior: Prior | None, surface: bool
    ) -> Timed:
        """Return the `found_tree` of pictures that were taken at one place."""
        searched = await self._slots.get(key)
        started = time.perf_counter()
        found = await asyncio.to_thread(
            locate, searched.index, pictures, k=k, prior=prior, calibration=searched.calibration
        )
        return Timed(found_tree(searched.index, found, surface=surface), time.perf_counter() - started)

    async def thumbnail(self, key: ReleaseKey, id: str) -> Timed:
        """Return the JPEG of a tile; None if the tile does not exist or the index has no pictures."""
        index, started = (await self._slots.get(key)).index, time.perf_counter()
        row = await asyncio.to_thread(index.row, id)
        picture = None if row is None or index.pictures is None else index.pictures.thumbnail(row)
        return Timed(picture, time.perf_counter() - started)

    async def examples(self, key: ReleaseKey) -> Timed:
        """Return the fields of each `Example` of the index."""
        index, started = (await self._slots.get(key)).index, time.perf_counter()
        places = [] if index.pictures is None else [example._asdict() for example in index.pictures.examples()]
        return Timed(places, time.perf_counter() - started)
