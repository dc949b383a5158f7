"""Every job and then the service on a cluster of several simulated nodes, which is closed by a token."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
import yaml
from ray.util import get_node_ip_address

from s2s_ray import registry
from s2s_ray.config import load_config
from s2s_ray.data.description import read_dataset_info
from s2s_ray.data.sources import open_source
from s2s_ray.geo.images import encode
from s2s_ray.index import ReferenceIndex
from s2s_ray.model.checkpoint_meta import read_meta
from s2s_ray.runtime.metrics import RAY_PREFIX, TRAINING
from s2s_ray.training.checkpoint_store import CheckpointStore
from tests.support.clusters import LocalCluster, deployed, finished, local_cluster, logs_of, wait_for
from tests.support.commands import workers_of
from tests.support.processes import processes_of

EPOCHS = 4
pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """A node for training and one for preparation and other work on CPUs, as in cluster.yaml."""
    with local_cluster() as found:
        found.start_head()
        found.add_node(2, trainer=2)
        found.add_node(1, preparation=1)
        yield found


def setting(settings: list[str], key: str) -> str:
    """Return the value of a key."""
    return next(one.removeprefix(f"{key}=") for one in settings if one.startswith(f"{key}="))


def options(*settings: str) -> list[str]:
    return ["--config", "tiny", *(part for setting in settings for part in ("--set", setting))]


def test_submitted_work_from_images_to_the_service(cluster: LocalCluster, narrow: list[str], tmp_path: Path) -> None:
    """Train, meanwhile prepare and tune, then stop, resume, evaluate, index and serve."""
    closed = httpx2.get(f"{cluster.dashboard}/api/jobs/")
    assert closed.status_code == 401
    began = time.monotonic()

    def took(what: str) -> None:
        nonlocal began
        print(f"{what}: {time.monotonic() - began:.0f} s", flush=True)
        began = time.monotonic()

    run = tmp_path / "runs" / "first"
    train = [*narrow, "train.workers=2", "train.resources_per_worker={CPU: 1, trainer: 1}", "train.log_every_s=0.1"]
    train += [f"train.storage={tmp_path / 'runs'}", "train.name=first"]
    steps = math.ceil(read_dataset_info(setting(narrow, "data.uri")).split("train").count / 5)  # of an epoch
    finished(cluster.submit("endless", "train", *options(*train, "train.epochs=5000"), options=("--no-wait",)))

    # The CPU node is idle meanwhile.
    data = str(tmp_path / "data")
    settings = [one for one in narrow if not one.startswith("data.uri")] + [f"data.uri={data}"]
    city = ["source.train_pairs=14", "source.test_pairs=6", "source.tile_px=32", "source.panorama_width=40"]
    city += ["source.panorama_height=32", "prepare.validation_block_m=30", "prepare.shard_mb=0.02"]
    city += ["prepare.resources={CPU: 1, preparation: 1}"]
    log = finished(cluster.submit("prepare", "prepare", *options(*settings, *city)))
    assert "Job 'prepare' succeeded" in log
    assert len(read_dataset_info(data).split("train").shards) > 1
    took("prepare")
    sweep = [*settings, f"tune.storage={tmp_path / 'sweeps'}", f"tune.registry={tmp_path / 'registry'}"]
    sweep += ["tune.trials=2", "tune.concurrent=1", "train.workers=1", "train.epochs=2", "tune.name=night"]
    sweep += ["train.resources_per_worker={CPU: 1, preparation: 1}", "tune.space={loss.alpha: {low: 2, high: 50}}"]
    log = finished(cluster.submit("tune", "tune", *options(*sweep)))
    assert "best of 2 trials" in log
    store = CheckpointStore(str(run / "checkpoints"))
    wait_for("checkpoint", lambda: store.steps() and store.steps()[-1] >= 2)
    took("tune")
    on_cpu = {name for name in TRAINING if name.startswith("s2s_train_")} - {"s2s_train_gpu_memory_bytes"}
    expected = {RAY_PREFIX + name for name in on_cpu}
    wait_for("gauges", lambda: gauges_of(cluster.metrics(), "first") == expected, 60)
    took("gauges")

    log = finished(cluster.ray("job", "stop", "--address", cluster.dashboard, "endless"))
    assert "was stopped" in log
    assert "training stopped: the newest checkpoint is" in logs_of(cluster, "endless")
    wait_for("end of the workers", lambda: not workers(cluster))
    at = store.steps()[-1]
    took("stop")
    epochs = at // steps + EPOCHS
    log = finished(cluster.submit("resumed", "train", *options(*train, f"train.epochs={epochs}")))
    resumed = re.search(r"resumed \S+: epoch \d+, step (\d+)", log)
    assert resumed is not None
    assert int(resumed[1]) == at, "a stored step was lost"
    assert "best checkpoint" in log
    history = json.loads((run / "history.json").read_text())
    assert [entry["epoch"] for entry in history] == list(range(epochs))
    took("resumed training")

    index, report = tmp_path / "index", tmp_path / "report"
    on_cpu_node = ("--entrypoint-num-cpus", "1")
    checkpoint = ("--checkpoint", str(run))
    jobs = [
        cluster.submit(
            "evaluate", "evaluate", *checkpoint, "--out", str(report), *options(*settings), options=on_cpu_node
        ),
        cluster.submit(
            "build", "build_index", *checkpoint, "--out", str(index), *options(*settings), options=on_cpu_node
        ),
    ]
    for job in jobs:
        finished(job)
    assert ReferenceIndex.load(str(index)).info.count == 6
    assert json.loads((report / "metrics.json").read_text())["gallery"] == 6
    took("evaluate and build_index")

    best = CheckpointStore(str(run / "checkpoints"))
    release = registry.publish(str(tmp_path / "registry"), "city", best.uri(best.best() or 0), str(index))
    registry.promote(str(tmp_path / "registry"), "city", release.id)
    url = deployed(cluster, tmp_path, registry=str(tmp_path / "registry"), name="city")
    assert httpx2.get(f"{url}/v1/model").json()["release"] == release.id
    config = load_config("tiny", [*settings, *city])
    source = open_source(config.source)
    query = next(record for record in source.records() if record.split == "test")
    panorama = encode(source.read(query).street, "png")
    answer = httpx2.post(f"{url}/v1/localize", content=panorama, headers={"content-type": "image/png"}, timeout=60)
    assert answer.status_code == 200, answer.text
    assert answer.json()["release"] == release.id
    took("serve deploy")
    assert read_meta(release.checkpoint_uri)["run"] == "first"


def workers(cluster: LocalCluster) -> list[psutil.Process]:
    """Return the training workers on all nodes."""
    return [worker for node in cluster.nodes for worker in workers_of(node.pid)]


def gauges_of(page: str, run: str) -> set[str]:
    """Return the names of the training's gauges that have a sample of a run."""
    pattern = re.compile(rf'^(\w*s2s_train_\w+)\{{[^}}]*run="{run}"', re.MULTILINE)
    return set(pattern.findall(page))


