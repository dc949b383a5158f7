"""Gauges of a running training: speed, losses, gradients, time spent waiting, memory.

The caller passes the gauges: Ray's on a cluster, none elsewhere.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol

import torch

from s2s_ray.data.batch import Batch
from s2s_ray.runtime.collectives import rank

EVERY_S = 5.0
"""Seconds between two updates of the gauges, which are read every ten seconds or less often."""
_COUNTS = ("kept", "valid")
_NORMS = {"d_grad_norm": "discriminator", "r_grad_norm": "retrieval", "g_grad_norm": "generator"}


class Gauges(Protocol):
    """Sets a gauge: `gauges("s2s_train_loss", 0.7, loss="d_loss")`; the names are in `runtime.metrics`."""

    def __call__(self, name: str, value: float, **labels: str) -> None: ...


class Telemetry:
    """The gauges of one worker. The first sets those of the run, every worker those of its waits and memory."""

    def __init__(self, gauges: Gauges | None, device: torch.device, epochs: int) -> None:
        self._gauges, self._device, self._epochs = gauges, device, epochs
        self._started = time.time()
        self._since = time.monotonic()
        self._sent: float | None = None
        self._waited, self._pairs = 0.0, 0

    def waiting_for(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the same batches, counting the time spent waiting for them."""
        source = iter(batches)
        while True:
            started = time.monotonic()
            try:
                batch = next(source)
            except StopIteration:
                return
            self._waited += time.monotonic() - started
            yield batch

    def step(self, step: int, epoch: int, pairs: int, losses: Mapping[str, float], stored_at: float | None) -> None:
        """Count one cycle over `pairs` pairs; `stored_at` is the Unix time of the newest stored checkpoint."""
        self._pairs += pairs
        now = time.monotonic()
        if self._gauges is None or (self._sent is not None and now - self._sent < EVERY_S):
            return
        seconds = max(now - self._since, 1e-9)
        worker = {"rank": str(rank())}
        self._gauges("s2s_train_data_wait_ratio", min(self._waited / seconds, 1.0), **worker)
        if self._device.type == "cuda":
            self._gauges("s2s_train_gpu_memory_bytes", torch.cuda.max_memory_allocated(self._device), **worker)
        if rank() == 0:
            self._gauges("s2s_train_step", step)
            self._gauges("s2s_train_epoch", epoch + 1)
            self._gauges("s2s_train_epochs", self._epochs)
            self._gauges("s2s_train_pairs_per_second", self._pairs / seconds)
            self._gauges("s2s_train_checkpoint_timestamp_seconds", stored_at or self._started)
            self._gauges("s2s_train_kept_triplets", losses["kept"] / max(losses["valid"], 1.0))
            for name, value in losses.items():
                if name in _NORMS:
                    self._gauges("s2s_train_gradient_norm", value, network=_NORMS[name])
                elif name not in _COUNTS:
                    self._gauges("s2s_train_loss", value, loss=name)
        self._sent = self._since = now
        self._waited, self._pairs = 0.0, 0

    def epoch(self, metrics: Mapping[str, float]) -> None:
        """Set the gauges of a finished epoch."""
        recall = metrics.get("recall_at_1")
        if self._gauges is not None and rank() == 0 and recall is not None:
            self._gauges("s2s_train_recall_at_1", recall)
