"""Two drivers of one run: the second is refused, and one that lost the run writes nothing more."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from s2s_ray.config import Config
from s2s_ray.errors import RunError
from s2s_ray.storage import holder, lease
from s2s_ray.training import loop
from s2s_ray.training.guard import driving_run
from s2s_ray.training.loop import Trainer
from s2s_ray.training.run import run_uri
from tests.support.killed_runs import before_step, configured


@pytest.fixture
def config(narrow: list[str], tmp_path: Path) -> Config:
    return configured([*narrow, "model.street_blocks=[1,1,1]"], tmp_path, epochs=2)


def written(run: Path) -> dict[str, bytes]:
    """The files of a run that a driver writes."""
    kept = [path for path in run.rglob("*") if path.is_file() and "tensorboard" not in path.parts]
    return {str(path.relative_to(run)): path.read_bytes() for path in kept if lease.DRIVER_FILE not in path.name}


class Tracker:
    """A tracker that keeps what it is told."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def epoch(self, metrics: Mapping[str, Any]) -> None:
        self.calls.append(f"epoch {metrics['epoch']}")

    def close(self, *, complete: bool) -> None:
        self.calls.append("finished" if complete else "killed")


def test_a_second_trainer_of_a_run_is_refused(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = Trainer(config), Trainer(config)
    tracker = Tracker()
    monkeypatch.setattr(loop, "open_trackers", lambda _config: [tracker])
    refused: list[str] = []

    def try_second() -> None:
        before = written(Path(run_uri(config)))
        with pytest.raises(RunError) as caught:
            second.fit()
        refused.append(str(caught.value))
        assert written(Path(run_uri(config))) == before

    before_step(first, 1, try_second)
    assert len(first.fit()) == 2
    assert tracker.calls == ["epoch 0", "epoch 1", "finished"]
    [message] = refused
    assert message.startswith("run 'run' at ")
    assert "is already run by PID" in message
    assert len(second.fit()) == 2, "when the first has ended the second finds a finished run"


def test_a_driver_that_is_wanted_waits(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "POLL_S", 0.01)
    first, second = Trainer(config), Trainer(config)
    histories: list[list[dict[str, Any]]] = []
    waiting = threading.Thread(target=lambda: histories.append(second.fit(wait=True)))
    before_step(first, 1, waiting.start)
    history = first.fit()
    waiting.join(timeout=60)
    assert histories == [history], "it continues the run of the first"


@pytest.mark.parametrize("held", ["by the trainer", "by its driver"])
@pytest.mark.parametrize("checkpoint_every", [None, 1])
def test_a_trainer_that_lost_its_run_writes_nothing_more(
    config: Config, monkeypatch: pytest.MonkeyPatch, held: str, checkpoint_every: int | None
) -> None:
    """Its process was suspended for longer than its lease, and a process of another machine resumed the run."""
    train = config.train.model_copy(update={"checkpoint_every": checkpoint_every})
    config = config.model_copy(update={"train": train})
    now, run = [0.0], Path(run_uri(config))
    monkeypatch.setattr(lease, "clock", lambda: now[0])
    monkeypatch.setattr(lease, "pause", lambda seconds: now.__setitem__(0, now[0] + seconds))
    before: dict[str, bytes] = {}
    tracker = Tracker()
    monkeypatch.setattr(loop, "open_trackers", lambda _config: [tracker])

    def suspended(trainer: Trainer) -> Callable[[], None]:
        def act() -> None:
            trainer.store.flush()
            with monkeypatch.context() as patch:
                patch.setattr(holder, "_machine", lambda: "another")
                driving_run(config).__enter__()
            before.update(written(run))

        return act

    trainer = Trainer(config)
    before_step(trainer, 1, suspended(trainer))
    message = r"run 'run' at .*: PID \d+ on .* took it over, because this process had shown no sign of life for 60 s"
    if held == "by the trainer":
        with pytest.raises(RunError, match=message):
            trainer.fit()
    else:
        with driving_run(config) as own, pytest.raises(RunError, match=message):
            trainer.fit(check=own.fence.check)
    assert before
    assert written(run) == before
    assert tracker.calls == [], "the run of the tracker is that of the other process now"
    assert json.loads((run / lease.DRIVER_FILE).read_text())["epoch"] == 2
