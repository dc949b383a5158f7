"""A driver of a training that is suspended for longer than its lease, and continues when another has replaced it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from s2s_ray.config import Config
from s2s_ray.storage.lease import DRIVER_FILE
from s2s_ray.training.run import run_uri
from tests.support.killed_runs import Ending, configured

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

PROGRAM = """
import json, logging, sys
import torch
from s2s_ray.config import Config
from s2s_ray.errors import RunError
from s2s_ray.storage import lease
from s2s_ray.training.loop import Trainer
from tests.support.killed_runs import before_step

logging.basicConfig(level=logging.INFO, stream=sys.stderr)
lease.HEARTBEAT_S, lease.SILENT_S, lease.POLL_S = 0.1, 1.0, 0.1
torch.set_num_threads(1)
trainer = Trainer(Config.from_tree(json.loads(sys.argv[1])))

def wait() -> None:
    trainer.store.flush()
    print("at step 4", flush=True)
    sys.stdin.readline()

if sys.argv[2] == "waits":
    before_step(trainer, 4, wait)
try:
    trainer.fit()
except RunError as error:
    sys.exit(f"RunError: {error}")
"""


def start(config: Config, waits: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROGRAM, json.dumps(config.model_dump(mode="json")), waits]
    pipe = subprocess.PIPE
    root = Path(__file__).resolve().parents[2]
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, cwd=root)


def files(run: Path) -> dict[str, tuple[bytes, int]]:
    """The content of the run's files and when each was written."""
    return {
        str(path.relative_to(run)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in run.rglob("*")
        if path.is_file() and path.suffix != ".tmp~" and "tensorboard" not in path.parts
    }


def test_a_suspended_driver_writes_nothing_more(
    settings: list[str], undisturbed: Callable[..., Ending], tmp_path: Path
) -> None:
    config = configured(settings, tmp_path)
    run = Path(run_uri(config))
    with start(config, "waits") as first:
        try:
            assert first.stdout is not None
            assert first.stdin is not None
            assert first.stdout.readline() == "at step 4\n"
            first.send_signal(signal.SIGSTOP)
            with start(config, "") as second:
                _, log = second.communicate(timeout=120)
            assert second.returncode == 0, log
            assert f"waiting 1 s to see whether PID {first.pid} on" in log
            assert "resumed" in log
            assert json.loads((run / DRIVER_FILE).read_text())["epoch"] == 2
            before = files(run)
            first.send_signal(signal.SIGCONT)
            _, log = first.communicate("go on\n", timeout=120)
        finally:
            first.kill()
    assert first.returncode == 1, log
    assert f"PID {second.pid} on" in log
    assert "took it over, because this process had shown no sign of life" in log
    assert files(run) == before
    Ending.of(config).assert_same(undisturbed(1))
