"""An S3 server on loopback: Ceph where it is installed, moto's server elsewhere."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.ports import free_port, free_ports

_PROGRAMS = ("ceph", "ceph-mon", "ceph-osd", "radosgw", "radosgw-admin", "monmaptool")


def ceph_script(shared: Path) -> Path | None:
    """Return the script that starts Ceph, or None if the script or a program of Ceph is missing."""
    script = shared / "tools" / "real-s3.sh"
    installed = all(shutil.which(program) for program in _PROGRAMS)
    return script if script.exists() and installed else None


@contextmanager
def ceph_server(script: Path) -> Iterator[dict[str, str]]:
    """Run Ceph's S3 server until the block ends; yields the AWS variables of its only user."""
    folder = tempfile.mkdtemp(prefix="s3-")  # a short path: the server's sockets are in it
    try:
        started = subprocess.run(
            [script, "start", folder, str(free_ports(20))], capture_output=True, text=True, timeout=180
        )
        assert started.returncode == 0, started.stderr
        pairs = (line.partition("=") for line in started.stdout.splitlines())
        yield {key: value for key, _, value in pairs}
    finally:
        subprocess.run([script, "wipe", folder], check=True, timeout=180)
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def moto_server() -> Iterator[dict[str, str]]:
    """Run moto's S3 server until the block ends; yields AWS variables. It accepts any credentials.

    It is a process of its own, because moto's other mocks would empty a server of this process.
    """
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_until_it_listens(server, port)
        yield {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "moto",
            "AWS_SECRET_ACCESS_KEY": "moto",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
    finally:
        server.terminate()
        server.wait(30)


def _wait_until_it_listens(server: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert server.poll() is None, f"moto's server ended with {server.returncode}"
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.1)
    raise AssertionError("moto's server does not listen after 60 seconds")
