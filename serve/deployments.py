"""The deployments that hold a model or an index. Each wraps a plain class of the library in a few lines.

Calls carry the release they are meant for; a replica that does not hold it says so (`ReleaseNotLoadedError`)
rather than answer from another one.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from typing import Any, cast

import faiss
import numpy as np
import torch
from numpy.typing import NDArray
from ray import serve
from torch import Tensor

from s2s_ray.data.schema import Pixels
from s2s_ray.index import Descriptors, ReferenceIndex
from s2s_ray.inference import Embedder, Synthesizer
from serve.schemas import ReleaseNotLoadedError, ServedRelease


class _ModelReplica(ABC):
    """A model called in batches, in a thread, so that the replica's loop stays free for health checks."""

    def __init__(self, release: ServedRelease, device: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self._release = release.id
        self._fault: str | None = None
        self._load(release.checkpoint_uri, device)

    @abstractmethod
    def _load(self, checkpoint: str, device: str) -> None:
        """Make the model ready."""

    @abstractmethod
    def _infer(self, views: Tensor) -> NDArray[Any]:
        """One answer for each of the views, uint8 B 3 H W."""

    async def __call__(self, release: str, view: Pixels) -> NDArray[Any]:
        """One answer for one view, uint8 3 H W."""
        require_release(release, self._release)
        return await self._batched(view)

    @serve.batch
    async def _batched(self, views: list[Pixels]) -> list[NDArray[Any]]:
        try:
            return list(await asyncio.to_thread(self._infer, torch.from_numpy(np.stack(views))))
        except torch.AcceleratorError as error:
            # The CUDA context of this process is lost; only another process can go on.
            self._fault = str(error)
            raise

    def reconfigure(self, batching: dict[str, float]) -> None:
        """New batch settings, without a restart: `max_batch`, `batch_wait_s`."""
        batched = cast(Any, self._batched)
        batched.set_max_batch_size(int(batching["max_batch"]))
        batched.set_batch_wait_timeout_s(float(batching["batch_wait_s"]))

    def check_health(self) -> None:
        """Serve replaces a replica whose accelerator has failed."""
        if self._fault is not None:
            raise RuntimeError(f"the accelerator failed: {self._fault}")


class StreetEmbedding(_ModelReplica):
    """Street views -> descriptors."""

    def _load(self, checkpoint: str, device: str) -> None:
        self._embedder = Embedder.load(checkpoint, device)

    def _infer(self, views: Tensor) -> Descriptors:
        return self._embedder.embed_street(views)


class SatelliteEmbedding(_ModelReplica):
    """Polar satellite views -> descriptors."""

    def _load(self, checkpoint: str, device: str) -> None:
        self._embedder = Embedder.load(checkpoint, device)

    def _infer(self, views: Tensor) -> Descriptors:
        return self._embedder.embed_satellite(views)


class Synthesis(_ModelReplica):
    """Polar satellite views -> street views H W 3."""

    def _load(self, checkpoint: str, device: str) -> None:
        self._synthesizer = Synthesizer.load(checkpoint, device)

    def _infer(self, views: Tensor) -> NDArray[np.uint8]:
        return self._synthesizer.synthesize(views)


class Search:
    """Descriptors -> ranked tiles."""

    def __init__(self, release: ServedRelease, threads: int) -> None:
        faiss.omp_set_num_threads(threads)
        self._release = release.id
        self._index = ReferenceIndex.load(release.index_uri)

    async def __call__(self, release: str, descriptor: Descriptors, k: int) -> list[dict[str, Any]]:
        """The fields of each `Match` of one descriptor."""
        require_release(release, self._release)
        [matches] = await asyncio.to_thread(self._index.search, descriptor[None], k)
        return [match._asdict() for match in matches]


def require_release(wanted: str, held: str) -> None:
    """Refuse a call for another release. Raises ReleaseNotLoadedError."""
    if wanted != held:
        raise ReleaseNotLoadedError(f"release {wanted} is not loaded here; this replica holds {held}")
