"""Work that a cluster can never hold is refused, whatever the resource; the cluster is simulated."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
import ray
from ray._private.state import state
from ray.autoscaler.v2 import utils
from ray.core.generated import autoscaler_pb2
from ray.experimental import internal_kv

from s2s_ray.errors import PlacementError
from s2s_ray.runtime import placement
from s2s_ray.runtime.placement import Demand, WaitingForRoom, require_room


class Cluster:
    """Nodes, and what an autoscaler reports."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.nodes: list[dict[str, Any]] = []
        self.limits: Any = None
        self.report: dict[str, Any] = {}
        self.second_version = False
        monkeypatch.setattr(ray, "nodes", lambda: self.nodes)
        monkeypatch.setattr(state, "get_cluster_config", lambda: self.limits)
        monkeypatch.setattr(utils, "is_autoscaler_v2", lambda fetch_from_server: self.second_version)
        monkeypatch.setattr(internal_kv, "_internal_kv_get", lambda key: json.dumps({"autoscaler_report": self.report}))

    def add(self, alive: bool = True, group: str = "", **resources: float) -> None:
        labels = {"ray.io/node-group": group} if group else {}
        self.nodes.append({"Alive": alive, "Labels": labels, "Resources": {"memory": 1e9, **resources}})

    def limit(self, name: str, most: int, **resources: int) -> None:
        self.limits = self.limits or vars(autoscaler_pb2)["ClusterConfig"]()
        self.limits.node_group_configs.add(name=name, max_count=most, resources=resources)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    return Cluster(monkeypatch)


def demand(count: int, **bundle: float) -> Demand:
    return Demand("run 'first'", count, bundle, "train.workers=2")


def refused(asked: Demand) -> str:
    with pytest.raises(PlacementError) as caught:
        require_room(asked)
    return str(caught.value)


def test_what_all_nodes_together_have_is_not_enough(cluster: Cluster) -> None:
    cluster.add(CPU=4)
    cluster.add(CPU=4, GPU=1)
    cluster.add(alive=False, CPU=64, GPU=8, TPU=4)
    assert require_room(demand(8, CPU=1)) == 8
    assert require_room(demand(1, CPU=1, GPU=1)) == 1
    assert refused(demand(9, CPU=1)) == (
        "run 'first' needs 9 CPU (train.workers=2), but the cluster has 8 CPU, so run 'first' could never start: lower "
        "these settings, or add nodes"
    )
    assert "needs 2 CPU, 2 GPU (train.workers=2), but the cluster has 8 CPU, 1 GPU," in refused(demand(2, CPU=1, GPU=1))
    assert "needs 0.5 TPU (train.workers=2), but the cluster has 0 TPU," in refused(demand(1, TPU=0.5))
    assert "needs 3e+09 memory" in refused(demand(1, memory=3e9))


def test_the_second_version_of_the_autoscaler_may_add_nodes(cluster: Cluster) -> None:
    cluster.add(CPU=0)
    cluster.second_version = True
    assert require_room(demand(2, CPU=1, trainer=1)) is None


def test_a_bundle_that_no_node_holds(cluster: Cluster) -> None:
    for _ in range(4):
        cluster.add(CPU=4)
    assert require_room(demand(4, CPU=4)) == 4
    assert "has 16 CPU on 4 nodes, and each of 2 parts needs 8 CPU on one node, for which there is room 0 times" in (
        refused(demand(2, CPU=8))
    )
    cluster.add(CPU=8)
    assert "on 5 nodes, and each of 2 parts needs 8 CPU on one node, for which there is room 1 times" in (
        refused(demand(2, CPU=8))
    )


def test_fractions_fit_as_often_as_they_do_for_ray(cluster: Cluster) -> None:
    cluster.add(GPU=1)
    assert require_room(demand(10, GPU=0.1)) == 10
    assert "needs 1.1 GPU" in refused(demand(11, GPU=0.1))


def test_the_limits_of_the_autoscaler_count(cluster: Cluster) -> None:
    cluster.add(CPU=2, group="head")
    cluster.add(CPU=4, group="small")
    cluster.limit("small", 3, CPU=4)
    assert require_room(demand(7, CPU=2)) == 7, "the head's one and two on each of three nodes"
    assert "has 14 CPU" in refused(demand(8, CPU=2))
    assert "needs 8 CPU" in refused(demand(1, CPU=8))
    cluster.limit("large", 1, CPU=16, GPU=4)
    assert require_room(demand(4, GPU=1)) == 4
    cluster.limit("any", -1, CPU=1)
    assert require_room(demand(10000, CPU=1)) is None


@pytest.mark.parametrize("version", ["label", "report", "pending"])
def test_an_autoscaler_without_known_limits_is_not_contradicted(cluster: Cluster, version: str) -> None:
    cluster.add(CPU=2, group="head" if version == "label" else "")
    if version == "report":
        cluster.report = {"active_nodes": {"ray.head.default": 1}}
    elif version == "pending":
        cluster.report = {"active_nodes": {}, "pending_launches": {"gpu": 1}}
    assert require_room(demand(100, CPU=1)) is None


def test_a_cluster_without_autoscaler_reports_its_nodes_by_id(cluster: Cluster) -> None:
    cluster.add(CPU=2)
    cluster.report = {"active_nodes": {f"node_{'ab12' * 14}": 1}}
    assert "needs 100 CPU" in refused(demand(100, CPU=1))


def test_waiting_is_logged(cluster: Cluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    now, groups = [0.0], {"a": {"state": "PENDING", "bundles": {0: {"CPU": 1.0, "memory": 2.0}}}}
    monkeypatch.setattr("s2s_ray.runtime.placement.time.monotonic", lambda: now[0])
    monkeypatch.setattr(placement, "placement_group_table", lambda: groups)
    monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": 0.5})
    waiting = WaitingForRoom(demand(4, CPU=1.0))

    def lines(until: float) -> list[str]:
        caplog.clear()
        while now[0] < until:
            now[0] += 1
            waiting.log()
        return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]

    assert lines(29) == []
    assert lines(61) == ["run 'first' is waiting for 4 CPU; the cluster has 0.5 CPU free"] * 2
    groups["a"]["state"] = "CREATED"
    assert lines(120) == []
    groups["a"] = {"state": "PENDING", "bundles": {0: {"CPU": 2.0}}}
    assert lines(180) == [], "another's"
