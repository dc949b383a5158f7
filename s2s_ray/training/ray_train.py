"""The training loop on Ray Train's workers: placement, recovery and metrics, without any of the maths."""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch

from s2s_ray import storage
from s2s_ray.config import Config, TrainConfig
from s2s_ray.errors import DivergedError, S2SError, StoppedError
from s2s_ray.runtime.cluster import in_thread, original_error
from s2s_ray.runtime.gauges import RayGauges
from s2s_ray.runtime.ray_internals import cancel_resource_request, quieten_train_reports, without_idle_helpers
from s2s_ray.storage.filesystem import open_filesystem
from s2s_ray.training.history import read_history
from s2s_ray.training.loop import Report, Trainer, check_ready
from s2s_ray.training.run import checkpoint_store, located, run_uri

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainResult:
    """The outcome of a run."""

    run: str
    """URI of the run."""
    best: str
    """URI of the checkpoint with the best validation recall."""
    newest: str
    """URI of the newest checkpoint."""
    history: list[dict[str, Any]]
    """The figures of each epoch."""


def train(
    config: Config,
    *,
    callbacks: Sequence[Any] = (),
    wrap_report: Callable[[Trainer, Report], Report] | None = None,
) -> TrainResult:
    """Train the configured run on the connected Ray cluster, or resume it.

    Args:
        config: the configuration of the run.
        callbacks: Ray Train's `UserCallback`s.
        wrap_report: returns, for a worker's trainer and Ray Train's report function, the function to which the worker
            reports its epochs, past ones first. By default it is Ray Train's report function itself.

    Raises:
        ConfigError, StorageError, RunError, CheckpointError: the run cannot start; nothing was changed.
        DivergedError: a loss is not finite.
        StoppedError: Ctrl-C; the message names the newest checkpoint and how to resume. Ray is shut down.
        ray.train.TrainingFailedError: workers failed more often than `train.max_failures`. If one of the errors above
            caused it, that error is raised instead.
    """
    config = located(config)
    check_ready(config)
    # Ray polls for reports every 2 s and blocks the loop meanwhile, which is too long if an epoch takes seconds.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    system, path = open_filesystem(storage.join(run_uri(config), "ray"))
    trainer = _TorchTrainer(
        _worker,
        train_loop_config={"config": config.model_dump(mode="json"), "wrap_report": wrap_report},
        scaling_config=_scaling(config.train),
        torch_config=ray.train.torch.TorchConfig(backend="nccl" if config.train.use_gpu else "gloo"),
        run_config=ray.train.RunConfig(
            # A new name for each start: Ray Train would resume from its own snapshot, but the store is the authority.
            name=f"attempt-{uuid.uuid4().hex[:8]}",
            storage_path=path,
            storage_filesystem=system,
            failure_config=ray.train.FailureConfig(max_failures=config.train.max_failures),
            callbacks=list(callbacks),
        ),
    )
    try:
        result = in_thread(trainer.fit)
    except KeyboardInterrupt:
        cancel_resource_request(trainer)
        ray.shutdown()  # ends the workers, so that they cannot prune the checkpoint that the message names
        raise StoppedError(_stopped(config)) from None
    except ray.train.TrainingFailedError as error:
        original = original_error(error)
        if isinstance(original, S2SError):
            raise original from error
        raise
    if result.metrics and "diverged" in result.metrics:
        raise DivergedError(result.metrics["diverged"])
    store = checkpoint_store(config)
    best, steps = store.best(), store.steps()
    assert best is not None, "the last epoch is always validated"
    return TrainResult(run_uri(config), store.uri(best), store.uri(steps[-1]), read_history(run_uri(config)))


class _TorchTrainer(ray.train.torch.TorchTrainer):
    """Ray Train's trainer without helpers that have nothing to do."""

    def _create_default_callbacks(self, *args: Any, **kwargs: Any) -> list[Any]:
        callbacks = super()._create_default_callbacks(*args, **kwargs)  # type: ignore[misc]  # mypy sees the old class
        return without_idle_helpers(callbacks)


def _scaling(train: TrainConfig) -> ray.train.ScalingConfig:
    """Return the number and resources of workers; an elastic group starts with as many of a range as fit."""
    elastic = train.min_workers is not None and train.min_workers < train.workers
    if elastic:
        # Ray's list of nodes is some seconds old: a group placed on a node that is gone must not wait long.
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "10")
    return ray.train.ScalingConfig(
        num_workers=(train.min_workers, train.workers) if elastic else train.workers,  # type: ignore[arg-type]
        elastic_resize_monitor_interval_s=train.resize_every_s,  # type: ignore[call-arg]  # mypy sees the old class
        use_gpu=train.use_gpu,
        resources_per_worker=dict(train.resources_per_worker) or None,
    )


def _worker(payload: dict[str, Any]) -> None:
    """Train on one worker; this is Ray Train's training function."""
    quieten_train_reports()
    config = Config.from_tree(payload["config"])
    device = ray.train.torch.get_device() if config.train.use_gpu else torch.device("cpu")
    torch.set_num_threads(config.train.threads)
    try:
        trainer, wrap_report = Trainer(config, device), payload["wrap_report"]
        gauges = RayGauges(run=config.train.name)
        if wrap_report is None:
            trainer.fit(ray.train.report, gauges=gauges)
        else:
            trainer.fit(wrap_report(trainer, ray.train.report), repeat=True, gauges=gauges)
    except DivergedError as error:
        # All workers stop at the same step, and a retry would only diverge again.
        logger.error("%s", error)
        ray.train.report({"diverged": str(error)})


def _stopped(config: Config) -> str:
    store = checkpoint_store(config)
    steps = store.steps()
    kept = f"the newest checkpoint is {store.uri(steps[-1])}" if steps else "there is no checkpoint yet"
    return f"training stopped: {kept}; the same command resumes run {config.train.name!r}"
