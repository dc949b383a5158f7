"""What a trial of the trainer asks of the cluster, and how Ray Tune is told."""

from __future__ import annotations

import logging
import os

import ray
from ray import tune

from s2s_ray.config import Config
from s2s_ray.errors import PlacementError

_TUNE = {
    "RAY_AIR_NEW_OUTPUT": "0",  # this library's callbacks are the output
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the runs log for themselves
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a failed trial has no metric
}


def quieten_tune() -> None:
    """Leave the output to this library."""
    for variable, value in _TUNE.items():
        os.environ.setdefault(variable, value)
    logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)  # it misses Tune's own logs


def asked(config: Config) -> dict[str, float]:
    """Ray resources of one trial, all its workers together."""
    one = dict(config.train.resources_per_worker) or {"CPU": 1.0, **({"GPU": 1.0} if config.train.use_gpu else {})}
    return {name: amount * config.train.workers for name, amount in one.items()}


def placement(config: Config) -> tune.PlacementGroupFactory:
    """Where a trial runs: a single worker is Tune's actor; several are Ray Train's, and the actor asks for nothing."""
    hardly_anything = {"memory": 2.0**20}  # bytes; an empty request is not allowed
    return tune.PlacementGroupFactory([asked(config) if config.train.workers == 1 else hardly_anything])


def slots(config: Config, most: int | None) -> int:
    """How many trials run at a time, at most `most`. Raises PlacementError where not even one ever could."""
    wanted = asked(config)
    there = ray.cluster_resources()  # type: ignore[no-untyped-call]
    short = [name for name, amount in wanted.items() if there.get(name, 0.0) < amount]
    if short:
        raise PlacementError(
            f"a trial asks for {_told(wanted)} (train.workers={config.train.workers}, train.use_gpu="
            f"{config.train.use_gpu}, train.resources_per_worker={dict(config.train.resources_per_worker)!r}), the "
            f"cluster has {_told({name: there.get(name, 0.0) for name in wanted})}: no trial could ever start"
        )
    fit = min(int(there[name] / amount) for name, amount in wanted.items())
    return min(fit, most or fit)


def _told(resources: dict[str, float]) -> str:
    return ", ".join(f"{amount:g} {name}" for name, amount in resources.items())
