"""The deployments that run a model. Each wraps a plain class of the library in a few lines."""

from __future__ import annotations

import asyncio
import time
from abc import abstractmethod
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from s2s_ray.geo.images import Pixels, Seen
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
A = TypeVar("A")
T = TypeVar("T")


class _ModelReplica(Replica[M], Generic[M, A]):
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
        self._batched: Batcher[tuple[M, A], Timed] = Batcher(self._run_batch)
        await self._slots.start(args)
        self._metrics.started(time.monotonic() - started)

    @abstractmethod
    def _load_model(self, key: ReleaseKey) -> M:
        """Load the model of a release."""

    @abstractmethod
    def _kind(self, argument: A) -> Hashable:
        """Return what calls of the model must have in common to share one."""

    @abstractmethod
    def _infer(self, model: M, arguments: Sequence[A]) -> Sequence[Any] | NDArray[Any]:
        """Return one result for each of the arguments, which are of one kind."""

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

    async def _call(self, key: ReleaseKey, argument: A) -> Timed:
        return await self._batched((await self._slots.get(key), argument))

    async def _run_batch(self, calls: Sequence[tuple[M, A]]) -> list[Timed]:
        results: dict[int, Timed] = {}
        for numbers in self._alike(calls):
            model, arguments = calls[numbers[0]][0], [calls[number][1] for number in numbers]
            self._metrics.batch(len(numbers))
            started = time.perf_counter()
            values = await asyncio.to_thread(self._on_accelerator, partial(self._infer, model, arguments))
            seconds = time.perf_counter() - started
            results |= {number: Timed(value, seconds) for number, value in zip(numbers, values, strict=True)}
        return [results[number] for number in range(len(calls))]

    def _alike(self, calls: Sequence[tuple[M, A]]) -> list[list[int]]:
        """Return the numbers of the calls that share one call of the model.

        Calls of two releases meet in one batch only while the served release changes.
        """
        groups: dict[Hashable, list[int]] = {}
        for number, (model, argument) in enumerate(calls):
            groups.setdefault((id(model), self._kind(argument)), []).append(number)
        return list(groups.values())

    def check_health(self) -> None:
        """Raise RuntimeError if the accelerator has failed, so that Serve replaces the process."""
        super().check_health()
        self._require_accelerator()

    def reconfigure(self, batching: dict[str, float]) -> None:
        """Apply new batch settings without a restart: `max_batch`, `batch_wait_s`."""
        self._batched.max_batch = int(batching["max_batch"])
        self._batched.wait_s = float(batching["batch_wait_s"])


class Street(NamedTuple):
    """A street view, uint8 3 H W, which of its pixels it shows, H W, and whether all headings are wanted."""

    view: Pixels
    seen: Seen | None
    turned: bool


class StreetEmbedding(_ModelReplica[Embedder, Street]):
    """The model that turns street views into descriptors: one at their heading, or one for each heading."""

    def _load_model(self, key: ReleaseKey) -> Embedder:
        embedder = Embedder.load(key.checkpoint_uri, self._device)
        embedder.specialise("street", self._scaling.precision, compile=self._scaling.compile)
        return embedder

    async def __call__(self, key: ReleaseKey, view: Pixels, seen: Seen | None, turned: bool) -> Timed:
        """Return the descriptor of a view, D; `turned`: the descriptors T D and the degrees T that it is turned by."""
        return await self._call(key, Street(view, seen, turned))

    def _kind(self, argument: Street) -> Hashable:
        # Whole views are not given masks: their descriptors do not depend on what else is in the batch.
        return argument.seen is None, argument.turned

    def _infer(self, model: Embedder, arguments: Sequence[Street]) -> Sequence[Any] | Descriptors:
        views = _stacked([argument.view for argument in arguments])
        masks = [argument.seen for argument in arguments if argument.seen is not None]
        seen = torch.from_numpy(np.stack(masks)) if masks else None
        if not arguments[0].turned:
            return model.embed_street(views, seen)
        descriptors, turns = model.embed_turned(views, seen)
        return [(one, turns) for one in descriptors]


class SatelliteEmbedding(_ModelReplica[Embedder, Pixels]):
    """The model that turns polar satellite views into descriptors."""

    def _load_model(self, key: ReleaseKey) -> Embedder:
        embedder = Embedder.load(key.checkpoint_uri, self._device)
        embedder.specialise("satellite", self._scaling.precision, compile=self._scaling.compile)
        return embedder

    async def __call__(self, key: ReleaseKey, view: Pixels) -> Timed:
        """Return the descriptor of a polar view, uint8 3 H W."""
        return await self._call(key, view)

    def _kind(self, argument: Pixels) -> Hashable:
        return None

    def _infer(self, model: Embedder, arguments: Sequence[Pixels]) -> Descriptors:
        return model.embed_satellite(_stacked(arguments))


class Synthesis(_ModelReplica[Synthesizer, Pixels]):
    """The model that turns polar satellite views into street views H W 3."""

    def _load_model(self, key: ReleaseKey) -> Synthesizer:
        synthesizer = Synthesizer.load(key.checkpoint_uri, self._device)
        synthesizer.specialise("synthesis", self._scaling.precision, compile=self._scaling.compile)
        return synthesizer

    async def __call__(self, key: ReleaseKey, view: Pixels) -> Timed:
        """Return the street view of a polar view, uint8 3 H W."""
        return await self._call(key, view)

    def _kind(self, argument: Pixels) -> Hashable:
        return None

    def _infer(self, model: Synthesizer, arguments: Sequence[Pixels]) -> NDArray[np.uint8]:
        return model.synthesize(_stacked(arguments))


def _stacked(views: Sequence[Pixels]) -> Tensor:
    return torch.from_numpy(np.stack(views))
