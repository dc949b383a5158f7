"""A sweep on a disk that fills up ends with the reason and goes on when there is room. The test mounts a small disk."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.chaos.test_disk import disk
from tests.integration.test_sweep import command, trials

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]


def test_a_sweep_on_a_full_disk_loses_nothing(narrow: list[str], tmp_path: Path) -> None:
    with disk(tmp_path / "disk", 8 << 20) as folder:
        places = [
            *narrow,
            "model.street_blocks=[1,1,1]",
            "train.workers=1",
            "train.epochs=3",
            f"tune.storage={folder / 'sweeps'}",
            f"tune.registry={tmp_path / 'registry'}",
            "tune.name=night",
            "tune.scheduler=none",
            "tune.concurrent=1",
            "tune.trials=3",
            "tune.max_failures=0",
            "tune.space={loss.alpha: {low: 2, high: 50, log: true}}",
        ]
        filler = folder / "filler"
        filler.write_bytes(b"\1" * (5 << 20))
        full = subprocess.run(command("tune.py", *places), capture_output=True, text=True, timeout=300)
        assert full.returncode == 2, full.stderr[-3000:]
        last = full.stderr.strip().splitlines()[-1]
        assert last.startswith("s2s: ")
        assert str(folder) in last
        assert "full" in last, "the reason"
        filler.unlink()
        subprocess.run(["mount", "-o", "remount,size=64m", str(folder)], check=True)
        done = subprocess.run(command("tune.py", *places), capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        rows = trials(folder / "sweeps" / "night")
        assert [(row["state"], row["epochs"]) for row in rows] == [("complete", 3)] * 3
