"""Private interfaces of Ray without a public counterpart. Each function does without if a release moves them.

`tests/test_private_interfaces.py` imports each of them and checks its signature, so that an upgrade reports the moves.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

logger = logging.getLogger(__name__)

_REPORT_LOGGER = "ray/train/v2/_internal/execution/context.py"  # Ray names it after its source file


def without_idle_helpers(callbacks: Sequence[Any]) -> list[Any]:
    """Return Ray Train's callbacks without those whose helper actors have nothing to do.

    Each helper is a process beside the workers. One hands out Ray Data's data sets, but workers read their own. The
    other asks the dashboard every second whether the controller is alive, so it needs a dashboard. There is no public
    way to remove callbacks; if Ray has moved them, all of them stay.
    """
    try:
        from ray._private.worker import get_dashboard_url
        from ray.train.v2._internal.callbacks import DatasetsCallback
        from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

        idle: list[type] = [DatasetsCallback]
        if not get_dashboard_url():  # type: ignore[no-untyped-call]
            idle.append(PlacementGroupCleanerCallback)
        return [callback for callback in callbacks if not isinstance(callback, tuple(idle))]
    except (ImportError, AttributeError, TypeError) as error:
        logger.debug("Ray Train keeps all of its helpers: %s", error)
        return list(callbacks)


def cancel_resource_request(trainer: Any) -> None:
    """Cancel the request that a Ray Train trainer has made to the autoscaler.

    Ray Train cancels it on Ctrl-C only if it runs in the main thread. Otherwise the request keeps the nodes until it
    expires, after three minutes, which is also what happens if Ray has moved the interface.
    """
    try:
        from ray.train.v2._internal.execution.scaling_policy.autoscaling_coordinator_client import (
            TrainAutoscalingCoordinatorClient,
        )

        client = TrainAutoscalingCoordinatorClient(f"train-{trainer.train_run_context.run_id}")
        client.cancel_resource_request()
    except (ImportError, AttributeError, TypeError) as error:
        logger.debug("the resource request expires by itself: %s", error)


def quieten_train_reports() -> None:
    """Turn off Ray Train's log line for every report on every worker.

    Its logger has no public name; if Ray has renamed it, the lines appear.
    """
    for name in list(logging.root.manager.loggerDict):
        if name.endswith(_REPORT_LOGGER):
            logging.getLogger(name).setLevel(logging.WARNING)


def keep_credentials() -> None:
    """Keep Ray Tune from copying the AWS credentials of this process into the runtime environment of its trials.

    Ray writes runtime environments to its logs and shows them in its dashboard. Trials take their credentials from the
    environment of their node, as training workers do. If Ray has moved the list of copied variables, a warning says so.
    """
    try:
        from ray.tune.execution import class_cache

        copied = class_cache.ENV_VARS_TO_PROPAGATE
        copied.difference_update([name for name in copied if name.startswith("AWS_")])
    except (ImportError, AttributeError, TypeError) as error:
        logger.warning("Ray Tune may write AWS credentials to its logs: %s", error)


@dataclass(frozen=True)
class NodeGroup:
    """Equal nodes that an autoscaler may start."""

    name: str
    resources: dict[str, float]
    most: int | None
    """Their largest number; None if it is not limited."""


def node_groups() -> list[NodeGroup] | None:
    """Return the groups of nodes that the cluster's autoscaler manages; None if it does not report them."""
    try:
        from ray._private.state import state

        config = state.get_cluster_config()
        if config is None or not config.node_group_configs:
            return None
        return [
            NodeGroup(
                group.name,
                {name: float(amount) for name, amount in group.resources.items()},
                None if group.max_count < 0 else int(group.max_count),
            )
            for group in config.node_group_configs
        ]
    except (ImportError, AttributeError, TypeError) as error:
        logger.debug("the limits of the autoscaler are unknown: %s", error)
        return None


def may_scale(nodes: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether an autoscaler manages the cluster; without the interface, whether its nodes say so.

    KubeRay labels its nodes. A cluster with the second version of the autoscaler counts as one that scales, because
    that version reports its nodes late or not at all. The first version reports types of nodes with names; a cluster
    without autoscaler has `node_ID` there.

    Args:
        nodes: the live nodes, as `ray.nodes` returns them.
    """
    if any((node.get("Labels") or {}).get("ray.io/node-group") for node in nodes):
        return True
    try:
        from ray.autoscaler.v2.utils import is_autoscaler_v2
        from ray.experimental.internal_kv import _internal_kv_get

        if is_autoscaler_v2(fetch_from_server=True):  # what it keeps may be of another cluster
            return True
        report = json.loads(_internal_kv_get("__autoscaling_status") or b"{}").get("autoscaler_report") or {}
        types = {*report.get("active_nodes", {}), *report.get("pending_launches", {})}
        return any(re.fullmatch("node_[0-9a-f]{20,}", name) is None for name in types)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        logger.debug("the autoscaler's report cannot be read: %s", error)
        return False
