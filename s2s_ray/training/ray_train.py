"""The training loop on Ray Train's workers: placement, recovery and metrics, without any of the maths."""

from __future__ import annotations

import logging
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
from s2s_ray.errors import CheckpointError, DivergedError, RunError, StoppedError
from s2s_ray.runtime.cluster import in_thread
from s2s_ray.runtime.gauges import RayGauges
from s2s_ray.runtime.placement import Demand, WaitingForRoom, require_room
from s2s_ray.runtime.ray_internals import cancel_resource_request, quieten_train_reports
from s2s_ray.runtime.ray_settings import set_train_defaults
from s2s_ray.runtime.torch_trainer import QuietTorchTrainer
from s2s_ray.storage.filesystem import open_filesystem
from s2s_ray.storage.lease import Lease
from s2s_ray.training.guard import driving_run
from s2s_ray.training.history import read_history
from s2s_ray.training.loop import Report, Trainer
from s2s_ray.training.ready import check_ready
from s2s_ray.training.run import checkpoint_store, run_uri

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
    wait: bool = False,
) -> TrainResult:
    """Train the configured run on the connected Ray cluster, or resume it.

    Args:
        config: the configuration of the run.
        callbacks: Ray Train's `UserCallback`s.
        wrap_report: returns, for a worker's trainer and Ray Train's report function, the function to which the worker
            reports its epochs, past ones first. By default it is Ray Train's report function itself.
        wait: wait for the end of another driver of the run that is alive, instead of refusing.

    Raises:
        ConfigError, StorageError, RunError, CheckpointError: the run cannot start; nothing was changed.
        PlacementError: the cluster can never hold the workers.
        RunError: another process drives the run, or took it over because this one had shown no sign of life.
        DivergedError: a loss is not finite.
        StoppedError: Ctrl-C; the message names the newest checkpoint and how to resume. Ray is shut down.
        ray.train.TrainingFailedError: workers failed more often than `train.max_failures`. If one of the errors above
            caused it, that error is raised instead.
    """
    config = config.located()
    check_ready(config)
    demand = worker_demand(config.train, f"run {config.train.name!r}")
    require_room(demand)
    with driving_run(config, wait=wait) as lease:
        metrics = _fit(config, lease, demand, list(callbacks), wrap_report)
    if "diverged" in metrics:
        raise DivergedError(metrics["diverged"])
    store = checkpoint_store(config)
    best, steps = store.best(), store.steps()
    if best is None:
        raise CheckpointError(
            f"run {config.train.name!r} has finished, but none of its validated checkpoints below {store.root} can be "
            "read: restore one, or train again under another train.name"
        )
    return TrainResult(run_uri(config), store.uri(best), store.uri(steps[-1]), read_history(run_uri(config)))


def _fit(
    config: Config,
    lease: Lease,
    demand: Demand,
    callbacks: list[Any],
    wrap_report: Callable[[Trainer, Report], Report] | None,
) -> dict[str, Any]:
    """Run Ray Train's workers to the end, and return the metrics that they reported last."""
    system, path = open_filesystem(storage.join(run_uri(config), "ray"))
    payload = {"config": config.model_dump(mode="json"), "wrap_report": wrap_report, "fence": lease.fence}
    trainer = QuietTorchTrainer(
        _worker,
        train_loop_config=payload,
        scaling_config=_scaling(config.train),
        torch_config=ray.train.torch.TorchConfig(backend="nccl" if config.train.use_gpu else "gloo"),
        run_config=ray.train.RunConfig(
            # A new name for each start: Ray Train would resume from its own snapshot, but the store is the authority.
            name=f"attempt-{uuid.uuid4().hex[:8]}",
            storage_path=path,
            storage_filesystem=system,
            failure_config=ray.train.FailureConfig(max_failures=config.train.max_failures),
            callbacks=callbacks,
        ),
    )
    waiting = WaitingForRoom(demand)

    def watch() -> None:
        lease.raise_if_lost()
        waiting.log()

    try:
        result = in_thread(trainer.fit, watch)
    except KeyboardInterrupt:
        cancel_resource_request(trainer)
        ray.shutdown()  # ends the workers, so that they cannot prune the checkpoint that the message names
        raise StoppedError(_stopped(config)) from None
    except RunError:
        if lease.is_lost and ray.get_runtime_context().get_actor_id() is None:
            cancel_resource_request(trainer)
            ray.shutdown()  # ends the workers, which could not write anyway; in a trial Ray Tune ends them
        raise
    return result.metrics or {}


def worker_demand(train: TrainConfig, who: str) -> Demand:
    """Return the Ray resources of the workers of a run, of an elastic one as few as it may start with."""
    workers = train.workers if train.min_workers is None else train.min_workers
    settings = f"train.workers={train.workers}, train.use_gpu={train.use_gpu}"
    if train.min_workers is not None:
        settings += f", train.min_workers={train.min_workers}"
    settings += f", train.resources_per_worker={dict(train.resources_per_worker)!r}"
    return Demand(who, workers, worker_bundle(train), settings)


def worker_bundle(train: TrainConfig) -> dict[str, float]:
    """Return the Ray resources of one worker; Ray Train's own default is a GPU without a CPU."""
    bundle = dict(train.resources_per_worker) or {"CPU": 1.0}
    if train.use_gpu:
        bundle.setdefault("GPU", 1.0)
    return bundle


def _scaling(train: TrainConfig) -> ray.train.ScalingConfig:
    """Return the number and resources of workers; an elastic group starts with as many of a range as fit."""
    elastic = train.min_workers is not None and train.min_workers < train.workers
    set_train_defaults(elastic=elastic)
    return ray.train.ScalingConfig(
        num_workers=(train.min_workers, train.workers) if elastic else train.workers,  # type: ignore[arg-type]
        elastic_resize_monitor_interval_s=train.resize_every_s,  # type: ignore[call-arg]  # mypy sees the old class
        use_gpu=train.use_gpu,
        resources_per_worker=worker_bundle(train),
    )


def _worker(payload: dict[str, Any]) -> None:
    """Train on one worker; this is Ray Train's training function."""
    quieten_train_reports()
    config = Config.from_tree(payload["config"])
    device = ray.train.torch.get_device() if config.train.use_gpu else torch.device("cpu")
    torch.set_num_threads(config.train.threads)
    try:
        trainer, wrap_report = Trainer(config, device), payload["wrap_report"]
        report = ray.train.report if wrap_report is None else wrap_report(trainer, ray.train.report)
        check = payload["fence"].check if ray.train.get_context().get_world_rank() == 0 else _no_check
        gauges = RayGauges(run=config.train.name)
        trainer.fit(report, repeat=wrap_report is not None, gauges=gauges, check=check)
    except DivergedError as error:
        # All workers stop at the same step, and a retry would only diverge again.
        logger.error("%s", error)
        ray.train.report({"diverged": str(error)})


def _no_check() -> None:
    """Do nothing: only the first worker writes."""


def _stopped(config: Config) -> str:
    store = checkpoint_store(config)
    steps = store.steps()
    kept = f"the newest checkpoint is {store.uri(steps[-1])}" if steps else "there is no checkpoint yet"
    return f"training stopped: {kept}; the same command resumes run {config.train.name!r}"
