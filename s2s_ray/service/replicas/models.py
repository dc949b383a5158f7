"""The deployments that run a model. Each wraps a plain class of the library in a few lines."""

from __future__ import annotations

import asyncio
import time
from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from s2s_ray.geo.images import Pixels
from s2s_ray.index import Descriptors
from s2s_ray.inference import Embedder, Synthesizer
from s2s_ray.runtime.memory import keep_memory
from s2s_ray.service.replicas.accelerator import is_lost
from s2s_ray.service.replicas.batching import Batcher
from s2s_ray.service.replicas.replica import Replica, Timed
from s2s_ray.service.rollout.releases import ReleaseKey
from s2s_ray.service.settings import ModelScaling, ServeArgs
from s2s_ray.service.telemetry import ModelMetrics

M = TypeVar("M", Embedder, Synthesizer)
T = TypeVar("T")


class _ModelReplica(Replica[M]):
    """A model called in batches, in a thread, so that the event loop stays free for health checks."""

    _fault: str | None = None
    """Why the accelerator failed, if it has."""

    async def __init__(self, args: ServeArgs, scaling: ModelScaling) -> None:  # type: ignore[misc]
        started = time.monotonic()
        super().__init__()
        torch.set_num_threads(args.threads)
        if args.device == "cpu":
            keep_memory()
        self._device, self._scaling = args.device, scaling
        self._metrics = ModelMetrics()
        self._batched: Batcher[tuple[M, Pixels], Timed] = Batcher(self._run_batch)
        await self._slots.start(args)
        self._metrics.started(time.monotonic() - started)

    @abstractmethod
    def _load_model(self, key: ReleaseKey) -> M:
        """Load the model of a release."""

    @abstractmethod
    def _infer(self, model: M, views: Tensor) -> NDArray[Any]:
        """Return one result for each of the views, uint8 B 3 H W."""

    def _load(self, key: ReleaseKey) -> M:
        return self._on_accelerator(lambda: self._load_model(key))

    def _on_accelerator(self, work: Callable[[], T]) -> T:
        """Return the result of work, and remember a failure after which only a new process can continue.

        Raises:
            RuntimeError: the accelerator has failed, now or before (`is_lost` recognises it).
        """
        self._require_accelerator()
        try:
            return work()
        except Exception as error:
            if is_lost(error):
                self._fault = self._fault or str(error)
            raise

    def _require_accelerator(self) -> None:
        if self._fault is not None:
            raise RuntimeError(f"the accelerator failed: {self._fault}")

    async def __call__(self, key: ReleaseKey, view: Pixels) -> Timed:
        """Return the result for one view, uint8 3 H W."""
        return await self._batched((await self._slots.get(key), view))

    async def _run_batch(self, calls: Sequence[tuple[M, Pixels]]) -> list[Timed]:
        results: dict[int, Timed] = {}
        # Calls of two releases meet in one batch only while the served release changes.
        for model in {id(model): model for model, _ in calls}.values():
            numbers = [number for number, call in enumerate(calls) if call[0] is model]
            views = np.stack([calls[number][1] for number in numbers])
            self._metrics.batch(len(numbers))
            started = time.perf_counter()
            values = await asyncio.to_thread(self._on_accelerator, partial(self._infer, model, torch.from_numpy(views)))
            seconds = time.perf_counter() - started
            results |= {number: Timed(value, seconds) for number, value in zip(numbers, values, strict=True)}
        return [results[number] for number in range(len(calls))]

    def check_health(self) -> None:
        """Raise RuntimeError if the accelerator has failed, so that Serve replaces the process."""
        super().check_health()
        self._require_accelerator()

    def reconfigure(self, batching: dict[str, float]) -> None:
        """Apply new batch settings without a restart: `max_batch`, `batch_wait_s`."""
        self._batched.max_batch = int(batching["max_batch"])
        self._batched.wait_s = float(batching["batch_wait_s"])


class StreetEmbedding(_ModelReplica[Embedder]):
    """The model that turns street views into descriptors."""

    def _load_model(self, key: ReleaseKey) -> Embedder:
        embedder = Embedder.load(key.checkpoint_uri, self._device)
        embedder.specialise("street", self._scaling.precision, compile=self._scaling.compile)
        return embedder

    def _infer(self, model: Embedder, views: Tensor) -> Descriptors:
        return model.embed_street(views)


class SatelliteEmbedding(_ModelReplica[Embedder]):
    """The model that turns polar satellite views into descriptors."""

    def _load_model(self, key: ReleaseKey) -> Embedder:
        embedder = Embedder.load(key.checkpoint_uri, self._device)
        embedder.specialise("satellite", self._scaling.precision, compile=self._scaling.compile)
        return embedder

    def _infer(self, model: Embedder, views: Tensor) -> Descriptors:
        return model.embed_satellite(views)


class Synthesis(_ModelReplica[Synthesizer]):
    """The model that turns polar satellite views into street views H W 3."""

    def _load_model(self, key: ReleaseKey) -> Synthesizer:
        synthesizer = Synthesizer.load(key.checkpoint_uri, self._device)
        synthesizer.specialise("synthesis", self._scaling.precision, compile=self._scaling.compile)
        return synthesizer

    def _infer(self, model: Synthesizer, views: Tensor) -> NDArray[np.uint8]:
        return model.synthesize(views)
