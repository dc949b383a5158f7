"""Training through the entry script on real Ray Train workers: interrupted, resumed, and a worker killed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from s2s_ray.training.checkpoint import CheckpointStore

EPOCHS = 6  # of three steps each
ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def options(narrow: list[str]) -> list[str]:
    """Command line options for two workers on a small data set."""
    settings = [*narrow, "train.workers=2", "train.log_every_s=0.1"]
    return ["--config", "tiny", *(part for setting in settings for part in ("--set", setting))]


def train(options: list[str], storage: Path, name: str, epochs: int) -> list[str]:
    runs = ("--set", f"train.storage={storage}", "--set", f"train.name={name}", "--set", f"train.epochs={epochs}")
    return [sys.executable, str(ROOT / "jobs" / "train.py"), *options, *runs]


@contextmanager
def started(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """The command in a session of its own, by which its cluster's processes are known; killed if it did not end."""
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        command, stdout=pipe, stderr=pipe, text=True, start_new_session=True, preexec_fn=_take_interrupts
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def _take_interrupts() -> None:
    """Ctrl-C is ignored in what a shell runs in the background, and that is inherited."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def wait_for_step(store: CheckpointStore, step: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 240
    while not store.steps() or store.steps()[-1] < step:
        assert process.poll() is None, "training ended too early"
        assert time.monotonic() < deadline, "no checkpoint after four minutes"
        time.sleep(0.2)


@dataclass(frozen=True)
class Interrupted:
    """A run that Ctrl-C stopped, and its end after the same command was given again."""

    returncode: int
    errors: str
    resumed: subprocess.CompletedProcess[str]
    history: list[dict[str, Any]]


@pytest.fixture(scope="module")
def interrupted(options: list[str], tmp_path_factory: pytest.TempPathFactory) -> Interrupted:
    storage = tmp_path_factory.mktemp("runs")
    store = CheckpointStore(str(storage / "stopped" / "checkpoints"))
    with started(train(options, storage, "stopped", 500)) as process:
        wait_for_step(store, 2, process)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    command = train(options, storage, "stopped", EPOCHS)
    resumed = subprocess.run(command, capture_output=True, text=True, timeout=300)
    return Interrupted(process.returncode, errors, resumed, figures(storage / "stopped"))


def figures(run: Path) -> list[dict[str, Any]]:
    """The history of a run, without what depends on the machine."""
    history: list[dict[str, Any]] = json.loads((run / "history.json").read_text())
    for entry in history:
        del entry["pairs_per_second"]
    return history


def test_ctrl_c_names_the_newest_checkpoint(interrupted: Interrupted) -> None:
    assert interrupted.returncode == 130, interrupted.errors[-3000:]
    named = re.search(r"s2s: training stopped: the newest checkpoint is (\S+);", interrupted.errors)
    assert named is not None, interrupted.errors[-3000:]
    assert int(Path(named[1]).name) >= 2


def test_the_same_command_goes_on(interrupted: Interrupted) -> None:
    resumed = interrupted.resumed
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert "resumed" in resumed.stderr
    assert "best checkpoint" in resumed.stdout
    assert [entry["epoch"] for entry in interrupted.history] == list(range(EPOCHS))
    assert interrupted.history[-1]["step"] == 3 * EPOCHS


def test_a_killed_worker_costs_no_step(options: list[str], interrupted: Interrupted, tmp_path: Path) -> None:
    """Disturbed in two ways, two runs end with the same figures to the last bit."""
    store = CheckpointStore(str(tmp_path / "killed" / "checkpoints"))
    with started(train(options, tmp_path, "killed", EPOCHS)) as process:
        wait_for_step(store, 3, process)
        os.kill(worker_pids(process.pid)[0], signal.SIGKILL)
        _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-3000:]
    assert "resumed" in errors, "the worker was killed too late to matter"
    assert figures(tmp_path / "killed") == interrupted.history


def worker_pids(driver: int) -> list[int]:
    """Pids of the training workers of the cluster that a driver started."""
    session = os.getsid(driver)
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
            if command.startswith(b"ray::RayTrainWorker") and os.getsid(int(folder.name)) == session:
                found.append(int(folder.name))
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended meanwhile
    assert len(found) == 2, found
    return found