HEAD_ID = "f" * 51 + "00000"
EVERY = 2  # steps between checkpoints


def test_the_autoscaler_adds_and_removes_nodes_with_a_training(narrow: list[str], tmp_path: Path) -> None:
    """Ray's autoscaler with the provider whose nodes are raylets of this machine; prints the lost steps and seconds."""
    variables = {
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
    }
    with local_cluster(**variables) as cluster:
        config = yaml.safe_dump(autoscaling(f"{get_node_ip_address()}:{cluster.port}"))
        (tmp_path / "autoscaling.yaml").write_text(config)
        cluster.start_head(f"--autoscaling-config={tmp_path / 'autoscaling.yaml'}")
        assert len(cluster.alive()) == 1
        train = [*narrow, "train.workers=2", "train.resources_per_worker={CPU: 1, trainer: 1}", "train.epochs=5000"]
        train += [f"train.storage={tmp_path / 'runs'}", "train.name=far", "train.log_every_s=0.001"]
        train += [f"train.checkpoint_every={EVERY}"]
        began = time.monotonic()
        # These nodes share a folder, into which each of them would unpack the code.
        finished(cluster.submit("far", "train", *options(*train), options=("--no-wait",), travels=False))
        wait_for("two more nodes", lambda: len(cluster.alive()) == 3)
        came = time.monotonic() - began
        store = CheckpointStore(str(tmp_path / "runs" / "far" / "checkpoints"))
        wait_for("checkpoint", lambda: store.steps() and store.steps()[-1] > EVERY)

        lost = next(node for node in cluster.alive() if not node["is_head_node"])
        raylet(cluster.nodes[0].pid, lost["node_id"]).kill()
        killed = time.monotonic()
        wait_for("end of the node", lambda: lost["node_id"] not in {node["node_id"] for node in cluster.alive()})
        at = store.steps()[-1]  # its worker did some more steps before it ended
        wait_for("training that continues", lambda: store.steps()[-1] > at + 3 * EVERY, 180)
        outage = time.monotonic() - killed
        assert len(cluster.alive()) == 3, "no node has replaced the lost one"

        finished(cluster.ray("job", "stop", "--address", cluster.dashboard, "far"))
        stopped = time.monotonic()
        log = logs_of(cluster, "far")
        steps = lost_steps(log)
        wait_for("end of the idle nodes", lambda: len(cluster.alive()) == 1, 90)
        went = time.monotonic() - stopped
    print(f"\nnodes added in {came:.0f} s, removed in {went:.0f} s; lost: {steps} steps and {outage:.0f} s")
    # Steps since the newest checkpoint, which may not have been stored yet when the node was lost.
    assert 0 <= steps <= 2 * EVERY


