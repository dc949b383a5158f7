"""The cost of an unknown heading, and what rolling features instead of images loses.

    python benchmarks/headings.py [--recall] [--json]

Cost: the CPU time to embed a street view for every heading (`Embedder.embed_turned`), in units of one embedding, on one
core, with the steps alternating. The goals are 3 with `tiny`, whose columns of features are 16 degrees wide, and 1.5
with `paper`. `--recall` also trains the `tiny` preset with InfoNCE on the procedural city, with and without circular
convolutions, and compares the R@1 of held-out panoramas of unknown heading: the best heading by rolled features, and
by as many rolled images (brute force). The exit code is 1 if a goal is missed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from s2s_ray.config import load_config
from s2s_ray.data.dataset import PairDataset
from s2s_ray.data.prepare import prepare
from s2s_ray.inference import Embedder
from s2s_ray.model.s2s import S2S
from s2s_ray.training.loop import Trainer

AZIMUTH = ["model.pooling=azimuth", "model.circular=true"]
COSTS = [("tiny", [], 3.0), ("tiny", AZIMUTH, 3.0), ("paper", [], 1.5), ("paper", AZIMUTH, 1.5)]
RECALLS = {"as the paper pads": [], "circular": ["model.circular=true"], "circular, azimuth": AZIMUTH}


def cost(preset: str, overrides: list[str], repetitions: int) -> tuple[float, float, int]:
    """Return the seconds of one embedding, those for all headings in units of it, and the number of headings."""
    config = load_config(preset, [*overrides, "model.street_weights=random"])
    embedder = Embedder(S2S(config.model))
    embedder.specialise("street")
    view = torch.randint(0, 256, (1, 3, config.model.height, config.model.width), dtype=torch.uint8)
    headings = embedder.embed_turned(view)[1]
    embedder.embed_street(view)
    once, ratios = [], []
    for _ in range(repetitions):
        started = time.process_time()
        embedder.embed_street(view)
        between = time.process_time()
        embedder.embed_turned(view)
        once.append(between - started)
        ratios.append((time.process_time() - between) / once[-1])
    return statistics.median(once), statistics.median(ratios), len(headings)


def recall(folder: Path, name: str, overrides: list[str], seed: int) -> dict[str, float]:
    """Train on the city of a seed; return the R@1 of held-out panoramas of unknown heading, by both ways."""
    places = [f"data.uri={folder}/data", f"train.storage={folder}/runs", f"train.name={name}"]
    seeds = [f"source.seed={seed}", f"train.seed={seed}", "loss.retrieval=infonce", "prepare.parallel=false"]
    config = load_config("tiny", [*places, *seeds, *overrides])
    if not (folder / "data").exists():
        prepare(config)
    trainer = Trainer(config)
    trainer.fit()
    embedder = Embedder(trainer.model)
    pairs = PairDataset.open(config.data, "test")
    polar, street = (torch.stack([getattr(pairs[i], view) for i in range(len(pairs))]) for view in ("polar", "street"))
    width = street.shape[-1]
    turns = np.random.default_rng(seed).integers(0, width, len(street))
    asked = torch.stack([view.roll(int(turn), -1) for view, turn in zip(street, turns, strict=True)])
    gallery = torch.from_numpy(embedder.embed_satellite(polar))
    turned, headings = embedder.embed_turned(asked)
    shifts = [round(heading / 360 * width) for heading in headings]
    images = np.stack([embedder.embed_street(asked.roll(shift, -1)) for shift in shifts], 1)
    aligned = embedder.embed_street(street)[:, None]
    ways = {"aligned": aligned, "features": turned, "images": images}
    return {way: _found(torch.from_numpy(queries), gallery) for way, queries in ways.items()}


def _found(queries: Tensor, gallery: Tensor) -> float:
    """Return the R@1 of N T D queries, at their best heading, in the gallery N D."""
    best = (queries @ gallery.T).amax(1)
    return float((best.argmax(1) == torch.arange(len(gallery))).float().mean())


def main() -> int:
    """Print a row for each model, and whether the goals are met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=30)
    parser.add_argument("--recall", action="store_true", help="train, and compare with brute force over images")
    parser.add_argument("--seed", type=int, default=0, help="of the city and of the training")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    say = (lambda line: None) if arguments.json else print
    rows, met = [], True
    say("model                    one embedding   headings   all headings   goal")
    for preset, overrides, goal in COSTS:
        name = f"{preset}, azimuth" if overrides else preset
        seconds, ratio, headings = cost(preset, overrides, arguments.repetitions)
        rows.append({"model": name, "seconds": seconds, "headings": headings, "ratio": ratio, "goal": goal})
        met &= ratio <= goal
        say(f"{name:22}   {1000 * seconds:10.1f} ms   {headings:8d}   {ratio:10.2f} x   {goal:4.1f}")
    recalls = {}
    if arguments.recall:
        say("R@1, heading unknown    aligned   rolled features   rolled images")
        with tempfile.TemporaryDirectory(prefix="s2s-headings-") as folder:
            for number, (name, overrides) in enumerate(RECALLS.items()):
                found = recalls[name] = recall(Path(folder), f"arm{number}", overrides, arguments.seed)
                say(f"{name:22}   {found['aligned']:7.1%}   {found['features']:15.1%}   {found['images']:13.1%}")
    if arguments.json:
        print(json.dumps({"cost": rows, "recall": recalls, "seed": arguments.seed}, indent=2))
    say("all goals are met" if met else "A GOAL IS MISSED")
    return 0 if met else 1


if __name__ == "__main__":
    raise SystemExit(main())
