"""The deployment that searches an index. It starts without PyTorch, in half the time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import faiss

from s2s_ray.geo.prior import Prior
from s2s_ray.index import ReferenceIndex
from s2s_ray.localization import Calibration, Turned, locate
from s2s_ray.service.answers import found_tree
from s2s_ray.service.replicas.replica import ReleaseSlots, Replica, Timed
from s2s_ray.service.rollout.releases import ReleaseKey
from s2s_ray.service.settings import ServeArgs
from s2s_ray.service.telemetry import ProcessMetrics


class Search(Replica[ReferenceIndex]):
    """The index: fixes and ranked tiles for descriptors, and the images of tiles."""

    async def __init__(self, args: ServeArgs) -> None:  # type: ignore[misc]
        started = time.monotonic()
        self._hold()
        faiss.omp_set_num_threads(args.threads)
        await self._slots.start(args)
        ProcessMetrics().started(time.monotonic() - started)

    def _hold(self) -> None:
        super().__init__()
        # Apart from the index, so that a calibration that is added to the served release does not load that again.
        self._calibrations = ReleaseSlots(_read_calibration, lambda key: key)

    def _load(self, key: ReleaseKey) -> ReferenceIndex:
        return ReferenceIndex.load(key.index_uri)

    async def prepare(self, key: ReleaseKey) -> None:
        """Load an index and its calibration ahead of requests. Raises ReleaseNotLoadedError."""
        await super().prepare(key)
        await self._calibrations.get(key)

    async def __call__(
        self, key: ReleaseKey, pictures: Sequence[Turned], k: int, prior: Prior | None, surface: bool
    ) -> Timed:
        """Return the `found_tree` of pictures that were taken at one place."""
        index, calibration = await self._slots.get(key), await self._calibrations.get(key)
        started = time.perf_counter()
        found = await asyncio.to_thread(locate, index, pictures, k=k, prior=prior, calibration=calibration)
        return Timed(found_tree(index, found, surface=surface), time.perf_counter() - started)

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


def _read_calibration(key: ReleaseKey) -> Calibration | None:
    return None if key.calibration_uri is None else Calibration.read(key.calibration_uri)
