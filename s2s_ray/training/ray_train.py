"""The training loop on Ray Train's workers: placement, recovery and metrics; nothing of the maths."""

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
from s2s_ray.errors import DivergedError, StoppedError
from s2s_ray.runtime.cluster import (
    in_thread,
)
from s2s_ray.runtime.gauges import RayGauges
from s2s_ray.storage.filesystem import open_filesystem
from s2s_ray.training.loop import (
    Report,
    Trainer,
    check_ready,
)
from s2s_ray.training.run import checkpoint_store, located, run_uri

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainResult:
    """What a run left: its URI, the best and the newest checkpoint, and one entry of figures an epoch."""

    run: str
    best: str
    newest: str
    history: list[dict[str, Any]]


def train(
    config: Config,
    *,
    callbacks: Sequence[Any] = (),
    tell: Callable[[Trainer, Report], Report] | None = None,
) -> TrainResult:
    """Train the configured run on the connected Ray cluster, or go on with it.

    Args:
        callbacks: Ray Train's `UserCallback`s.
        tell: makes what each worker reports its epochs to, past ones first, out of its trainer and Ray Train's
            report; default: Ray Train's report itself.

    Raises:
        ConfigError, StorageError, RunError, CheckpointError: the run cannot start; nothing was changed.
        DivergedError: a loss is not finite.
        StoppedError: Ctrl-C; the message names the newest checkpoint and how to go on. Ray is shut down.
        ray.train.TrainingFailedError: workers failed more often than `train.max_failures`; where one of the errors
            above ended them, it is that error.
    """
    config = located(config)
    check_ready(config)
    # Ray polls reports every 2 s and blocks the loop meanwhile: too long where an epoch takes seconds.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    system, path = open_filesystem(storage.join(run_uri(config), "ray"))
    trainer = _TorchTrainer(
        _worker,
        train_loop_config={"config": config.model_dump(mode="json"), "tell": tell},
        scaling_config=_scaling(config.train),
        torch_config=ray.train.torch.TorchConfig(backend="nccl" if config.train.use_gpu else "gloo"),
        run_config=ray.train.RunConfig(
            # Never the run's own name: Ray Train would resume from its snapshot, and the store is the authority.
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
        _ask_for_nothing(trainer)
        ray.shutdown()  # ends the workers: what is named below is not pruned by them any more
        raise StoppedError(_stopped(config)) from None
    except ray.train.WorkerGroupError as error:
        cause = _cause(error)
        if cause is None:
            raise
        raise cause from error
    if result.metrics and "diverged" in result.metrics:
        raise DivergedError(result.metrics["diverged"])
    store = checkpoint_store(config)
    best, steps = store.best(), store.steps()
    assert best is not None, "the last epoch is always validated"
    history = storage.read_json(storage.join(run_uri(config), "history.json"))
    return TrainResult(run_uri(config), store.uri(best), store.uri(steps[-1]), history)


class _TorchTrainer(ray.train.torch.TorchTrainer):
    """Ray Train's, without helpers that have nothing to do; each is a process beside the workers."""

    def _create_default_callbacks(self) -> list[Any]:
        from ray._private.worker import get_dashboard_url
        from ray.train.v2._internal.callbacks import DatasetsCallback
        from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

        idle: list[type] = [DatasetsCallback]  # hands out Ray Data's data sets: workers read their own
        # The other asks the dashboard every second whether the controller is alive.
        if not get_dashboard_url():  # type: ignore[no-untyped-call]
            idle.append(PlacementGroupCleanerCallback)
        callbacks = super()._create_default_callbacks()  # type: ignore[misc]  # mypy sees the old class
        return [callback for callback in callbacks if not isinstance(callback, tuple(idle))]


def _scaling(train: TrainConfig) -> ray.train.ScalingConfig:
    """How many workers, where. Elastic ones are a range: each start of the group takes as many as there is room for."""
    elastic = train.min_workers is not None and train.min_workers < train.workers
    if elastic:
        # Ray's list of nodes is some seconds old: a group with a place on a node that has gone must not wait long.
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "10")
    return ray.train.ScalingConfig(
        num_workers=(train.min_workers, train.workers) if elastic else train.workers,  # type: ignore[arg-type]
        elastic_resize_monitor_interval_s=train.resize_every_s,  # type: ignore[call-arg]  # mypy sees the old class
        use_gpu=train.use_gpu,
        resources_per_worker=dict(train.resources_per_worker) or None,
    )


def _ask_for_nothing(trainer: ray.train.torch.TorchTrainer) -> None:
    """Take back what Ray Train asked of the autoscaler, which else keeps the nodes three minutes more.

    Ray Train does it itself where it handles Ctrl-C, which is in the main thread only.
    """
    from ray.train.v2._internal.execution.scaling_policy.autoscaling_coordinator_client import (
        TrainAutoscalingCoordinatorClient,
    )

    run = trainer.train_run_context.run_id  # type: ignore[attr-defined]  # mypy sees the old class
    TrainAutoscalingCoordinatorClient(f"train-{run}").cancel_resource_request()


def _cause(error: ray.train.WorkerGroupError) -> Exception | None:
    """The error of this library that ended a worker, where there is one: the other workers' only follow from it."""
    failures = error.worker_failures.values()
    return next((cause for cause in failures if type(cause).__module__.startswith("s2s_ray.")), None)


def _worker(payload: dict[str, Any]) -> None:
    """What each worker runs."""
    _quieten_reports()
    config = Config.from_tree(payload["config"])
    device = ray.train.torch.get_device() if config.train.use_gpu else torch.device("cpu")
    torch.set_num_threads(config.train.threads)
    try:
        trainer, tell = Trainer(config, device), payload["tell"]
        gauges = RayGauges(run=config.train.name)
        if tell is None:
            trainer.fit(ray.train.report, gauges=gauges)
        else:
            trainer.fit(tell(trainer, ray.train.report), repeat=True, gauges=gauges)
    except DivergedError as error:
        # All workers stop at the same step; trying again would only diverge again.
        logger.error("%s", error)
        ray.train.report({"diverged": str(error)})


def _quieten_reports() -> None:
    """Ray Train logs every report on every worker, with a logger named after its source file."""
    for name in list(logging.root.manager.loggerDict):
        if name.endswith("ray/train/v2/_internal/execution/context.py"):
            logging.getLogger(name).setLevel(logging.WARNING)


def _stopped(config: Config) -> str:
    store = checkpoint_store(config)
    steps = store.steps()
    kept = f"the newest checkpoint is {store.uri(steps[-1])}" if steps else "there is no checkpoint yet"
    return f"training stopped: {kept}; the same command goes on with run {config.train.name!r}"
