"""The inventory of a storage root."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from s2s_ray.errors import NotFoundError
from s2s_ray.monitoring.inventory import take_inventory
from s2s_ray.sweep.origin import SweepOrigin
from s2s_ray.sweep.study import read_records


def test_inventory_of_a_root(root: Path) -> None:
    found = take_inventory(str(root))
    runs = {run.name: run for run in found.runs}
    assert set(runs) == {"complete", "cut", "wild"}
    assert runs["complete"].complete
    assert (runs["complete"].epochs_done, runs["complete"].step) == (2, 2)
    assert 0 <= (runs["complete"].best_recall or 0) <= 1
    assert abs(time.time() - (runs["complete"].checkpoint_time or 0)) < 600
    assert (runs["cut"].complete, runs["cut"].epochs_done, runs["cut"].epochs) == (False, 1, 9)
    assert "step" in (runs["wild"].diverged or "")
    assert runs["wild"].checkpoints in (0, 1)
    [fault] = found.faults
    assert "damaged" in fault
    assert "train.epochs='many'" in fault
    [sweep] = found.sweeps
    assert (sweep.requested, sweep.states) == (5, {"complete": 2, "failed": 1, "running": 1})
    [tree] = found.as_dict()["sweeps"]
    assert tree["requested"] == tree["asked"] == 5
    assert (sweep.best_recall, sweep.best_trial) == (0.5, 1)
    [name] = found.names
    assert (name.name, name.releases, name.current, name.promoted) == ("city", 1, None, None)


def test_an_inventory_changes_nothing(root: Path) -> None:
    before = {path: path.read_bytes() for path in (root / "sweeps").rglob("*") if path.is_file()}
    take_inventory(str(root))
    assert {path: path.read_bytes() for path in (root / "sweeps").rglob("*") if path.is_file()} == before
    sweep = str(root / "sweeps" / "night")
    assert read_records(SweepOrigin.at(sweep).configuration(sweep).tune, str(root / "nowhere")) == []


def test_a_root_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="nowhere does not exist"):
        take_inventory(str(tmp_path / "nowhere"))


def test_a_package_that_is_missing_is_a_fault_and_not_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_optuna(uri: str) -> None:
        raise ModuleNotFoundError("No module named 'optuna'", name="optuna")

    monkeypatch.setattr("s2s_ray.monitoring.inventory.sweep_status", without_optuna)
    written = Path(__file__).parents[1] / "fixtures" / "written_by_0.1.0"

    found = take_inventory(str(written))

    assert [run.name for run in found.runs] == ["first"]
    assert [fault for fault in found.faults if "night" in fault] == [
        f"{written}/sweeps/night: reading a sweep needs optuna: pip install 's2s-ray[tune]'"
    ]
