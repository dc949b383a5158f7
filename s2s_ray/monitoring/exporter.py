"""`s2s exporter`: the state of storage roots for Prometheus.

Runs, sweeps and releases outlive every process that made them, so no process's own metrics can tell that a training
has stopped writing checkpoints. This one looks at the storage again and again; scrapes get what the newest look found.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from s2s_ray.errors import StorageError
from s2s_ray.monitoring.inventory import Inventory, ReleaseStatus, RunStatus, SweepStatus, take_inventory
from s2s_ray.runtime.metrics import STORAGE

logger = logging.getLogger(__name__)

Sample = tuple[str, tuple[str, ...], float | None]


class StorageCollector(Collector):
    """What the newest look at some roots found, as gauges."""

    def __init__(self, roots: Sequence[str]) -> None:
        self._roots = roots
        self._lock = threading.Lock()
        self._found: dict[str, tuple[Inventory, float, float]] = {}

    def scan(self) -> None:
        """Look at every root. One that cannot be read keeps what was found before; its time tells how old that is."""
        for root in self._roots:
            begun = time.monotonic()
            try:
                found = take_inventory(root)
            except StorageError as error:
                logger.warning("%s", error)
                continue
            for fault in found.faults:
                logger.warning("%s", fault)
            with self._lock:
                self._found[root] = (found, time.monotonic() - begun, time.time())

    def collect(self) -> Iterable[GaugeMetricFamily]:
        with self._lock:
            found = list(self._found.values())
        families = {
            name: GaugeMetricFamily(name, metric.description, labels=metric.labels) for name, metric in STORAGE.items()
        }
        for inventory, seconds, ended in found:
            for name, labels, value in _samples(inventory, seconds, ended):
                if value is not None:
                    families[name].add_metric((inventory.root, *labels), value)
        return families.values()


@contextmanager
def exporting(roots: Sequence[str], host: str, port: int) -> Iterator[StorageCollector]:
    """The collector, served at http://host:port/metrics for the length of the block, after a first look.

    Raises:
        StorageError: a root that is not there. OSError: the port is taken.
    """
    for root in roots:
        take_inventory(root)
    collector = StorageCollector(roots)
    collector.scan()
    registry = CollectorRegistry()
    registry.register(collector)
    server, thread = start_http_server(port, host, registry)
    try:
        yield collector
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _samples(found: Inventory, seconds: float, ended: float) -> Iterator[Sample]:
    yield "s2s_exporter_scan_seconds", (), seconds
    yield "s2s_exporter_scan_timestamp_seconds", (), ended
    yield "s2s_exporter_faults", (), len(found.faults)
    for run in found.runs:
        yield from _run(run)
    for sweep in found.sweeps:
        yield from _sweep(sweep)
    for name in found.names:
        yield from _name(name)


def _run(run: RunStatus) -> Iterator[Sample]:
    label = (run.name,)
    written = run.checkpoint_time
    yield "s2s_run_epochs", label, run.epochs
    yield "s2s_run_epochs_done", label, run.epochs_done
    yield "s2s_run_complete", label, run.complete
    yield "s2s_run_diverged", label, run.diverged is not None
    yield "s2s_run_recall_at_1", label, run.recall
    yield "s2s_run_best_recall_at_1", label, run.best_recall
    yield "s2s_run_pairs_per_second", label, run.pairs_per_second
    yield "s2s_run_checkpoints", label, run.checkpoints
    yield "s2s_run_checkpoint_step", label, run.checkpoint_step
    yield "s2s_run_checkpoint_timestamp_seconds", label, written
    yield "s2s_run_checkpoint_age_seconds", label, None if written is None else max(time.time() - written, 0.0)
    for loss, value in run.losses.items():
        yield "s2s_run_loss", (run.name, loss), value


def _sweep(sweep: SweepStatus) -> Iterator[Sample]:
    yield "s2s_stored_sweep_trials_asked", (sweep.name,), sweep.asked
    yield "s2s_stored_sweep_best_recall_at_1", (sweep.name,), sweep.best_recall
    for state, count in sweep.states.items():
        yield "s2s_stored_sweep_trials", (sweep.name, state), count


def _name(name: ReleaseStatus) -> Iterator[Sample]:
    yield "s2s_registry_releases", (name.name,), name.releases
    yield "s2s_registry_promotion_timestamp_seconds", (name.name,), name.promoted
    if name.current is not None:
        yield "s2s_registry_current_release", (name.name, name.current), 1
