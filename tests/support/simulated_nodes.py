"""A program: small nodes on this machine come and go while a run trains on them.

`python nodes.py elastic|lost FOLDER`: trains FOLDER/config.yaml, a run of two workers, and writes what `train` returned
to FOLDER/result.json. A program of its own, since Ray adds nodes in a main thread only.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray
import yaml
from ray.cluster_utils import Cluster

from s2s_ray.config import Config
from s2s_ray.runtime.cluster import log_plainly
from s2s_ray.runtime.collectives import rank, world_size
from s2s_ray.training.checkpoint_store import CheckpointStore
from s2s_ray.training.loop import Report, Trainer
from s2s_ray.training.ray_train import TrainResult, train
from s2s_ray.training.run import checkpoint_store
from tests.support.killed_runs import before_step

PATIENCE_S = 150.0
ELASTIC_STEPS = (2, 5)
"""When a run is held until a second node has come, and until it has gone: both within an epoch."""
LOST_STEP = 4
"""When the other run is held until one of its nodes has gone: within an epoch."""

QUICK_TO_NOTICE = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 10_000,  # a dead node refuses at once, one that lives may be slow to answer
    "health_check_failure_threshold": 3,
}


@dataclass(frozen=True)
class Held:
    """Holds the workers before some steps, given as (workers, step), until `folder/goes-on` is there."""

    folder: Path
    points: tuple[tuple[int, int], ...]

    def __call__(self, trainer: Trainer, report: Report) -> Report:
        (self.folder / f"node-of-{rank()}").write_text(ray.get_runtime_context().get_node_id())
        for workers, step in self.points:
            if world_size() == workers:
                before_step(trainer, step, self._wait)
        return report

    def _wait(self) -> None:
        until((self.folder / "goes-on").exists, "the run to go on")


def until(met: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not met():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited too long for {what}")
        time.sleep(0.1)


class Training(threading.Thread):
    """A run, trained beside the main thread."""

    def __init__(self, config: Config, held: Held) -> None:
        super().__init__(daemon=True)
        self.config, self.held = config, held
        self.store: CheckpointStore = checkpoint_store(config)
        self.outcome: TrainResult | Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            self.outcome = train(self.config, wrap_report=self.held)
        except Exception as error:
            self.outcome = error

    def reaches(self, step: int) -> None:
        """Wait until a step's checkpoint is stored."""
        until(lambda: self.outcome is not None or step in self.store.steps(), f"step {step}")
        if isinstance(self.outcome, Exception):
            raise self.outcome
        assert self.outcome is None, f"the run ended before step {step} was seen"

    def ends(self) -> dict[str, Any]:
        self.join(PATIENCE_S)
        if isinstance(self.outcome, Exception):
            raise self.outcome
        assert self.outcome is not None, "the run did not end"
        return asdict(self.outcome)


def elastic(cluster: Cluster, config: Config, folder: Path) -> dict[str, Any]:
    """Begins on the one node there is, grows when a second comes, goes on when that is lost."""
    grown, shrunk = ELASTIC_STEPS
    training = Training(config, Held(folder, ((1, grown), (2, shrunk))))
    training.reaches(grown)
    second = cluster.add_node(num_cpus=1)
    training.reaches(shrunk)
    cluster.remove_node(second, allow_graceful=False)
    return training.ends()


def lost(cluster: Cluster, config: Config, folder: Path) -> dict[str, Any]:
    """Loses a node in the middle of an epoch; a spare one takes its place."""
    nodes = {node.node_id: node for node in (*cluster.worker_nodes, cluster.add_node(num_cpus=1))}
    training = Training(config, Held(folder, ((2, LOST_STEP),)))
    training.reaches(LOST_STEP)
    victim = (folder / "node-of-1").read_text()
    spare = cluster.add_node(num_cpus=1)
    cluster.remove_node(nodes[victim], allow_graceful=False)
    (folder / "goes-on").touch()
    ended = training.ends()
    assert spare.node_id in {(folder / f"node-of-{worker}").read_text() for worker in range(2)}
    return ended


def main(scenario: str, folder: Path) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "include_dashboard": False, "_system_config": QUICK_TO_NOTICE},
    )
    cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, configure_logging=False, runtime_env={"worker_process_setup_hook": log_plainly})
    config = Config.from_tree(yaml.safe_load((folder / "config.yaml").read_text()))
    result = {"elastic": elastic, "lost": lost}[scenario](cluster, config, folder)
    (folder / "result.json").write_text(json.dumps(result))
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
