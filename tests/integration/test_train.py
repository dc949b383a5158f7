"""Training through the entry script on real Ray Train workers: interrupted, resumed, and a worker killed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from s2s_ray.checkpoint import read_meta
from s2s_ray.data.prepare import prepare
from s2s_ray.training.checkpoint import CheckpointStore

if TYPE_CHECKING:
    from tests.conftest import PairFolder

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory, pair_folder: type[PairFolder]) -> list[str]:
    """Command line options for a small prepared data set of random images and a narrow model."""
    folder = tmp_path_factory.mktemp("train")
    pairs = pair_folder(folder / "pairs")
    for split, count in (("train", 13), ("val", 3), ("test", 2)):
        for number in range(count):
            pairs.add(f"{split}-{number}", split)
    prepare(pairs.config(folder / "data"))
    settings = (
        "model.height=32",
        "model.width=40",
        "model.channels=4",
        "model.residual_blocks=1",
        "model.discriminator_channels=4",
        "model.masks=2",
        f"data.uri={folder / 'data'}",
        "train.batch=5",
        "train.workers=2",
        "train.log_every_s=0.1",
        "train.checkpoint_every=1",
    )
    return ["--config", "tiny", *(part for setting in settings for part in ("--set", setting))]


def train(options: list[str], storage: Path, name: str, epochs: int) -> list[str]:
    runs = ("--set", f"train.storage={storage}", "--set", f"train.name={name}", "--set", f"train.epochs={epochs}")
    return [sys.executable, str(ROOT / "jobs" / "train.py"), *options, *runs]


def started(command: list[str]) -> subprocess.Popen[str]:
    """The command in a session of its own, by which its cluster's processes are known."""
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True)


def wait_for_step(store: CheckpointStore, step: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 240
    while not store.steps() or store.steps()[-1] < step:
        assert process.poll() is None, "training ended too early"
        assert time.monotonic() < deadline, "no checkpoint after four minutes"
        time.sleep(0.2)


def test_ctrl_c_names_the_checkpoint_and_the_same_command_goes_on(options: list[str], tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path / "stopped" / "checkpoints"))
    with started(train(options, tmp_path, "stopped", 500)) as process:
        wait_for_step(store, 2, process)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors[-3000:]
    named = re.search(r"the newest checkpoint is (\S+);", errors)
    assert named is not None, errors[-3000:]
    stopped_at = read_meta(named[1])["step"]
    assert stopped_at >= 2

    epochs = stopped_at // 3 + 1  # three steps each
    done = subprocess.run(train(options, tmp_path, "stopped", epochs), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"resumed {store.uri(stopped_at)}" in done.stderr
    history = json.loads((tmp_path / "stopped" / "history.json").read_text())
    assert [entry["epoch"] for entry in history] == list(range(epochs))
    assert history[-1]["step"] == 3 * epochs
    assert "best checkpoint" in done.stdout


def test_a_killed_worker_costs_no_step(options: list[str], tmp_path: Path) -> None:
    """Two workers, one killed half way: the run ends with the figures of one that nobody disturbed."""
    store = CheckpointStore(str(tmp_path / "killed" / "checkpoints"))
    with started(train(options, tmp_path, "killed", 12)) as process:
        wait_for_step(store, 3, process)
        os.kill(worker_pids(process.pid)[0], signal.SIGKILL)
        _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-3000:]
    assert "resumed" in errors, "the worker was killed too late to matter"
    done = subprocess.run(train(options, tmp_path, "straight", 12), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    killed, straight = (json.loads((tmp_path / name / "history.json").read_text()) for name in ("killed", "straight"))
    for entry in (*killed, *straight):
        del entry["pairs_per_second"]
    assert killed == straight


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
