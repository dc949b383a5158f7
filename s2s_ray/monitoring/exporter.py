"""`s2s exporter`: the state of storage roots for Prometheus.

Runs, sweeps and releases outlive every process that made them, so the metrics of a process cannot show that a training
has stopped writing checkpoints. The exporter scans the storage at intervals; a scrape gets the newest results.
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
"""Name of a gauge, its labels without `root`, and its value."""


class StorageCollector(Collector):
    """The results of the newest scan of some roots, as gauges.

    Args:
        roots: URIs of the storage roots.
    """

    def __init__(self, roots: Sequence[str]) -> None:
        self._roots = roots
        self._lock = threading.Lock()
        self._scanned: dict[str, tuple[Inventory, float, float]] = {}

    def scan(self) -> None:
        """Scan every root. One that cannot be read keeps its previous results, with the time of their scan."""
        for root in self._roots:
            try:
                self.scan_root(root)
            except StorageError as error:
                logger.warning("%s", error)

    def scan_root(self, root: str) -> None:
        """Scan one root. Raises StorageError if it cannot be read."""
        started = time.monotonic()
        inventory = take_inventory(root)
        for fault in inventory.faults:
            logger.warning("%s", fault)
        with self._lock:
            self._scanned[root] = (inventory, time.monotonic() - started, time.time())

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """Return all gauges of `metrics.STORAGE`."""
        with self._lock:
            scanned = list(self._scanned.values())
        families = {
            name: GaugeMetricFamily(name, metric.description, labels=metric.labels) for name, metric in STORAGE.items()
        }
        for inventory, seconds, timestamp in scanned:
            for name, labels, value in _samples(inventory, seconds, timestamp):
                if value is not None:
                    families[name].add_metric((inventory.root, *labels), value)
        return families.values()


@contextmanager
def exporting(roots: Sequence[str], host: str, port: int) -> Iterator[StorageCollector]:
    """Serve a collector at http://host:port/metrics for the duration of the block, after a first scan.

    Raises:
        NotFoundError: a root does not exist.
        StorageError: a root cannot be read.
        OSError: the port is in use, or the host is not an address of this machine.
    """
    collector = StorageCollector(roots)
    for root in roots:
        collector.scan_root(root)
    registry = CollectorRegistry()
    registry.register(collector)
    server, thread = start_http_server(port, host, registry)
    try:
        yield collector
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _samples(inventory: Inventory, seconds: float, timestamp: float) -> Iterator[Sample]:
    yield "s2s_exporter_scan_seconds", (), seconds
    yield "s2s_exporter_scan_timestamp_seconds", (), timestamp
    yield "s2s_exporter_faults", (), len(inventory.faults)
    for run in inventory.runs:
        yield from _run(run, inventory.path(run.uri))
    for sweep in inventory.sweeps:
        yield from _sweep(sweep, inventory.path(sweep.uri))
    for name in inventory.names:
        yield from _name(name, inventory.path(name.uri))


def _run(run: RunStatus, path: str) -> Iterator[Sample]:
    label = (path, run.name)
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
        yield "s2s_run_loss", (path, run.name, loss), value


def _sweep(sweep: SweepStatus, path: str) -> Iterator[Sample]:
    yield "s2s_stored_sweep_trials_asked", (path, sweep.name), sweep.requested
    yield "s2s_stored_sweep_best_recall_at_1", (path, sweep.name), sweep.best_recall
    for state, count in sweep.states.items():
        yield "s2s_stored_sweep_trials", (path, sweep.name, state), count


def _name(name: ReleaseStatus, path: str) -> Iterator[Sample]:
    yield "s2s_registry_releases", (path, name.name), name.releases
    yield "s2s_registry_promotion_timestamp_seconds", (path, name.name), name.promoted
    if name.current is not None:
        yield "s2s_registry_current_release", (path, name.name, name.current), 1
