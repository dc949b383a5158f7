"""The training command as a process that can be interrupted and killed, and its workers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from s2s_ray.training.checkpoint_store import CheckpointStore
from tests.support.processes import processes_of

ROOT = Path(__file__).resolve().parents[2]


def train(settings: list[str], storage: Path | str, name: str, epochs: int) -> list[str]:
    """The entry script's command line on the preset `tiny`."""
    own = [f"train.storage={storage}", f"train.name={name}", f"train.epochs={epochs}"]
    options = [part for setting in (*settings, *own) for part in ("--set", setting)]
    return [sys.executable, str(ROOT / "jobs" / "train.py"), "--config", "tiny", *options]


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
    """Until a checkpoint of this step or a later one is stored."""
    deadline = time.monotonic() + 240
    while not store.steps() or store.steps()[-1] < step:
        assert process.poll() is None, "training ended too early"
        assert time.monotonic() < deadline, "no checkpoint after four minutes"
        time.sleep(0.2)


def workers_of(session: int) -> list[psutil.Process]:
    """The training workers of the cluster that the command with this pid started."""
    return processes_of(session, "ray::RayTrainWorker")
