"""The settings of HAProxy; `tests/integration/test_serve_haproxy.py` starts it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from s2s_ray.errors import StorageError
from s2s_ray.service.deploy.haproxy import environment

ROOT = Path(__file__).resolve().parents[2]
LISTENERS = "frontend figures\n    bind :19101\n    mode http\nlisten stats\n  bind *:18404\n  mode http\n"
HOSTS = ("0.0.0.0", "::", "::1", "127.0.0.1")
FRONT = "frontend service\n" + "".join(f"    bind {host}:18000\n" for host in HOSTS) + "    mode http\n"
DEFAULTS = "defaults\n    timeout client 1s\n    timeout connect 1s\n    timeout server 1s\n"


def test_a_shell_can_evaluate_what_the_command_prints(tmp_path: Path) -> None:
    folder = tmp_path / "a place"
    command = [sys.executable, "-m", "s2s_ray.service.deploy.haproxy", str(folder)]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60).stdout
    shell = f"{printed}\nenv"
    listed = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, check=True, timeout=60).stdout
    expected = environment(folder)
    assert expected.items() <= dict(line.split("=", 1) for line in listed.splitlines() if "=" in line).items()


def test_the_program_binds_to_loopback_what_ray_leaves_open_and_nothing_else(tmp_path: Path) -> None:
    variables = environment(tmp_path)
    configuration = tmp_path / "haproxy.cfg"
    configuration.write_text(DEFAULTS + LISTENERS + FRONT, encoding="utf-8")
    program = variables["RAY_SERVE_HAPROXY_BINARY_PATH"]
    checked = subprocess.run([program, "-c", "-f", str(configuration)], capture_output=True, text=True, timeout=60)
    assert checked.returncode == 0, checked.stderr
    closed = LISTENERS.replace("bind :", "bind 127.0.0.1:").replace("bind *:", "bind 127.0.0.1:")
    assert configuration.read_text(encoding="utf-8") == DEFAULTS + closed + FRONT


def test_free_ports_are_all_different(tmp_path: Path) -> None:
    fixed, free = environment(tmp_path), environment(tmp_path, free_ports=True)
    ports = [value for name, value in free.items() if name not in fixed]
    assert len(set(ports)) == len(ports) == 4


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / "haproxy"
    with pytest.raises(StorageError, match=r"cannot write HAProxy's settings to .*: Not a directory"):
        environment(folder)
    command = [sys.executable, "-m", "s2s_ray.service.deploy.haproxy", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
