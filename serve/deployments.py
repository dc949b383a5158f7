"""The deployments that hold a model or an index. Each wraps a plain class of the library in a few lines.

Calls carry the release they are meant for, and are answered from it and no other. Answers come with the seconds
that the model or the index itself took; what the caller waited beyond that was queueing and transport.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import faiss
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from s2s_ray.data.schema import Pixels
from s2s_ray.index import Descriptors, ReferenceIndex
from s2s_ray.inference import Embedder, Synthesizer
from s2s_ray.memory import keep_memory
from s2s_ray.prior import Prior
from serve.batching import Batcher
from serve.releases import ReleaseKey, ReleaseSlots
from serve.settings import ModelScaling, ServeArgs
from serve.telemetry import ModelMetrics, ProcessMetrics

T = TypeVar("T")
M = TypeVar("M", Embedder, Synthesizer)
IDLE_RELEASE_S = 120.0  # the release before stays this long, for requests that still carry its stamp


class Timed(NamedTuple):
    """An answer, and the seconds of work in it."""

    answer: Any
    seconds: float


class _Replica(ABC, Generic[T]):
    """Holds releases; loads them before they are asked for."""

    def __init__(self) -> None:
        self._slots: ReleaseSlots[T] = ReleaseSlots(self._load)
        self._fault: str | None = None

    @abstractmethod
    def _load(self, key: ReleaseKey) -> T:
        """Make a release ready; in a thread."""

    async def prepare(self, key: ReleaseKey) -> None:
        """Load a release, for requests to come. Raises ReleaseNotLoadedError."""
        await self._slots.get(key)

    async def held(self) -> list[str]:
        """Ids of the releases that are loaded."""
        return self._slots.held()

    def check_health(self) -> None:
        """Serve calls this every few seconds, and replaces a replica whose accelerator has failed."""
        self._slots.release_idle(IDLE_RELEASE_S)
        if self._fault is not None:
            raise RuntimeError(f"the accelerator failed: {self._fault}")


class _ModelReplica(_Replica[M]):
    """A model called in batches, in a thread, so that the replica's loop stays free for health checks."""

    async def __init__(self, args: ServeArgs, scaling: ModelScaling) -> None:  # type: ignore[misc]
        started = time.monotonic()
        super().__init__()
        torch.set_num_threads(args.threads)
        if args.device == "cpu":
            keep_memory()
        self._device, self._scaling = args.device, scaling
        self._metrics = ModelMetrics()
        self._batched: Batcher[tuple[M, Pixels], Timed] = Batcher(self._answer)
        await self._slots.start(args)
        self._metrics.started(time.monotonic() - started)

    @abstractmethod
    def _infer(self, model: M, views: Tensor) -> NDArray[Any]:
        """One answer for each of the views, uint8 B 3 H W."""

    async def __call__(self, key: ReleaseKey, view: Pixels) -> Timed:
        """One answer for one view, uint8 3 H W."""
        return await self._batched((await self._slots.get(key), view))

    async def _answer(self, calls: Sequence[tuple[M, Pixels]]) -> list[Timed]:
        answers: dict[int, Timed] = {}
        # Calls of two releases meet in one batch only while the one takes over from the other.
        for model in {id(model): model for model, _ in calls}.values():
            places = [place for place, call in enumerate(calls) if call[0] is model]
            views = np.stack([calls[place][1] for place in places])
            self._metrics.batch(len(places))
            started = time.perf_counter()
            try:
                found = await asyncio.to_thread(self._infer, model, torch.from_numpy(views))
            except torch.AcceleratorError as error:
                # The CUDA context of this process is lost; only another process can go on.
                self._fault = str(error)
                raise
            seconds = time.perf_counter() - started
            answers |= {place: Timed(answer, seconds) for place, answer in zip(places, found, strict=True)}
        return [answers[place] for place in range(len(calls))]

    def reconfigure(self, batching: dict[str, float]) -> None:
        """New batch settings, without a restart: `max_batch`, `batch_wait_s`."""
        self._batched.max_batch = int(batching["max_batch"])
        self._batched.wait_s = float(batching["batch_wait_s"])


class StreetEmbedding(_ModelReplica[Embedder]):
    """Street views -> descriptors."""

    def _load(self, key: ReleaseKey) -> Embedder:
        embedder = Embedder.load(key.checkpoint_uri, self._device)
        embedder.specialise("street", self._scaling.precision, compile=self._scaling.compile)
        return embedder

    def _infer(self, model: Embedder, views: Tensor) -> Descriptors:
        return model.embed_street(views)


class SatelliteEmbedding(_ModelReplica[Embedder]):
    """Polar satellite views -> descriptors."""

    def _load(self, key: ReleaseKey) -> Embedder:
        embedder = Embedder.load(key.checkpoint_uri, self._device)
        embedder.specialise("satellite", self._scaling.precision, compile=self._scaling.compile)
        return embedder

    def _infer(self, model: Embedder, views: Tensor) -> Descriptors:
        return model.embed_satellite(views)


class Synthesis(_ModelReplica[Synthesizer]):
    """Polar satellite views -> street views H W 3."""

    def _load(self, key: ReleaseKey) -> Synthesizer:
        synthesizer = Synthesizer.load(key.checkpoint_uri, self._device)
        synthesizer.specialise("synthesis", self._scaling.precision, compile=self._scaling.compile)
        return synthesizer

    def _infer(self, model: Synthesizer, views: Tensor) -> NDArray[np.uint8]:
        return model.synthesize(views)


class Search(_Replica[ReferenceIndex]):
    """Descriptors -> ranked tiles, and the pictures of tiles."""

    async def __init__(self, args: ServeArgs) -> None:  # type: ignore[misc]
        started = time.monotonic()
        super().__init__()
        faiss.omp_set_num_threads(args.threads)
        await self._slots.start(args)
        ProcessMetrics().started(time.monotonic() - started)

    def _load(self, key: ReleaseKey) -> ReferenceIndex:
        return ReferenceIndex.load(key.index_uri)

    async def __call__(self, key: ReleaseKey, descriptor: Descriptors, k: int, prior: Prior | None) -> Timed:
        """The fields of each `Match` of one descriptor."""
        index = await self._slots.get(key)
        started = time.perf_counter()
        [matches] = await asyncio.to_thread(index.search, descriptor[None], k, prior)
        return Timed([match._asdict() for match in matches], time.perf_counter() - started)

    async def thumbnail(self, key: ReleaseKey, id: str) -> Timed:
        """JPEG of a tile; None where there is no such tile or the index has no pictures."""
        index, started = await self._slots.get(key), time.perf_counter()
        row = await asyncio.to_thread(index.row, id)
        picture = None if row is None or index.pictures is None else index.pictures.thumbnail(row)
        return Timed(picture, time.perf_counter() - started)

    async def examples(self, key: ReleaseKey) -> Timed:
        """The fields of each `Example` of the index."""
        index, started = await self._slots.get(key), time.perf_counter()
        places = [] if index.pictures is None else [example._asdict() for example in index.pictures.examples()]
        return Timed(places, time.perf_counter() - started)
