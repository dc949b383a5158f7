"""Does synthesis help retrieval, and does mining? Ablations on the procedural city, in which all arms see equal pairs.

    python benchmarks/ablation.py

For each seed (of the world and of the training) a model of each arm is trained from scratch on the same number of
pairs, in the same order, and measured once on the held-out region: R@1 of its last epoch's weights. `mining` is
hard-negative mining as a fine-tuning step: it continues from the checkpoint of `full` before its last epochs, and
discards 90% of the triplets in these. With `--folder` it can be stopped at any time, and the same command resumes it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch

from s2s_ray.config import Config, load_config
from s2s_ray.data.dataset import PairDataset
from s2s_ray.data.prepare import prepare
from s2s_ray.evaluation.evaluate import evaluate
from s2s_ray.training.loop import Trainer
from s2s_ray.training.run import run_uri

EPOCHS, MINED = 5, 2
SETTINGS = [
    "source.train_pairs=500",
    "source.test_pairs=250",
    f"train.epochs={EPOCHS}",
    "train.checkpoint_every=8",
    f"train.validate_every={EPOCHS - MINED}",
    "prepare.parallel=false",
]
TRUNK = "trunk"  # the epochs that `full` and `mining` share
ARMS = {
    TRUNK: [f"train.epochs={EPOCHS - MINED}"],
    "full": [],
    "retrieval_only": ["model.ablation=retrieval_only"],
    "mining": [f"mining.start={EPOCHS - MINED}", "mining.discard=[90]"],
    "no_gan": ["model.ablation=no_gan"],
    "separate_features": ["model.ablation=separate_features"],
}
COMPARED = {"retrieval_only": "full", "full": "mining", "no_gan": "full", "separate_features": "full"}


def measure(folder: Path, seed: int, arm: str, overrides: list[str]) -> dict[str, float]:
    """Return the figures of one arm and seed on the held-out region, from the folder if it has them."""
    result = folder / f"seed{seed}-{arm}.json"
    if result.exists():
        return dict(json.loads(result.read_text()))
    config = settings(folder, seed, arm, overrides)
    prepare(config)
    if arm in ("full", "mining"):
        trunk = settings(folder, seed, TRUNK, overrides)
        Trainer(trunk).fit()
        own = Path(run_uri(config))
        if not own.exists():
            part = own.with_name(f"{arm}.part")
            shutil.rmtree(part, ignore_errors=True)
            shutil.copytree(run_uri(trunk), part)
            part.rename(own)
    trainer = Trainer(config)
    trainer.fit()
    trainer.model.eval()
    report = evaluate(trainer.model, PairDataset.open(config.data, "test"), config.evaluation)
    figures = {"recall_at_1": report.street_to_satellite.recall["1"], **report.synthesis}
    figures["pairs"] = trainer.config.train.epochs * len(trainer.train_set)
    result.write_text(json.dumps(figures))
    return figures


def settings(folder: Path, seed: int, arm: str, overrides: list[str]) -> Config:
    """Return the configuration of one arm and seed."""
    places = [
        f"data.uri={folder}/city{seed}",
        f"train.storage={folder}/runs{seed}",
        f"train.name={arm}",
        f"source.seed={seed}",
        f"train.seed={seed}",
    ]
    return load_config("tiny", [*SETTINGS, *places, *overrides, *ARMS[arm]])


def table(found: dict[str, dict[int, dict[str, float]]], seeds: list[int]) -> list[str]:
    """Return a table with a row for each arm: R@1 of each seed, mean and spread; L1 and SSIM if it synthesises."""
    lines = ["arm                 " + "".join(f"  seed {seed}" for seed in seeds) + "    mean    s.d.      L1    SSIM"]
    for arm, results in found.items():
        recalls = [100 * results[seed]["recall_at_1"] for seed in seeds]
        shown = "".join(f"{recall:7.1f}%" for recall in recalls)
        spread = f"{statistics.mean(recalls):7.1f}% {statistics.stdev(recalls):6.1f}" if len(seeds) > 1 else ""
        views = [
            f"{statistics.mean(results[seed][name] for seed in seeds):8.3f}"
            if name in results[seeds[0]]
            else "       -"
            for name in ("l1", "ssim")
        ]
        lines.append(f"{arm:20s}{shown} {spread} {''.join(views)}")
    return lines


def differences(found: dict[str, dict[int, dict[str, float]]], seeds: list[int]) -> list[str]:
    """Return the differences in R@1 between the compared arms, paired by seed."""
    lines = []
    for base, other in COMPARED.items():
        if base not in found or other not in found:
            continue
        gains = [100 * (found[other][seed]["recall_at_1"] - found[base][seed]["recall_at_1"]) for seed in seeds]
        mean, spread = statistics.mean(gains), statistics.stdev(gains) if len(gains) > 1 else float("nan")
        better = sum(gain > 0 for gain in gains)
        word = "more" if mean > 0 else "less"
        lines.append(
            f"{other} has {abs(mean):.1f} points {word} R@1 than {base} (s.d. of the difference {spread:.1f}; "
            f"better on {better} of {len(gains)} seeds)"
        )
    return lines


def _arms() -> list[str]:
    return [arm for arm in ARMS if arm != TRUNK]


def main() -> int:
    """Train the missing models, then print the table and the differences."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=_arms(), choices=_arms())
    parser.add_argument("--folder", help="folder of data, runs and results; temporary by default")
    parser.add_argument("--set", dest="overrides", action="append", default=[], help="change the preset: a.b=value")
    arguments: Any = parser.parse_args()
    torch.set_num_threads(2)
    found: dict[str, dict[int, dict[str, float]]] = {arm: {} for arm in arguments.arms}
    with tempfile.TemporaryDirectory(prefix="s2s-ablation-") as temporary:
        folder = Path(arguments.folder or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for seed in arguments.seeds:
            for arm in arguments.arms:
                found[arm][seed] = measure(folder, seed, arm, arguments.overrides)
                figures = found[arm][seed]
                print(f"seed {seed} {arm}: R@1 {figures['recall_at_1']:.1%} after {figures['pairs']} pairs", flush=True)
    print("\n".join([*table(found, arguments.seeds), *differences(found, arguments.seeds)]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
