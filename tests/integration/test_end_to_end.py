"""`make demo` in miniature, in a separate process: from an empty folder to matches over HTTP."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.support.processes import commands_of

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.integration

PAIRS, GALLERY = 56, 24
SMALL = (
    f"source.train_pairs={PAIRS}",
    f"source.test_pairs={GALLERY}",
    "model.channels=4",
    "model.discriminator_channels=4",
    "model.residual_blocks=1",
    "prepare.shard_mb=0.5",
    "train.epochs=3",
    "train.batch=12",
    "train.warmup_steps=3",
    "tune.trials=3",
    "prepare.parallel=false",
)


@pytest.mark.timeout(600)
def test_demo_from_an_empty_folder_to_matches(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    overrides = [part for setting in SMALL for part in ("--set", setting)]
    command = [sys.executable, "-m", "jobs.demo", "--folder", str(folder), "--side", "60", *overrides]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
        output, _ = process.communicate(timeout=570)
    assert process.returncode == 0, output[-5000:]
    assert commands_of(process.pid) == [], "the demo left processes running"

    summary = json.loads((folder / "summary.json").read_text())
    assert summary["gallery"] == GALLERY
    assert summary["chance"] == pytest.approx(1 / GALLERY)
    assert 0 <= summary["recall_at_1"] <= summary["recall_at_5"] <= summary["recall_at_10"] <= 1
    assert summary["l1_after"] < 0.9 * summary["l1_before"]
    # The service finds what the evaluation found: same checkpoint, same index, same preparation of images.
    assert summary["asked"] == GALLERY
    assert summary["recall_at_1_served"] == pytest.approx(summary["recall_at_1"], abs=1 / GALLERY + 1e-9)
    assert set(summary["seconds"]) == {"prepare", "sweep", "train", "evaluate", "publish", "region", "serve", "total"}

    trials = pq.read_table(folder / "sweeps" / "sweep" / "trials.parquet").to_pylist()
    assert [trial["state"] for trial in trials] == ["complete"] * 3
    assert (trials[0]["loss.scale"], trials[0]["loss.lambda_ret"]) == (20.0, 1000.0), "the preset's setting is first"

    assert set(summary["protocols"]) == {"heading", "fov=90", "heading+fov=90"}
    assert all(0 <= recall <= 1 for recall in summary["protocols"].values())
    region = summary["region"]
    assert (region["tiles"], region["pictures"]) == (64, GALLERY)
    # A fix is inside the region: no farther from the truth than its diagonal, and the tiles' spacing.
    assert all(0 < region[heading]["median_m"] < 60 * 2**0.5 + 8 for heading in ("known", "unknown"))

    for name in ("retrieval.png", "synthesis.png", "curves.png", "fixes.png"):
        with Image.open(folder / "pictures" / name) as picture:
            assert picture.width > 600, name
    drawn = sorted((folder / "pictures").glob("synthesised-*.png"))
    assert len(drawn) == 4
    with Image.open(drawn[0]) as picture:
        assert picture.size == (176, 32)
    dataset = json.loads((folder / "data" / "dataset.json").read_text())
    assert dataset["splits"]["train"]["count"] + dataset["splits"]["val"]["count"] == PAIRS
    assert "What to run next" in output
