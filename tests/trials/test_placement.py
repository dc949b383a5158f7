"""The resources of trials on a cluster, which is simulated."""

from __future__ import annotations

from typing import Any

import pytest
import ray

from s2s_ray.config import Config
from s2s_ray.errors import PlacementError
from s2s_ray.runtime import placement as cluster_placement
from s2s_ray.trials.placement import max_concurrent, placement, trial_demand


@pytest.fixture(autouse=True)
def cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 7.0, "GPU": 2.0}}])
    monkeypatch.setattr(cluster_placement, "node_groups", lambda: None)
    monkeypatch.setattr(cluster_placement, "may_scale", lambda nodes: False)


def config(**train: Any) -> Config:
    return Config.from_tree({"train": train})


@pytest.mark.parametrize(
    ("train", "resources", "fit"),
    [
        ({"workers": 1, "use_gpu": False}, {"CPU": 1}, 7),
        ({"workers": 1, "use_gpu": True}, {"CPU": 1, "GPU": 1}, 2),
        ({"workers": 2, "use_gpu": False, "resources_per_worker": {"CPU": 1.5}}, {"CPU": 3}, 2),
        ({"workers": 5, "min_workers": 2, "use_gpu": False, "resources_per_worker": {"CPU": 2}}, {"CPU": 4}, 1),
    ],
)
def test_as_many_trials_run_as_fit(train: dict[str, Any], resources: dict[str, float], fit: int) -> None:
    assert trial_demand(config(**train)).total == resources
    assert max_concurrent(config(**train), None) == fit
    assert max_concurrent(config(**train), 1) == 1
    assert max_concurrent(config(**train), 100) == fit


def test_a_trial_that_the_cluster_cannot_hold_is_refused() -> None:
    message = (
        r"a trial needs 6 CPU, 3 GPU \(train\.workers=3, train\.use_gpu=True, .*\), but the cluster has 7 CPU, 2 GPU, "
        "so a trial could never start"
    )
    with pytest.raises(PlacementError, match=message):
        max_concurrent(config(workers=3, use_gpu=True, resources_per_worker={"CPU": 2, "GPU": 1}), None)
    with pytest.raises(PlacementError, match=r"needs 1 TPU .*the cluster has 0 TPU"):
        max_concurrent(config(workers=1, resources_per_worker={"TPU": 1}), None)


def test_a_cluster_that_grows_is_asked_for_as_many_as_are_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_placement, "may_scale", lambda nodes: True)
    trial = config(workers=2, resources_per_worker={"CPU": 2})
    assert max_concurrent(trial, None) == 1
    assert max_concurrent(trial, 8) == 8
    assert max_concurrent(config(workers=2, resources_per_worker={"TPU": 1}), None) == 1


def test_only_a_single_worker_trains_in_tunes_actor() -> None:
    single, several = (placement(config(workers=workers, use_gpu=False)) for workers in (1, 2))
    assert single.bundles == [{"CPU": 1}]
    assert set(several.bundles[0]) == {"memory"}
