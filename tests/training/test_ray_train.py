"""What of training on Ray needs no cluster: how many workers are asked for, and whose error is told."""

from __future__ import annotations

import pytest
import ray.train

from s2s_ray.config import (
    TrainConfig,
    load_config,
)
from s2s_ray.errors import ConfigError, StorageError
from s2s_ray.training.ray_train import _cause, _scaling


@pytest.mark.parametrize(
    ("settings", "workers"),
    [({"workers": 3}, 3), ({"workers": 3, "min_workers": 3}, 3), ({"workers": 3, "min_workers": 1}, (1, 3))],
)
def test_only_fewer_workers_make_a_run_elastic(
    settings: dict[str, int], workers: int | tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "7")  # the user's own stays
    scaling = _scaling(TrainConfig(**settings, resize_every_s=5))
    assert scaling.num_workers == workers
    assert scaling.elastic_resize_monitor_interval_s == 5  # type: ignore[attr-defined]


def test_more_workers_at_least_than_at_most_are_refused() -> None:
    with pytest.raises(ConfigError, match="min_workers=3 is more than workers=2"):
        load_config("tiny", ["train.workers=2", "train.min_workers=3"])


def test_of_several_workers_errors_ours_is_the_one_that_is_told() -> None:
    lost, fault = RuntimeError("Connection closed by peer"), StorageError("s3://b/run cannot be reached")
    assert _cause(ray.train.WorkerGroupError("many lines", {0: lost, 1: fault})) is fault
    assert _cause(ray.train.WorkerGroupError("many lines", {0: lost})) is None
