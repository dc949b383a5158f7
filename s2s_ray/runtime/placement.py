"""The check that a cluster can hold what a training, a sweep, a preparation or the building of an index needs.

Ray waits without an end for resources that no node has. So the demand is compared with all nodes of the cluster, and
with those that its autoscaler may add, before anything starts. Other work on the cluster does not count: it ends.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.util import placement_group_table

from s2s_ray.errors import PlacementError
from s2s_ray.runtime.ray_internals import may_scale, node_groups

logger = logging.getLogger(__name__)

WAITING_EVERY_S = 30.0
_GROUP_LABEL = "ray.io/node-group"


@dataclass(frozen=True)
class Demand:
    """Equal bundles of Ray resources that work needs at the same time, each of them on one node."""

    who: str
    """What needs them: "a trial", "run 'first'"."""
    count: int
    bundle: Mapping[str, float]
    settings: str
    """The settings that it follows from, with their values."""

    @property
    def total(self) -> dict[str, float]:
        """The resources of all bundles together."""
        return {name: amount * self.count for name, amount in self.bundle.items()}


@dataclass(frozen=True)
class Capacity:
    """The nodes of a cluster, and those that it may become."""

    nodes: Sequence[Mapping[str, float]]
    """Resources of each node, those in use included; of a group of nodes its largest number."""
    scales: bool
    """True if an autoscaler adds nodes whose number or size is not known."""

    @classmethod
    def of_cluster(cls) -> Capacity:
        """Return the capacity of the connected cluster."""
        live = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
        groups = node_groups()
        if groups is None:
            return cls([node["Resources"] for node in live], may_scale(live))
        names = {group.name for group in groups}
        own = [node["Resources"] for node in live if (node.get("Labels") or {}).get(_GROUP_LABEL) not in names]
        unlimited = any(group.most is None for group in groups)
        return cls([*own, *(group.resources for group in groups for _ in range(group.most or 0))], unlimited)

    def room(self, bundle: Mapping[str, float]) -> int:
        """Return how many such bundles all nodes together hold."""
        return sum(_room(node, bundle) for node in self.nodes)

    def has(self, names: Sequence[str]) -> dict[str, float]:
        """Return the amounts of some resources of all nodes together."""
        return {name: sum(node.get(name, 0.0) for node in self.nodes) for name in names}


def require_room(demand: Demand) -> int | None:
    """Make sure that the connected cluster can hold a demand once other work has ended.

    Returns:
        How many of its bundles fit on the cluster; None if the cluster may grow by an unknown number of nodes.

    Raises:
        PlacementError: it can never hold the demand.
    """
    capacity = Capacity.of_cluster()
    room = capacity.room(demand.bundle)
    if capacity.scales:
        return None
    if room >= demand.count:
        return room
    has = capacity.has(list(demand.bundle))
    split = ""
    if all(has[name] >= amount for name, amount in demand.total.items()):
        each = f"each of {demand.count} parts needs {show(demand.bundle)} on one node"
        split = f" on {len(capacity.nodes)} nodes, and {each}, for which there is room {room} times"
    raise PlacementError(
        f"{demand.who} needs {show(demand.total)} ({demand.settings}), but the cluster has {show(has)}{split}, so "
        f"{demand.who} could never start: lower these settings, or add nodes"
    )


class WaitingForRoom:
    """Log lines while work waits for its resources.

    Args:
        demand: what it needs.
    """

    def __init__(self, demand: Demand) -> None:
        self._demand, self._next = demand, time.monotonic() + WAITING_EVERY_S

    def log(self) -> None:
        """Log what the work waits for, if it does and the last line is `WAITING_EVERY_S` old."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + WAITING_EVERY_S
        wanted = dict(self._demand.bundle)
        if any(_is_waiting(group, wanted) for group in placement_group_table().values()):
            free = ray.available_resources()  # type: ignore[no-untyped-call]
            logger.warning(
                "%s is waiting for %s; the cluster has %s free",
                *(self._demand.who, show(self._demand.total), show({name: free.get(name, 0.0) for name in wanted})),
            )


def show(amounts: Mapping[str, float]) -> str:
    """Return resources as text: 4 CPU, 1 GPU."""
    return ", ".join(f"{amount:g} {name}" for name, amount in amounts.items())


def _room(node: Mapping[str, float], bundle: Mapping[str, float]) -> int:
    return min((math.floor(node.get(name, 0.0) / amount + 1e-9) for name, amount in bundle.items()), default=1)


def _is_waiting(group: Mapping[str, Any], bundle: Mapping[str, float]) -> bool:
    bundles = group["bundles"].values()
    return group["state"] == "PENDING" and any(bundle.items() <= other.items() for other in bundles)
