"""A worker and then the driver are killed during training, and the same command resumes the run."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from s2s_ray.training.run import checkpoint_store
from tests.support.commands import started, train, wait_for_step, workers_of
from tests.support.killed_runs import Ending, configured, logged_history
from tests.support.processes import kill, processes_of

EPOCHS = 12  # of three steps each
pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]


def test_a_killed_worker_and_a_killed_driver_cost_nothing(
    settings: list[str], undisturbed: Callable[..., Ending], tmp_path: Path
) -> None:
    """The result is bit-identical to that of two undisturbed plain processes."""
    two = [*settings, "train.workers=2", "train.log_every_s=0.1"]
    config = configured(two, tmp_path, name="killed", epochs=EPOCHS)
    store = checkpoint_store(config)
    with started(train(two, tmp_path, "killed", EPOCHS)) as process:
        wait_for_step(store, 2, process)
        victims = workers_of(process.pid)
        assert len(victims) == 2
        victims[0].kill()
        wait_for_step(store, store.steps()[-1] + 3, process)
        assert not set(victims) & set(workers_of(process.pid))
        process.kill()
        _, errors = process.communicate()
    assert "resumed" in errors
    assert store.steps()[-1] < 3 * EPOCHS, "the driver was killed too late to matter"
    deadline = time.monotonic() + 60
    while left := workers_of(process.pid):
        assert time.monotonic() < deadline, f"workers outlive their driver: {left}"
        time.sleep(0.2)
    kill(processes_of(process.pid))  # Ray's agents take their time

    again = subprocess.run(train(two, tmp_path, "killed", EPOCHS), capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr[-3000:]
    assert "resumed" in again.stderr
    Ending.of(config).assert_same(undisturbed(2, EPOCHS))
    assert logged_history(config) == undisturbed(2, EPOCHS).history