def autoscaling(address: str) -> dict[str, Any]:
    """Return the autoscaler's configuration with at most two nodes for training.

    The provider is Ray's own for tests. As an external provider it accepts the address of the head; under its own name
    it needs port 6379, and a file that is not in the wheel.
    """
    lists = ("cluster_synced_files", "rsync_exclude", "rsync_filter", "initialization_commands", "setup_commands")
    commands = [f"{kind}_{name}_commands" for kind in ("head", "worker") for name in ("setup", "start_ray")]
    return {
        "cluster_name": "fake",
        "max_workers": 2,
        "idle_timeout_minutes": 0.1,
        "upscaling_speed": 100.0,
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "trainer": {"resources": {"CPU": 1, "trainer": 1}, "node_config": {}, "min_workers": 0, "max_workers": 2},
        },
        "provider": {
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "gcs_address": address,
            "head_node_id": HEAD_ID,
            "launch_multiple": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "auth": {},
        "docker": {},
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
        **{name: [] for name in (*lists, *commands)},
    }


def raylet(session: int, node: str) -> psutil.Process:
    """Return the raylet of a node, which has the node's id in its environment."""
    for process in processes_of(session):
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            named = process.environ().get("RAY_OVERRIDE_NODE_ID_FOR_TESTING")
            if process.cmdline()[0].endswith("/raylet/raylet") and named == node:
                return process
    raise AssertionError(f"no raylet of node {node}")


def lost_steps(log: str) -> int:
    """Return how many steps had to be repeated after a worker was lost."""
    resumed = re.search(r"resumed \S+: epoch \d+, step (\d+)", log)
    assert resumed is not None, log[-3000:]
    before = log[: resumed.start()]
    done = [3 * (int(epoch) - 1) + int(step) for epoch, step in re.findall(r"epoch (\d+)/5000 step (\d+)/3", before)]
    return max(done) - int(resumed[1])
