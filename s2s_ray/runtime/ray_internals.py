"""Private interfaces of Ray without a public counterpart. Each function does without if a release moves them.

`tests/test_private_interfaces.py` imports each of them and checks its signature, so that an upgrade reports the moves.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
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
