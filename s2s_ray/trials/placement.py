"""The resources of a trial, and how Ray Tune places trials on the cluster."""

from __future__ import annotations

import logging
import os

import ray
from ray import tune

from s2s_ray.config import Config
from s2s_ray.errors import PlacementError

_TUNE = {
    "RAY_AIR_NEW_OUTPUT": "0",  # the new output prints a table even with verbose=0
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the runs write their own logs
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a failed trial has no metric
}


def quieten_tune() -> None:
    """Turn off Ray Tune's own output; this library logs the trials."""
    for variable, value in _TUNE.items():
        os.environ.setdefault(variable, value)
    # It warns that Tune's own log files are missing.
    logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)


def trial_resources(config: Config) -> dict[str, float]:
    """Return the Ray resources of one trial, all of its workers together."""
    train = config.train
    worker = dict(train.resources_per_worker) or {"CPU": 1.0, **({"GPU": 1.0} if train.use_gpu else {})}
    return {name: amount * train.workers for name, amount in worker.items()}


def placement(config: Config) -> tune.PlacementGroupFactory:
    """Return the resources of Tune's actor for a trial.

    A trial of one worker trains in that actor. Several workers are Ray Train's, and the actor itself needs nothing.
    """
    minimum = {"memory": 2.0**20}  # bytes; Ray refuses an empty request
    return tune.PlacementGroupFactory([trial_resources(config) if config.train.workers == 1 else minimum])


def max_concurrent(config: Config, limit: int | None) -> int:
    """Return how many trials fit on the cluster at the same time, at most `limit`.

    Raises:
        PlacementError: the cluster cannot hold even one.
    """
    needed = trial_resources(config)
    available = ray.cluster_resources()  # type: ignore[no-untyped-call]
    if any(available.get(name, 0.0) < amount for name, amount in needed.items()):
        raise PlacementError(
            f"a trial needs {_resources(needed)} (train.workers={config.train.workers}, train.use_gpu="
            f"{config.train.use_gpu}, train.resources_per_worker={dict(config.train.resources_per_worker)!r}), but the "
            f"cluster has {_resources({name: available.get(name, 0.0) for name in needed})}, so no trial could ever "
            "start: lower these settings, or add nodes"
        )
    fit = min(int(available[name] / amount) for name, amount in needed.items())
    return min(fit, limit or fit)


def _resources(amounts: dict[str, float]) -> str:
    return ", ".join(f"{amount:g} {name}" for name, amount in amounts.items())
