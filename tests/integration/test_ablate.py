"""An ablation study as Ray Tune trials: every arm with every seed, resumed, and with an arm that fails."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from s2s_ray.ablation.study import ablate
from s2s_ray.config import Config, load_config
from s2s_ray.errors import AblationError, ConfigError
from s2s_ray.model.checkpoint_meta import read_meta
from s2s_ray.training.run import find_checkpoint

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900), pytest.mark.usefixtures("ray_cluster")]


def study(narrow: list[str], folder: Path, *overrides: str) -> Config:
    settings = [*narrow, f"ablate.storage={folder}", "ablate.seeds=[3, 4]", "train.epochs=1", "train.workers=1"]
    return load_config("tiny", [*settings, "evaluation.gallery_rows=1", "ablate.examples=2", *overrides])


def test_arms_and_seeds_are_trained_compared_and_not_trained_again(
    narrow: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    arms = ["ablate.arms=[full, retrieval_only]", "ablate.differences={hot: {loss.alpha: 40.0, model.masks: 1}}"]
    root = Path(ablate(study(narrow, tmp_path, *arms)))
    names = {f"{arm}-seed{seed}" for arm in ("full", "retrieval_only", "hot") for seed in (3, 4)}
    assert {path.name for path in (root / "results").iterdir()} == names
    meta = read_meta(find_checkpoint(str(root / "runs" / "hot-seed4")))
    assert (meta["config"]["loss"]["alpha"], meta["model"]["masks"], meta["config"]["train"]["seed"]) == (40.0, 1, 4)
    assert read_meta(find_checkpoint(str(root / "runs" / "full-seed3")))["config"]["loss"]["alpha"] == 10.0
    tree = json.loads((root / "ablation.json").read_text())
    assert (tree["gallery"], tree["seeds"], list(tree["arms"])) == (2, [3, 4], ["full", "retrieval_only", "hot"])
    for arm, entry in tree["arms"].items():
        for key, spread in entry["metrics"].items():
            results = [json.loads((root / "results" / f"{arm}-seed{s}" / "metrics.json").read_text()) for s in (3, 4)]
            values = [result.get(key, result["street_to_satellite"].get(key)) for result in results]
            assert spread["seeds"] == values
            assert spread["mean"] == pytest.approx(sum(values) / 2)
            assert spread["deviation"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
        assert ("l1" in entry["metrics"]) == (arm != "retrieval_only")
    table = (root / "table.txt").read_text().splitlines()
    assert table[0].split()[:4] == ["R@1", "R@5", "R@10", "R@1%"]
    assert [line.split("  ")[0] for line in table[1:4]] == ["full", "i. retrieval only", "hot"]
    assert "over 2 seeds; recall in % of a gallery of 2" in table[4]
    with Image.open(root / "comparison.png") as image:
        assert image.width == 1200
    assert (root / "comparison.pdf").read_bytes().startswith(b"%PDF")

    stamps = {path: path.stat().st_mtime_ns for path in root.rglob("history.json")}
    (root / "results" / "full-seed4" / "metrics.json").unlink()
    caplog.set_level("INFO", "s2s_ray")
    ablate(study(narrow, tmp_path, *arms))
    assert "1 of 6 runs to do" in caplog.text
    assert {path: path.stat().st_mtime_ns for path in root.rglob("history.json")} == stamps, (
        "a finished run was trained again"
    )
    assert json.loads((root / "ablation.json").read_text()) == tree
    with pytest.raises(AblationError, match=r"study 'ablation' .* was started with loss.alpha=10.0, now it is 20.0"):
        ablate(study(narrow, tmp_path, *arms, "loss.alpha=20"))


def test_a_run_that_diverges_is_named_and_the_others_are_kept(narrow: list[str], tmp_path: Path) -> None:
    arms = ["ablate.arms=[retrieval_only]", "ablate.differences={wild: {train.lr_retrieval: 1.0e+30}}"]
    with pytest.raises(AblationError, match=r"wild-seed3 diverged at step \d+: .*; the same command retries them"):
        ablate(study(narrow, tmp_path, *arms, "ablate.seeds=[3]", "train.epochs=3"))
    assert (tmp_path / "ablation" / "results" / "retrieval_only-seed3" / "metrics.json").exists()
    with pytest.raises(ConfigError, match=r"loss.alhpa: unknown key"):
        ablate(study(narrow, tmp_path, "ablate.differences={typo: {loss.alhpa: 1.0}}", "ablate.name=other"))
    assert not (tmp_path / "other").exists()
