"""The library's settings of Ray: environment variables and log levels.

Ray reads these variables from the environment of the process that starts the work, and passes them on to its own
actors; there is no parameter for them. Each applies only where the user has not set it.

| variable | value | reason |
|---|---|---|
| `RAY_TRAIN_HEALTH_CHECK_INTERVAL_S` | 0.5 | Ray polls for reports every 2 s and blocks the loop meanwhile |
| `RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S` | 10, elastic runs | a group on a node that is gone must not wait long |
| `RAY_TRAIN_ENABLE_PREEMPTION_WATCHER` | 0, private clusters | it polls for a notice that this machine never gets |
| `RAY_AIR_NEW_OUTPUT` | 0, sweeps and studies | the new output prints a table even with `verbose=0` |
| `TUNE_DISABLE_AUTO_CALLBACK_LOGGERS` | 1, sweeps and studies | the runs write their own logs |
| `TUNE_DISABLE_STRICT_METRIC_CHECKING` | 1, sweeps and studies | a failed trial has no metric |
| `RAY_ENABLE_AUTO_CONNECT` | 0 | work that goes on after Ctrl-C would start a second cluster |
| `RAY_AUTH_MODE`, `RAY_AUTH_TOKEN` | see `cluster.ray_cluster` | a private cluster is closed to other users |
"""

from __future__ import annotations

import logging
import os


def set_train_defaults(*, elastic: bool) -> None:
    """Set the variables of Ray Train, before a trainer is made."""
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    if elastic:
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "10")


def forbid_auto_start() -> None:
    """Keep Ray from starting a cluster when it is called without one, before Ray is imported."""
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")


def set_private_defaults() -> None:
    """Set the variables of a cluster on this machine, before it is started."""
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")


def quieten_tune() -> None:
    """Turn off Ray Tune's own output; this library logs the trials."""
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")
    # It warns that Tune's own log files are missing.
    logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)


def quieten_data() -> None:
    """Turn off Ray Data's progress bars and log lines; this library shows the progress."""
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # it warns about the line above
    logging.getLogger("ray.data._internal.execution.streaming_executor").setLevel(logging.WARNING)
