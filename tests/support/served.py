"""The service as a process, started as users start it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import numpy as np
import psutil
import pyarrow as pa
import torch
import yaml
from numpy.typing import NDArray

from s2s_ray import registry, storage
from s2s_ray.index import IndexInfo, ReferenceIndex
from s2s_ray.inference import Embedder, Localizer
from s2s_ray.model.checkpoint import save_model
from s2s_ray.model.s2s import S2S
from tests.support.models import tiny_model
from tests.support.ports import free_port
from tests.support.processes import processes_of

ROOT = Path(__file__).resolve().parents[2]
TINY = tiny_model(width=72)
TILES = 7
SCARCE = {"num_cpus": 0.2, "max_replicas": 1, "max_batch": 2, "max_ongoing_requests": 2, "max_queued_requests": 4}
"""Settings of a deployment that is quickly overloaded."""
PATIENT_S = 120
"""Deadline of requests that wait for a new process: half a minute beside other tests that start clusters."""


class Running(NamedTuple):
    """The service, its process and the release that it serves."""

    http: httpx2.Client
    url: str
    root: str
    release: registry.Release
    localizer: Localizer
    process: subprocess.Popen[bytes]


def save_tiny(folder: Path, height: int, width: int) -> S2S:
    """Save a randomly initialised model of that resolution as a checkpoint, and return it."""
    torch.manual_seed(1)
    model = S2S(TINY.model_copy(update={"height": height, "width": width})).eval()
    save_model(model, {"run": "page", "step": 1, "metrics": {}}, folder)
    return model


def noise(height: int, width: int, seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def publish(folder: Path, seed: int, root: str) -> registry.Release:
    """Publish a randomly initialised model with an index of noise tiles as a release of `demo`."""
    folder = folder / str(seed)
    torch.manual_seed(seed)
    model = S2S(TINY).eval()
    checkpoint, index = str(folder / "checkpoint"), str(folder / "index")
    geometry = {"height": 32, "width": 72, "panorama_rows": [0.25, 0.75], "default_heading": 0.0}
    meta: dict[str, Any] = {
        "run": "tiny",
        "step": 3,
        "epoch": 1,
        "metrics": {"recall_at_1": 0.5},
        "dataset": {"geometry": geometry},
    }
    save_model(model, meta, folder / "local")
    storage.publish(folder / "local", checkpoint)
    fingerprint = registry.fingerprint(checkpoint)
    info = IndexInfo(
        dimension=TINY.descriptor_size,
        count=TILES,
        checkpoint=fingerprint,
        dataset="noise",
        dataset_digest="-",
        split="test",
    )
    columns: dict[str, Any] = {"id": [f"tile-{row}" for row in range(TILES)]}
    columns |= {name: [50.0 + row for row in range(TILES)] for name in ("latitude", "longitude", "easting", "northing")}
    table = pa.table({**columns, "zone": pa.array([32632] * TILES, pa.int32())})
    descriptors = Embedder(model).satellite([noise(48, 48, row) for row in range(TILES)])
    ReferenceIndex.build(info, descriptors, table).save(index)
    return registry.publish(root, "demo", checkpoint, index)


def deployed(folder: Path, port: int, arguments: dict[str, Any]) -> list[str]:
    """Return the command to run `serve/config.yaml` on that port with some settings changed."""
    tree = yaml.safe_load((ROOT / "serve" / "config.yaml").read_text(encoding="utf-8"))
    tree["http_options"] |= {"port": port, "request_timeout_s": 2 * PATIENT_S}
    [application] = tree["applications"]
    application["args"] |= arguments
    application["runtime_env"] = {"env_vars": {"PYTHONPATH": str(ROOT)}}
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return [str(Path(sys.executable).with_name("serve")), "run", "--address", "local", str(path)]


def behind_haproxy(folder: Path, port: int, arguments: dict[str, Any]) -> list[str]:
    """Return the command to run the service behind HAProxy with these settings."""
    path = folder / "settings.yaml"
    path.write_text(yaml.safe_dump(arguments), encoding="utf-8")
    return [sys.executable, "-m", "serve", "--haproxy", "--port", str(port), "--settings", str(path)]


@contextmanager
def running_in(
    folder: Path,
    command: Callable[[Path, int, dict[str, Any]], list[str]] = deployed,
    outside: Path | None = None,
    **changes: Any,
) -> Iterator[Running]:
    """Run the service on a private cluster for the duration of the block."""
    root = str(folder / "registry")
    release = publish(folder, 5, root)
    registry.promote(root, "demo", release.id)
    port = free_port()
    ray_folder = tempfile.mkdtemp(prefix="s2s")  # short: Ray's socket names have a limit of 107 bytes
    environment = {
        **{name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
        "RAY_AUTH_MODE": "disabled",
        "RAY_TMPDIR": ray_folder,
        "RAY_USAGE_STATS_ENABLED": "0",
        # metrics and autoscaling that do not keep the tests waiting
        "RAY_metrics_report_interval_ms": "1000",
        "RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1",
        "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1",
        **({} if outside else {"PYTHONPATH": str(ROOT)}),
    }
    log = (folder / "serve.log").open("wb")
    started = time.monotonic()
    process = subprocess.Popen(
        command(folder, port, {"registry": root, "name": "demo", **changes}),
        cwd=outside or ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        # Ctrl-C is ignored in what a shell runs in the background, and that is inherited
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    try:
        url = f"http://127.0.0.1:{port}"
        with httpx2.Client(base_url=url, timeout=2 * PATIENT_S, trust_env=False) as http:
            wait_until_ready(http, process, folder / "serve.log")
            assert release.index_uri is not None
            print(f"\nservice ready after {time.monotonic() - started:.1f} s")
            localizer = Localizer.load(release.checkpoint_uri, release.index_uri)
            yield Running(http, url, root, release, localizer, process)
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        log.close()
        shutil.rmtree(ray_folder, ignore_errors=True)


def wait_until_ready(http: httpx2.Client, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        with suppress(httpx2.TransportError):
            if http.get("/readyz").status_code == 200:
                return
        time.sleep(0.3)
    raise AssertionError(f"not ready within 180 s:\n{log.read_text()}")


def replicas(running: Running, deployment: str) -> list[psutil.Process]:
    """Return the processes of the replicas of a deployment."""
    return processes_of(running.process.pid, f"ray::ServeReplica:s2s:{deployment}")
