"""Experiment trackers, MLflow and Weights & Biases: they receive the entries of `history.json`.

A run uses those in `train.trackers`. They are set up in the environment of the workers as their own documentation
describes (MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME; WANDB_API_KEY, WANDB_PROJECT, WANDB_MODE). A resumed run
continues the same tracker run. A tracker that cannot be reached when the run starts is an error; one that is lost
later is logged and does not stop the run.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from s2s_ray.config import Config
from s2s_ray.errors import ConfigError
from s2s_ray.training.run import run_uri

logger = logging.getLogger(__name__)

EXPERIMENT = "s2s"
RUN_TAG = "s2s.run"
_MAX_PARAMETERS = 100  # that MLflow's server accepts in one request
_MAX_LENGTH = 500  # characters of a parameter's value that every version of MLflow's server accepts


class Tracker(Protocol):
    """The interface of a tracker, called by the logbook."""

    def epoch(self, metrics: Mapping[str, Any]) -> None:
        """Log the numeric metrics of an epoch at `metrics["step"]`."""

    def close(self, *, complete: bool) -> None:
        """End this attempt; `complete` if the run is."""


def check_installed(config: Config) -> None:
    """Raise ConfigError if a tracker in `train.trackers` is not installed."""
    for name in config.train.trackers:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(f"train.trackers={name!r} is not installed: pip install 's2s-ray[{name}]'")


def open_trackers(config: Config) -> list[Tracker]:
    """Return the trackers in `train.trackers`. Raises ConfigError if one is not installed or cannot be reached."""
    kinds: dict[str, Callable[[Config], Tracker]] = {"mlflow": MlflowTracker, "wandb": WandbTracker}
    found: list[Tracker] = []
    check_installed(config)
    for name in config.train.trackers:
        try:
            found.append(kinds[name](config))
        except Exception as error:  # clients of trackers raise anything
            raise ConfigError(f"train.trackers={name!r} cannot be used: {error}") from None
    return found


class MlflowTracker:
    """A run of MLflow, identified by its tag `s2s.run`."""

    def __init__(self, config: Config) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self._client = MlflowClient()
        tag = _searchable(run_uri(config))
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
        known = self._client.get_experiment_by_name(name)
        experiment = known.experiment_id if known is not None else self._client.create_experiment(name)
        runs = self._client.search_runs([experiment], f"tags.`{RUN_TAG}` = '{tag}'", max_results=1)
        if runs:
            self._run = runs[0].info.run_id
            self._client.update_run(self._run, status="RUNNING")
        else:
            created = self._client.create_run(experiment, run_name=config.train.name, tags={RUN_TAG: tag})
            self._run = created.info.run_id
            # Those that the run was started with: MLflow's parameters never change.
            given = [Param(key, str(value)[:_MAX_LENGTH]) for key, value in parameters(config)]
            for first in range(0, len(given), _MAX_PARAMETERS):
                self._client.log_batch(self._run, params=given[first : first + _MAX_PARAMETERS])

    def epoch(self, metrics: Mapping[str, Any]) -> None:
        from mlflow.entities import Metric

        with _warning("MLflow"):
            now, step = int(time.time() * 1000), int(metrics["step"])
            named = [Metric(_allowed(key), value, now, step) for key, value in numbers(metrics)]
            self._client.log_batch(self._run, named)

    def close(self, *, complete: bool) -> None:
        with _warning("MLflow"):
            self._client.set_terminated(self._run, "FINISHED" if complete else "KILLED")


class WandbTracker:
    """A run of Weights & Biases, whose id is a hash of the run's URI."""

    def __init__(self, config: Config) -> None:
        import wandb

        uri = run_uri(config)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", EXPERIMENT),
            id=hashlib.blake2b(uri.encode(), digest_size=8).hexdigest(),
            name=config.train.name,
            resume="allow",
            config=dict(parameters(config)),
        )

    def epoch(self, metrics: Mapping[str, Any]) -> None:
        with _warning("Weights & Biases"):
            self._run.log(dict(numbers(metrics)), step=int(metrics["step"]))

    def close(self, *, complete: bool) -> None:
        with _warning("Weights & Biases"):
            self._run.finish(exit_code=0 if complete else 1)


def _allowed(key: str) -> str:
    """Return a metric's name with the characters that MLflow allows: `fov=90.metres_median` has `fov_90` there."""
    return re.sub(r"[^\w\-./: ]", "_", key)


def _searchable(uri: str) -> str:
    """Return a URI as a tag for which MLflow can be searched: its search has no escape for quotes."""
    return uri.replace("'", "%27").replace("\\", "%5C")


def numbers(metrics: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield the metrics that are numbers."""
    for key, value in metrics.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield key, float(value)


def parameters(config: Config) -> Iterator[tuple[str, Any]]:
    """Yield every value of the configuration with its dotted key."""

    def below(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
        for key, value in tree.items():
            if isinstance(value, Mapping) and value:
                yield from below(value, f"{prefix}{key}.")
            else:
                yield f"{prefix}{key}", value

    yield from below(config.model_dump(mode="json", exclude={"tune"}), "")


@contextmanager
def _warning(tracker: str) -> Iterator[None]:
    """Log errors inside the block instead of raising them: training continues without the tracker."""
    try:
        yield
    except Exception as error:  # its client raises anything
        logger.warning("could not log to %s: %s", tracker, error)
