"""Training through the entry script on real Ray Train workers, interrupted and resumed. `tests/chaos` kills it."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from s2s_ray.training.checkpoint_store import CheckpointStore
from tests.support.commands import started, train, wait_for_step
from tests.support.processes import commands_of

EPOCHS = 6  # of three steps each
pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def settings(narrow: list[str]) -> list[str]:
    """Settings for two workers on a small data set."""
    return [*narrow, "train.workers=2", "train.log_every_s=0.1"]


@dataclass(frozen=True)
class Interrupted:
    """A run that Ctrl-C stopped, and its end after the same command was run again."""

    returncode: int
    errors: str
    finished: list[int]  # steps of the finished checkpoints
    processes: list[str]  # command lines of the cluster's processes before Ctrl-C
    resumed: subprocess.CompletedProcess[str]
    history: list[dict[str, Any]]


@pytest.fixture(scope="module")
def interrupted(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Interrupted:
    storage = tmp_path_factory.mktemp("runs")
    store = CheckpointStore(str(storage / "stopped" / "checkpoints"))
    with started(train(settings, storage, "stopped", 500)) as process:
        wait_for_step(store, 2, process)
        processes = commands_of(process.pid)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    finished = store.steps()
    command = train(settings, storage, "stopped", EPOCHS)
    resumed = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    return Interrupted(process.returncode, errors, finished, processes, resumed, history_of(storage / "stopped"))


def history_of(run: Path) -> list[dict[str, Any]]:
    """Return the history of a run, without values that depend on the machine."""
    history: list[dict[str, Any]] = json.loads((run / "history.json").read_text())
    for entry in history:
        del entry["pairs_per_second"]
    return history


def test_ctrl_c_names_the_newest_checkpoint(interrupted: Interrupted) -> None:
    assert interrupted.returncode == 130, interrupted.errors[-3000:]
    named = re.search(r"s2s: training stopped: the newest checkpoint is (\S+);", interrupted.errors)
    assert named is not None, interrupted.errors[-3000:]
    assert int(Path(named[1]).name) == interrupted.finished[-1] >= 2


def test_the_same_command_resumes(interrupted: Interrupted) -> None:
    resumed = interrupted.resumed
    assert "resumed" in resumed.stderr
    assert "best checkpoint" in resumed.stdout
    assert [entry["epoch"] for entry in interrupted.history] == list(range(EPOCHS))
    assert interrupted.history[-1]["step"] == 3 * EPOCHS


def test_no_helper_without_work_runs_beside_the_workers(interrupted: Interrupted) -> None:
    actors = {command.split()[0] for command in interrupted.processes if command.startswith("ray::")}
    assert "ray::RayTrainWorker" in actors
    assert not actors & {"ray::DatasetManager", "ray::PlacementGroupCleaner", "ray::PreemptionWatcher"}
