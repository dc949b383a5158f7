"""A real Ray cluster of several nodes on this machine, closed by a token, and the commands one types to it."""

from __future__ import annotations

import json
import os
import socket
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

from tests.support.processes import kill, processes_of

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
HERE = {"env_vars": {"PYTHONPATH": str(ROOT)}}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for(what: str, done: Callable[[], Any], seconds: float = 180) -> Any:
    """The first value of `done` that is not false."""
    deadline = time.monotonic() + seconds
    while not (found := done()):
        assert time.monotonic() < deadline, f"no {what} after {seconds:.0f} s"
        time.sleep(0.3)
    return found


class LocalCluster:
    """A head without CPUs and nodes beside it, each a raylet of its own on this machine, as `ray start` makes them."""

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
        wait_for("dashboard", lambda: self._answers(f"{self.dashboard}/api/version"))
        [head] = wait_for("head", self.alive)
        self.address = f"{head['node_ip']}:{self.port}"

    def add_node(self, cpus: int, **resources: float) -> None:
        """Add a node and wait until it is there: two that start at once on one machine take each other's files."""
        there = len(self.alive())
        self._start(f"--address={self.address}", f"--num-cpus={cpus}", f"--resources={json.dumps(resources)}")
        wait_for("node", lambda: len(self.alive()) > there)

    def get(self, path: str) -> Any:
        headers = {"Authorization": f"Bearer {self.environment['RAY_AUTH_TOKEN']}"}
        answer = httpx2.get(self.dashboard + path, headers=headers, timeout=30)
        answer.raise_for_status()
        return answer.json()

    def alive(self) -> list[dict[str, Any]]:
        nodes: list[dict[str, Any]] = self.get("/api/v0/nodes?detail=1")["data"]["result"]["result"]
        return [node for node in nodes if node["state"] == "ALIVE"]

    def ray(self, *words: str) -> subprocess.Popen[str]:
        """A command of Ray's, from the repository's root, as one types it."""
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
        """`ray job submit`, which streams the job's log and ends with it unless told otherwise.

        The code `travels` with the submission, or is used where it is.
        """
        place = "jobs" if travels else str(ROOT / "jobs")
        code = ("--working-dir", ".") if travels else ("--runtime-env-json", json.dumps(HERE))
        submission = ("job", "submit", "--address", self.dashboard, "--submission-id", name, *code)
        return self.ray(*submission, *options, "--", "python", f"{place}/{script}.py", *arguments)

    def metrics(self) -> str:
        """What Prometheus would get from all nodes together."""
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
        """End a node, and then whatever it left: all of that is of its session."""
        node.terminate()
        with suppress(subprocess.TimeoutExpired):
            node.wait(timeout=15)
        kill(processes_of(node.pid))
        node.wait(timeout=10)

    def _start(self, *options: str) -> subprocess.Popen[bytes]:
        # One machine: ports of the workers are chosen by the system, or the nodes would take each other's.
        ports = ("--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0")
        # A folder each: an agent that unpacks a working directory throws away the one that is there.
        temporary = self.folder / str(len(self.nodes))
        command = [str(BIN / "ray"), "start", "--block", "--disable-usage-stats", f"--temp-dir={temporary}"]
        command += [*ports, *options]
        with (self.folder / f"node-{len(self.nodes)}.log").open("wb") as log:
            node = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log, start_new_session=True)
        self.nodes.append(node)
        return node

    def _answers(self, url: str) -> bool:
        assert self.nodes[0].poll() is None, (self.folder / "node-0.log").read_text()[-3000:]
        try:
            return httpx2.get(url, timeout=5).status_code in (200, 401)
        except httpx2.TransportError:
            return False


@contextmanager
def local_cluster(**variables: str) -> Iterator[LocalCluster]:
    with tempfile.TemporaryDirectory(prefix="s2s-", ignore_cleanup_errors=True) as folder:  # sockets need a short path
        path = f"{BIN}{os.pathsep}{os.environ['PATH']}"  # a job's `python` is looked up where Ray was started
        # a stopped job has time, as in cluster.yaml; every line of a log is wanted
        settings = {"RAY_JOB_STOP_WAIT_TIME_S": "30", "RAY_DEDUP_LOGS": "0"}
        environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", **settings, **variables}
        environment.pop("PYTHONPATH", None)  # the code comes with the submission
        environment.pop("RAY_ADDRESS", None)
        cluster = LocalCluster(Path(folder), environment)
        try:
            yield cluster
        except BaseException:
            cluster.print_logs()  # they go with the folder
            raise
        finally:
            cluster.stop()


def finished(job: subprocess.Popen[str], seconds: float = 240) -> str:
    """The log of a job that has to succeed."""
    log, _ = job.communicate(timeout=seconds)
    assert job.returncode == 0, log[-4000:]
    return log


def logs_of(cluster: LocalCluster, name: str) -> str:
    """The whole log of a job that has ended: what `ray job submit` streams may lack the last lines."""
    return finished(cluster.ray("job", "logs", "--address", cluster.dashboard, name))


def deployed(cluster: LocalCluster, folder: Path, **arguments: Any) -> str:
    """`serve deploy` of serve/config.yaml as it is, but for the port, the code and these arguments; the URL."""
    port = free_port()
    config = yaml.safe_load((ROOT / "serve" / "config.yaml").read_text())
    config["http_options"]["port"] = port
    [application] = config["applications"]
    application["runtime_env"] = HERE
    application["args"] |= arguments
    (folder / "deploy.yaml").write_text(yaml.safe_dump(config))
    command = [str(BIN / "serve"), "deploy", "--address", cluster.dashboard, str(folder / "deploy.yaml")]
    done = subprocess.run(command, env=cluster.environment, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        try:
            return httpx2.get(f"{url}/v1/model", timeout=5).status_code == 200
        except httpx2.TransportError:
            return False

    wait_for("answer of the service", answers, 180)
    return url
