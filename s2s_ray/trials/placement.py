"""The resources of a trial, and how Ray Tune places trials on the cluster."""

from __future__ import annotations

from ray import tune

from s2s_ray.config import Config
from s2s_ray.runtime.placement import Capacity, Demand, require_room
from s2s_ray.training.ray_train import worker_demand


def trial_demand(config: Config) -> Demand:
    """Return the Ray resources of one trial, all of its workers together."""
    return worker_demand(config.train, "a trial")


def placement(config: Config) -> tune.PlacementGroupFactory:
    """Return the resources of Tune's actor for a trial.

    A trial of one worker trains in that actor. Several workers are Ray Train's, and the actor itself needs nothing.
    """
    minimum = {"memory": 2.0**20}  # bytes; Ray refuses an empty request
    return tune.PlacementGroupFactory([dict(trial_demand(config).bundle) if config.train.workers == 1 else minimum])


def max_concurrent(config: Config, limit: int | None) -> int:
    """Return how many trials fit on the cluster at the same time, at most `limit`.

    On a cluster that may grow by an unknown number of nodes these are `limit`, or as many as fit on its nodes now.

    Raises:
        PlacementError: the cluster cannot hold even one.
    """
    demand = trial_demand(config)
    room = require_room(demand)
    if room is None:
        return limit or max(Capacity.of_cluster().room(demand.bundle) // demand.count, 1)
    return min(room // demand.count, limit or room)
