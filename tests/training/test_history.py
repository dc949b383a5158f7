"""The history of a run, whatever version wrote it."""

from __future__ import annotations

from pathlib import Path

import pytest

from s2s_ray import storage
from s2s_ray.errors import DamagedError, RunError
from s2s_ray.training.history import read_history, write_history


def test_history_round_trip(tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    assert read_history(run) == []
    history = [{"epoch": 0, "step": 3, "r_loss": 0.5}, {"epoch": 1, "step": 6, "r_loss": 0.25, "recall_at_1": 1.0}]
    write_history(run, history)
    assert read_history(run) == history


@pytest.mark.parametrize("tree", [{"epochs": []}, [1], [{"step": 1}], [{"epoch": "0"}], None])
def test_a_damaged_history_is_named(tmp_path: Path, tree: object) -> None:
    storage.write_json(storage.join(str(tmp_path), "history.json"), tree)
    with pytest.raises(DamagedError, match=r"history\.json"):
        read_history(str(tmp_path))


def test_a_newer_history_is_refused(tmp_path: Path) -> None:
    storage.write_json(storage.join(str(tmp_path), "history.json"), {"format": 2, "epochs": []})
    with pytest.raises(RunError, match="upgrade s2s-ray"):
        read_history(str(tmp_path))
