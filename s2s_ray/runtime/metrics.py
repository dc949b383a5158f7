"""Every metric that this library exports, by name, for dashboards and alert rules.

Training workers and sweeps set Ray's gauges, which Ray's agent on each node exports with the prefix `ray_`. Runs,
sweeps and releases outlive every process; `s2s exporter` exports them from the storage, without a prefix.
"""

from __future__ import annotations

from dataclasses import dataclass

RAY_PREFIX = "ray_"


@dataclass(frozen=True)
class Metric:
    """A gauge: its name, its description for Prometheus, and its labels."""

    name: str
    description: str
    labels: tuple[str, ...] = ()


_TRAINING = (
    Metric("s2s_train_pairs_per_second", "Pairs per second of all workers", ("run",)),
    Metric("s2s_train_step", "Completed steps", ("run",)),
    Metric("s2s_train_epoch", "Current epoch, from 1", ("run",)),
    Metric("s2s_train_epochs", "Epochs to train", ("run",)),
    Metric("s2s_train_loss", "Loss of the newest step over the global batch", ("run", "loss")),
    Metric("s2s_train_kept_triplets", "Share of triplets that mining kept", ("run",)),
    Metric("s2s_train_gradient_norm", "Euclidean norm of a network's gradient at the newest step", ("run", "network")),
    Metric("s2s_train_recall_at_1", "Validation recall at 1, a fraction", ("run",)),
    Metric("s2s_train_data_wait_ratio", "Share of time that a worker waited for batches", ("run", "rank")),
    Metric("s2s_train_gpu_memory_bytes", "Peak GPU memory of a worker's tensors", ("run", "rank")),
    Metric(
        "s2s_train_checkpoint_timestamp_seconds",
        "When the newest checkpoint was stored, or training started, in seconds since 1970",
        ("run",),
    ),
    Metric("s2s_sweep_trials", "Trials by state: complete, failed, running", ("sweep", "state")),
    Metric("s2s_sweep_trials_asked", "Trials to run", ("sweep",)),
    Metric("s2s_sweep_best_recall_at_1", "Best validation recall at 1 of the complete trials", ("sweep",)),
)

_STORAGE = (
    Metric("s2s_run_epochs", "Epochs to train", ("root", "path", "run")),
    Metric("s2s_run_epochs_done", "Completed epochs", ("root", "path", "run")),
    Metric("s2s_run_complete", "1 if all epochs are completed", ("root", "path", "run")),
    Metric("s2s_run_diverged", "1 if training ended with a loss that is not finite", ("root", "path", "run")),
    Metric("s2s_run_loss", "Loss of the newest epoch", ("root", "path", "run", "loss")),
    Metric("s2s_run_recall_at_1", "Newest validation recall at 1", ("root", "path", "run")),
    Metric("s2s_run_best_recall_at_1", "Best validation recall at 1", ("root", "path", "run")),
    Metric("s2s_run_pairs_per_second", "Pairs per second in the newest epoch", ("root", "path", "run")),
    Metric("s2s_run_checkpoints", "Complete checkpoints", ("root", "path", "run")),
    Metric("s2s_run_checkpoint_step", "Step of the newest checkpoint", ("root", "path", "run")),
    Metric(
        "s2s_run_checkpoint_timestamp_seconds",
        "When the newest checkpoint was stored, in seconds since 1970",
        ("root", "path", "run"),
    ),
    Metric("s2s_run_checkpoint_age_seconds", "Seconds since the newest checkpoint was stored", ("root", "path", "run")),
    Metric("s2s_stored_sweep_trials", "Trials by state, from the study", ("root", "path", "sweep", "state")),
    Metric("s2s_stored_sweep_trials_asked", "Trials to run", ("root", "path", "sweep")),
    Metric("s2s_stored_sweep_best_recall_at_1", "Best validation recall at 1", ("root", "path", "sweep")),
    Metric("s2s_registry_releases", "Complete releases of a name", ("root", "path", "name")),
    Metric("s2s_registry_current_release", "1 for the release that is current", ("root", "path", "name", "release")),
    Metric(
        "s2s_registry_promotion_timestamp_seconds",
        "When the current release was promoted, in seconds since 1970",
        ("root", "path", "name"),
    ),
    Metric("s2s_exporter_scan_seconds", "Duration of the newest scan of the storage", ("root",)),
    Metric(
        "s2s_exporter_scan_timestamp_seconds",
        "When the newest scan of the storage ended, in seconds since 1970",
        ("root",),
    ),
    Metric("s2s_exporter_faults", "Runs, sweeps and releases that could not be read", ("root",)),
)

TRAINING = {metric.name: metric for metric in _TRAINING}
"""Gauges of training workers and sweep drivers; Prometheus sees them with `RAY_PREFIX`."""

STORAGE = {metric.name: metric for metric in _STORAGE}
"""Gauges of `s2s exporter`; `path` is the folder below the root."""
