"""The exporter serves the inventory to Prometheus."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from s2s_ray.errors import NotFoundError
from s2s_ray.monitoring.exporter import StorageCollector, exporting
from s2s_ray.monitoring.inventory import Inventory, ReleaseStatus, RunStatus, SweepStatus, take_inventory
from s2s_ray.runtime.metrics import STORAGE
from tests.support.ports import free_port


def test_the_exporter_serves_the_inventory(root: Path) -> None:
    port = free_port()
    with exporting([str(root)], "127.0.0.1", port) as collector:
        page = httpx2.get(f"http://127.0.0.1:{port}/metrics").text
        families = {family.name: family for family in text_string_to_metric_families(page)}
        assert set(families) == set(STORAGE), "exactly the listed metrics"
        values = {
            (sample.name, *(value for key, value in sample.labels.items() if key not in ("root", "path"))): sample.value
            for family in families.values()
            for sample in family.samples
        }
        assert {sample.labels["path"] for sample in families["s2s_run_complete"].samples} == {
            "runs/complete",
            "runs/cut",
            "runs/wild",
        }
        assert values["s2s_run_complete", "complete"] == 1
        assert values["s2s_run_complete", "cut"] == 0
        assert values["s2s_run_diverged", "wild"] == 1
        assert values["s2s_run_epochs_done", "cut"] == 1
        assert values["s2s_stored_sweep_trials", "failed", "night"] == 1
        assert values["s2s_stored_sweep_best_recall_at_1", "night"] == 0.5
        assert values["s2s_registry_releases", "city"] == 1
        assert values["s2s_exporter_faults",] == 1
        assert 0 <= values["s2s_run_checkpoint_age_seconds", "complete"] < 600
        newest = sorted((root / "runs" / "complete" / "checkpoints").glob("*/manifest.json"))[-1]
        os.utime(newest, (2000, 2000))
        collector.scan()
        page = httpx2.get(f"http://127.0.0.1:{port}/metrics").text
        assert re.search(r's2s_run_checkpoint_timestamp_seconds\{.*run="complete"\} 2000\.0', page)


def test_every_root_is_scanned_once_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scanned: list[str] = []

    def take(root: str) -> Inventory:
        scanned.append(root)
        return take_inventory(root)

    monkeypatch.setattr("s2s_ray.monitoring.exporter.take_inventory", take)
    roots = [str(tmp_path / name) for name in "ab"]
    for root in roots:
        Path(root).mkdir()
    with exporting(roots, "127.0.0.1", free_port()) as collector:
        assert scanned == roots
        Path(roots[0]).rmdir()
        collector.scan()
        assert {sample.labels["root"] for family in collector.collect() for sample in family.samples} == set(roots)
    with pytest.raises(NotFoundError), exporting(roots, "127.0.0.1", free_port()):
        pass


def test_runs_sweeps_and_names_in_several_folders_are_series_of_their_own() -> None:
    def inventory(root: str) -> Inventory:
        folders = [f"{root}/{folder}" for folder in ("one", "two", "two/deeper")]
        return Inventory(
            root,
            [
                RunStatus("full", f"{uri}/full", 3, 1, 7, 0.5, 0.5, {"gan": 1.0}, 1.0, 1, 7, 1.0, None)
                for uri in folders
            ],
            [SweepStatus("night", f"{uri}/night", 3, {"complete": 1}, 0.5, 0) for uri in folders],
            [ReleaseStatus("city", f"{uri}/city", 3, "a", 1.0) for uri in folders],
        )

    collector = StorageCollector([])
    collector._scanned = {root: (inventory(root), 1.0, 1.0) for root in ("/data", "/data/two", "s3://bucket/x")}
    samples = [
        (sample.name, *sorted(sample.labels.items())) for family in collector.collect() for sample in family.samples
    ]
    assert len(samples) == len(set(samples))
    assert [sample for sample in samples if ("root", "/data") in sample and sample[0] == "s2s_run_epochs"] == [
        ("s2s_run_epochs", ("path", f"{folder}/full"), ("root", "/data"), ("run", "full"))
        for folder in ("one", "two", "two/deeper")
    ]


@pytest.mark.slow
def test_the_exporter_command_serves_until_it_is_stopped(root: Path) -> None:
    port = free_port()
    words = [sys.executable, "-m", "s2s_ray.cli", "exporter", str(root), "--port", str(port)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert f"Serving metrics for {root} at http://127.0.0.1:{port}/metrics" in process.stdout.readline()
            assert "s2s_run_complete" in httpx2.get(f"http://127.0.0.1:{port}/metrics").text
            taken = subprocess.run(words, capture_output=True, text=True, timeout=60)
            assert taken.returncode == 2
            assert f"--host 127.0.0.1 --port {port}: cannot listen there" in taken.stderr
            process.terminate()
            assert process.wait(timeout=20) == 0
        finally:
            process.kill()
