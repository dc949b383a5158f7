"""Every metric that this library exports, by name: what dashboards and alert rules may ask for.

Training workers and sweeps set Ray's gauges, which Ray's agent on each node exports with `ray_` before the name.
What outlives a process (runs, sweeps, releases) is exported by `s2s exporter` from the storage, without a prefix.
"""

from __future__ import annotations

from dataclasses import dataclass

RAY_PREFIX = "ray_"


@dataclass(frozen=True)
class Metric:
    """A gauge: its name, what it says, and its labels."""

    name: str
    description: str
    labels: tuple[str, ...] = ()


_TRAINING = (
    Metric("s2s_train_pairs_per_second", "Pairs trained a second, all workers together", ("run",)),
    Metric("s2s_train_step", "Steps done", ("run",)),
    Metric("s2s_train_epoch", "Epoch under way, from 1", ("run",)),
    Metric("s2s_train_epochs", "Epochs asked for", ("run",)),
    Metric("s2s_train_loss", "Loss of the newest step over the global batch", ("run", "loss")),
    Metric("s2s_train_kept_triplets", "Triplets that mining kept, of those there are", ("run",)),
    Metric("s2s_train_gradient_norm", "Euclidean norm of a network's gradient at the newest step", ("run", "network")),
    Metric("s2s_train_recall_at_1", "Validation recall at 1, a fraction", ("run",)),
    Metric("s2s_train_data_wait_ratio", "Part of the time that a worker waited for its batches", ("run", "rank")),
    Metric("s2s_train_gpu_memory_bytes", "Most GPU memory that tensors of a worker took", ("run", "rank")),
    Metric(
        "s2s_train_checkpoint_timestamp_seconds",
        "When the newest checkpoint was stored, or training began, in seconds since 1970",
        ("run",),
    ),
    Metric("s2s_sweep_trials", "Trials by state: complete, failed, running", ("sweep", "state")),
    Metric("s2s_sweep_trials_asked", "Trials asked for", ("sweep",)),
    Metric("s2s_sweep_best_recall_at_1", "Best validation recall at 1 of the complete trials", ("sweep",)),
)

_STORAGE = (
    Metric("s2s_run_epochs", "Epochs asked for", ("root", "run")),
    Metric("s2s_run_epochs_done", "Epochs done", ("root", "run")),
    Metric("s2s_run_complete", "1 where all epochs are done", ("root", "run")),
    Metric("s2s_run_diverged", "1 where training ended on a loss that is not finite", ("root", "run")),
    Metric("s2s_run_loss", "Loss of the newest epoch", ("root", "run", "loss")),
    Metric("s2s_run_recall_at_1", "Newest validation recall at 1", ("root", "run")),
    Metric("s2s_run_best_recall_at_1", "Best validation recall at 1", ("root", "run")),
    Metric("s2s_run_pairs_per_second", "Pairs trained a second in the newest epoch", ("root", "run")),
    Metric("s2s_run_checkpoints", "Complete checkpoints", ("root", "run")),
    Metric("s2s_run_checkpoint_step", "Step of the newest checkpoint", ("root", "run")),
    Metric(
        "s2s_run_checkpoint_timestamp_seconds", "When the newest checkpoint was finished, since 1970", ("root", "run")
    ),
    Metric("s2s_run_checkpoint_age_seconds", "Time since the newest checkpoint was finished", ("root", "run")),
    Metric("s2s_stored_sweep_trials", "Trials by state, as the study has them", ("root", "sweep", "state")),
    Metric("s2s_stored_sweep_trials_asked", "Trials asked for", ("root", "sweep")),
    Metric("s2s_stored_sweep_best_recall_at_1", "Best validation recall at 1", ("root", "sweep")),
    Metric("s2s_registry_releases", "Complete releases of a name", ("root", "name")),
    Metric("s2s_registry_current_release", "1 for the release that is current", ("root", "name", "release")),
    Metric(
        "s2s_registry_promotion_timestamp_seconds",
        "When the current release was promoted, since 1970",
        ("root", "name"),
    ),
    Metric("s2s_exporter_scan_seconds", "How long the newest look at the storage took", ("root",)),
    Metric("s2s_exporter_scan_timestamp_seconds", "When the newest look at the storage ended, since 1970", ("root",)),
    Metric("s2s_exporter_faults", "Things in the storage that could not be read", ("root",)),
)

TRAINING = {metric.name: metric for metric in _TRAINING}
"""Gauges of training workers and sweep drivers; Prometheus sees them with `RAY_PREFIX`."""

STORAGE = {metric.name: metric for metric in _STORAGE}
"""Gauges of `s2s exporter`."""
