"""Training on Ray without a cluster: the number of workers, and which error of several workers is raised."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import ray.train

from s2s_ray.config import TrainConfig, load_config
from s2s_ray.errors import CheckpointError, ConfigError, DivergedError, RunError, StorageError
from s2s_ray.training import ray_train
from s2s_ray.training.guard import driving_run
from s2s_ray.training.ray_train import _scaling, train, worker_demand


@pytest.mark.parametrize(
    ("settings", "workers"),
    [({"workers": 3}, 3), ({"workers": 3, "min_workers": 3}, 3), ({"workers": 3, "min_workers": 1}, (1, 3))],
)
def test_only_fewer_workers_make_a_run_elastic(
    settings: dict[str, int], workers: int | tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "7")  # the user's own value stays
    scaling = _scaling(TrainConfig(**settings, resize_every_s=5))
    assert scaling.num_workers == workers
    assert scaling.elastic_resize_monitor_interval_s == 5  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("settings", "bundle"),
    [
        ({}, {"CPU": 1}),
        ({"use_gpu": True}, {"CPU": 1, "GPU": 1}),
        ({"use_gpu": True, "resources_per_worker": {"CPU": 4}}, {"CPU": 4, "GPU": 1}),
        ({"use_gpu": True, "resources_per_worker": {"GPU": 0.5, "fast": 1}}, {"GPU": 0.5, "fast": 1}),
    ],
)
def test_a_worker_asks_ray_for_what_the_cluster_was_checked_for(
    settings: dict[str, Any], bundle: dict[str, float]
) -> None:
    train = TrainConfig(workers=3, min_workers=2, **settings)
    assert _scaling(train).resources_per_worker == worker_demand(train, "run").bundle == bundle
    assert worker_demand(train, "run").count == 2


def test_a_minimum_above_the_number_of_workers_is_refused() -> None:
    with pytest.raises(ConfigError, match="min_workers=3 is more than workers=2"):
        load_config("tiny", ["train.workers=2", "train.min_workers=3"])


@pytest.mark.parametrize("fault", [StorageError("s3://b/run cannot be reached"), DivergedError("step 3"), None])
def test_the_librarys_own_error_of_a_worker_is_raised(
    fault: Exception | None, monkeypatch: pytest.MonkeyPatch, tmp_path: str
) -> None:
    """The errors of the other workers only follow from it."""
    lost = RuntimeError("Connection closed by peer")
    raised = ray.train.WorkerGroupError("many lines", {0: lost, **({1: fault} if fault else {})})

    def fail() -> None:
        raise raised

    monkeypatch.setattr(ray_train, "check_ready", lambda config: None)
    monkeypatch.setattr(ray_train, "require_room", lambda demand: None)
    monkeypatch.setattr(
        ray_train, "QuietTorchTrainer", lambda *_, **__: type("Trainer", (), {"fit": staticmethod(fail)})
    )
    with pytest.raises(type(fault or raised)) as caught:
        train(load_config("tiny", [f"train.storage={tmp_path}"]))
    assert caught.value is (fault or raised)


def test_a_finished_run_whose_checkpoints_are_all_damaged_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(ray_train, "check_ready", lambda config: None)
    monkeypatch.setattr(ray_train, "require_room", lambda demand: None)
    monkeypatch.setattr(ray_train, "_fit", lambda *_: {})
    with pytest.raises(CheckpointError, match=r"run '.*' has finished, but none of its validated checkpoints below .*"):
        train(load_config("tiny", [f"train.storage={tmp_path}"]))


def test_a_run_that_another_process_drives_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ray_train, "check_ready", lambda config: None)
    monkeypatch.setattr(ray_train, "require_room", lambda demand: None)
    monkeypatch.setattr(ray_train, "_fit", lambda *_: pytest.fail("two drivers"))
    config = load_config("tiny", [f"train.storage={tmp_path}"])
    with driving_run(config), pytest.raises(RunError, match=r"is already run by PID \d+ on .*, which is alive"):
        train(config)
