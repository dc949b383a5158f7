"""A real Ray cluster of several nodes on this machine, protected by a token, and the commands to use it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import yaml

from tests.support.ports import free_port
from tests.support.processes import kill, processes_of

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
RUNTIME_ENV = {"env_vars": {"PYTHONPATH": str(ROOT)}}


def wait_for(name: str, done: Callable[[], Any], seconds: float = 180) -> Any:
    """Return the first value of `done` that is not false."""
    deadline = time.monotonic() + seconds
    while not (found := done()):
        assert time.monotonic() < deadline, f"no {name} after {seconds:.0f} s"
        time.sleep(0.3)
    return found


class LocalCluster:
    """A head without CPUs and further nodes, each a separate raylet on this machine, as `ray start` creates them."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        self.environment = environment
        self.port, self.dashboard_port, self.metrics_port = free_port(), free_port(), free_port()
        self.dashboard = f"http://127.0.0.1:{self.dashboard_port}"
        self.nodes: list[subprocess.Popen[bytes]] = []
        self.address = ""

    def start_head(self, *options: str) -> None:
        self._start(
            "--head",
            f"--port={self.port}",
            "--num-cpus=0",
            "--dashboard-host=127.0.0.1",
            f"--dashboard-port={self.dashboard_port}",
            f"--metrics-export-port={self.metrics_port}",
            f"--ray-client-server-port={free_port()}",
            *options,
        )
        wait_for("dashboard", lambda: self._responds(f"{self.dashboard}/api/version"))
        [head] = wait_for("head", self.alive)
        self.address = f"{head['node_ip']}:{self.port}"

    def add_node(self, cpus: int, **resources: float) -> None:
        """Add a node and wait for it: two nodes that start at once on one machine use each other's files."""
        before = len(self.alive())
        self._start(f"--address={self.address}", f"--num-cpus={cpus}", f"--resources={json.dumps(resources)}")
        wait_for("node", lambda: len(self.alive()) > before)

    def get(self, path: str) -> Any:
        headers = {"Authorization": f"Bearer {self.environment['RAY_AUTH_TOKEN']}"}
        response = httpx2.get(self.dashboard + path, headers=headers, timeout=30)
        response.raise_for_status()
        return response.json()

    def alive(self) -> list[dict[str, Any]]:
        nodes: list[dict[str, Any]] = self.get("/api/v0/nodes?detail=1")["data"]["result"]["result"]
        return [node for node in nodes if node["state"] == "ALIVE"]

    def ray(self, *words: str) -> subprocess.Popen[str]:
        """Run a `ray` command from the root of the repository."""
        return subprocess.Popen(
            [str(BIN / "ray"), *words],
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def submit(
        self, name: str, script: str, *arguments: str, options: tuple[str, ...] = (), travels: bool = True
    ) -> subprocess.Popen[str]:
        """Run `ray job submit`, which by default streams the job's log and ends with the job.

        The code `travels` with the submission, or is used in place.
        """
        folder = "jobs" if travels else str(ROOT / "jobs")
        code = ("--working-dir", ".") if travels else ("--runtime-env-json", json.dumps(RUNTIME_ENV))
        submission = ("job", "submit", "--address", self.dashboard, "--submission-id", name, *code)
        return self.ray(*submission, *options, "--", "python", f"{folder}/{script}.py", *arguments)

    def metrics(self) -> str:
        """Return the metrics of all nodes, as Prometheus would scrape them."""
        targets = json.loads((self.folder / "0" / "session_latest" / "prom_metrics_service_discovery.json").read_text())
        pages = []
        for target in targets[0]["targets"]:
            try:
                pages.append(httpx2.get(f"http://{target}/metrics", timeout=10).text)
            except httpx2.TransportError:
                continue  # the dashboard's own exporter may not be up yet
        return "\n".join(pages)

    def print_logs(self) -> None:
        for log in sorted(self.folder.glob("node-*.log")):
            print(f"--- {log.name}", log.read_text(errors="replace")[-2000:], sep="\n")

    def stop(self) -> None:
        for node in reversed(self.nodes):
            self.kill(node)

    @staticmethod
    def kill(node: subprocess.Popen[bytes]) -> None:
        """End a node, and then the remaining processes of its session."""
        node.terminate()
        with suppress(subprocess.TimeoutExpired):
            node.wait(timeout=15)
        kill(processes_of(node.pid))
        node.wait(timeout=10)

    def _start(self, *options: str) -> subprocess.Popen[bytes]:
        # On one machine the system must choose the ports of the workers, or those of the nodes would collide.
        ports = ("--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0")
        # A folder each: an agent that unpacks a working directory deletes an existing one.
        temporary = self.folder / str(len(self.nodes))
        command = [str(BIN / "ray"), "start", "--block", "--disable-usage-stats", f"--temp-dir={temporary}"]
        command += [*ports, *options]
        with (self.folder / f"node-{len(self.nodes)}.log").open("wb") as log:
            node = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log, start_new_session=True)
        self.nodes.append(node)
        return node

    def _responds(self, url: str) -> bool:
        assert self.nodes[0].poll() is None, (self.folder / "node-0.log").read_text()[-3000:]
        try:
            return httpx2.get(url, timeout=5).status_code in (200, 401)
        except httpx2.TransportError:
            return False


@contextmanager
def local_cluster(**variables: str) -> Iterator[LocalCluster]:
    with tempfile.TemporaryDirectory(prefix="s2s-", ignore_cleanup_errors=True) as folder:  # sockets need a short path
        path = (
            f"{BIN}{os.pathsep}{os.environ['PATH']}"  # a job's `python` is looked up in the environment of `ray start`
        )
        # a stopped job has time to finish, as in cluster.yaml; no line of a log is dropped
        settings = {"RAY_JOB_STOP_WAIT_TIME_S": "30", "RAY_DEDUP_LOGS": "0"}
        environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", **settings, **variables}
        environment.pop("PYTHONPATH", None)  # the code comes with the submission
        environment.pop("RAY_ADDRESS", None)
        cluster = LocalCluster(Path(folder), environment)
        try:
            yield cluster
        except BaseException:
            cluster.print_logs()  # they are deleted with the folder
            raise
        finally:
            cluster.stop()


def finished(job: subprocess.Popen[str], seconds: float = 240) -> str:
    """Return the log of a job, which must succeed."""
    log, _ = job.communicate(timeout=seconds)
    assert job.returncode == 0, log[-4000:]
    return log


def logs_of(cluster: LocalCluster, name: str) -> str:
    """Return the whole log of a finished job: what `ray job submit` streams may lack the last lines."""
    return finished(cluster.ray("job", "logs", "--address", cluster.dashboard, name))


def deployed(cluster: LocalCluster, folder: Path, **arguments: Any) -> str:
    """Run `serve deploy` of serve/config.yaml with a free port, this code and some settings changed; return the URL."""
    port = free_port()
    config = yaml.safe_load((ROOT / "serve" / "config.yaml").read_text())
    config["http_options"]["port"] = port
    [application] = config["applications"]
    application["runtime_env"] = RUNTIME_ENV
    application["args"] |= arguments
    (folder / "deploy.yaml").write_text(yaml.safe_dump(config))
    command = [str(BIN / "serve"), "deploy", "--address", cluster.dashboard, str(folder / "deploy.yaml")]
    done = subprocess.run(command, env=cluster.environment, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    url = f"http://127.0.0.1:{port}"

    def responds() -> bool:
        try:
            return httpx2.get(f"{url}/v1/model", timeout=5).status_code == 200
        except httpx2.TransportError:
            return False

    wait_for("response of the service", responds, 180)
    return url
