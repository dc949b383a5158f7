"""The six real sample pairs, with the same commands as any user's images."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from s2s_ray.cli import app

pytestmark = [pytest.mark.integration, pytest.mark.shared]


@pytest.mark.timeout(600)
def test_six_real_pairs_are_memorised(shared: Path, tmp_path: Path) -> None:
    samples = shared / "samples" / "real_pairs"
    if not samples.is_dir():
        pytest.skip("the real sample pairs are not at hand")
    manifest = tmp_path / "pairs.csv"
    with manifest.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(("id", "satellite", "street", "split"))
        for split in ("train", "val", "test"):
            for number in range(6):
                images = (samples / f"{number:03d}_{view}.png" for view in ("satellite", "street"))
                rows.writerow((f"{split}-{number}", *images, split))
    settings = (
        "source.kind=manifest",
        f"source.uri={manifest}",
        f"data.uri={tmp_path / 'data'}",
        f"train.storage={tmp_path / 'runs'}",
        "train.name=real",
        "train.workers=1",
        "train.batch=6",
        "train.epochs=45",
        "train.validate_every=15",
        "data.flip=0",
        "prepare.parallel=false",
    )
    options = ["--config", "tiny", *(part for setting in settings for part in ("--set", setting))]
    runner = CliRunner()

    def s2s(*arguments: str) -> str:
        done = runner.invoke(app, [*arguments, *options], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    s2s("prepare")
    s2s("train")
    run = str(tmp_path / "runs" / "real")
    s2s("evaluate", "--checkpoint", run, "--out", str(tmp_path / "evaluation"))
    metrics = json.loads((tmp_path / "evaluation" / "metrics.json").read_text())
    assert metrics["gallery"] == 6
    assert metrics["street_to_satellite"]["recall_at_1"] == 1.0  # memorised: the six were trained on
    assert metrics["satellite_to_street"]["recall_at_1"] == 1.0
    history = json.loads((tmp_path / "runs" / "real" / "history.json").read_text())
    assert history[-1]["l1_weighted"] < 0.5 * history[0]["l1_weighted"]
    for name in ("retrieval.png", "synthesis.png"):
        assert (tmp_path / "evaluation" / name).stat().st_size > 10_000
