"""Does the sweep help? Pair-epochs until a given R@1, for random search and TPE, each with and without ASHA.

    python benchmarks/sweep.py                      # replays benchmarks/curves.json, two minutes
    python benchmarks/sweep.py --record curves.json # trains the configurations again, 20 minutes on two cores

The sweep starts from a deliberately bad default. Training each of the 4 x 5 sweeps would take days, so a **surrogate
replaces the trainer**: it interpolates between recorded learning curves of random configurations on the procedural
city (`--record`), using the four nearest ones in the unit cube of the space, weighted by inverse squared distance. The
searcher, the space and the scheduler are the sweep's own classes. Four trials run concurrently, and all epochs cost the
same. Each trial gets at least three epochs, because recall is noise before that.

The goals are the R@1 that one random configuration in 33, in 50 and in 100 reaches. The exit code is 1 if TPE + ASHA
needs more than half of random search's pair-epochs for the last one.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import math
import multiprocessing
import statistics
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from numpy.typing import NDArray

from s2s_ray.config import Config, load_config
from s2s_ray.data.prepare import prepare
from s2s_ray.sweep.search import StandIn, StudySearch, early_stopping
from s2s_ray.sweep.space import Params, Space
from s2s_ray.sweep.study import SweepStudy
from s2s_ray.sweep.trial import EPOCH, STARTED
from s2s_ray.training.loop import Trainer

CURVES = Path(__file__).with_name("curves.json")
EPOCHS, PAIRS = 9, 360  # of the pairs a fifth is held out for validation
SLOTS, TRIALS = 4, 128
GOALS = (0.97, 0.98, 0.99)
NEIGHBOURS = 4
RANGES = {
    "loss.alpha": (0.3, 100.0),
    "loss.lambda_ret": (1.0, 10000.0),
    "train.lr_retrieval": (1e-5, 1e-2),
    "train.lr_generator": (1e-5, 1e-2),
}
BAD = {"loss.alpha": 0.5, "loss.lambda_ret": 10.0, "train.lr_retrieval": 3e-5, "train.lr_generator": 3e-5}
ARMS = {
    "random": ("RandomSampler", "none"),
    "random + ASHA": ("RandomSampler", "asha"),
    "TPE": ("TPESampler", "none"),
    "TPE + ASHA": ("TPESampler", "asha"),
}


class Surrogate:
    """Learning curves interpolated between recorded ones."""

    def __init__(self, recorded: list[dict[str, Any]]) -> None:
        self.places = np.array([place(entry["params"]) for entry in recorded])
        self.curves = np.maximum.accumulate(np.array([entry["recall_at_1"] for entry in recorded]), axis=1)

    def curve(self, params: Params) -> NDArray[np.float64]:
        """Return the best R@1 so far after each epoch."""
        distance = np.square(self.places - place(params)).sum(1)
        nearest = np.argsort(distance)[:NEIGHBOURS]
        weight = 1 / (distance[nearest] + 1e-9)
        mixed: NDArray[np.float64] = (self.curves[nearest] * weight[:, None]).sum(0) / weight.sum()
        return mixed

    def random(self, count: int) -> NDArray[np.float64]:
        """Return the final R@1 of random configurations."""
        generator = np.random.default_rng(0)
        spans = {key: np.log(span) for key, span in RANGES.items()}
        drawn = [{key: float(np.exp(generator.uniform(*span))) for key, span in spans.items()} for _ in range(count)]
        return np.array([self.curve(params)[-1] for params in drawn])


def place(params: Params) -> NDArray[np.float64]:
    """Return a configuration as a point in the unit cube."""
    spans = [(math.log(params[key]), math.log(low), math.log(high)) for key, (low, high) in RANGES.items()]
    return np.array([(value - low) / (high - low) for value, low, high in spans])


def base(*overrides: str) -> Config:
    """Return the bad default: `tiny`, narrower and at half the width, so that many can be trained."""
    space = ", ".join(f"{key}: {{low: {low}, high: {high}, log: true}}" for key, (low, high) in RANGES.items())
    small = ("model.channels=4", "model.discriminator_channels=8", "model.width=88", "model.masks=4")
    bad = [f"{key}={value}" for key, value in BAD.items()]
    sizes = [
        f"source.train_pairs={PAIRS}",
        "source.test_pairs=2",
        f"train.epochs={EPOCHS}",
        "train.workers=1",
        "train.batch=16",
        "tune.grace_epochs=3",
    ]
    return load_config("tiny", [*small, *bad, *sizes, f"tune.space={{{space}}}", *overrides])


def train(config: Config, number: int, params: Params) -> list[float]:
    """Train one configuration, and return its validation R@1 after each epoch."""
    torch.set_num_threads(1)
    chosen = Space(config).config(params)
    own = {"storage": f"{config.train.storage}/curves", "name": f"trial-{number}"}
    trainer = Trainer(chosen.model_copy(update={"train": chosen.train.model_copy(update=own)}))
    return [round(entry["recall_at_1"], 5) for entry in trainer.fit()]


def record(count: int, file: Path) -> None:
    """Train random configurations on the procedural city, and write their validation R@1 after each epoch."""
    with tempfile.TemporaryDirectory(prefix="s2s-curves-") as folder:
        config = base(
            f"data.uri={folder}/data",
            f"train.storage={folder}/runs",
            "prepare.validation_fraction=0.2",
            "prepare.parallel=false",
        )
        manifest = prepare(config)
        space = Space(config)
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        tried = [space.start()]
        while len(tried) < count:
            trial = study.ask()
            space.suggest(trial)
            tried.append({key: float(f"{value:.5g}") for key, value in trial.params.items()})
        found: list[dict[str, Any]] = []
        tree = {"pairs": manifest.splits["train"].count, "gallery": manifest.splits["val"].count, "curves": found}
        with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
            curves = pool.map(train, itertools.repeat(config), range(count), tried)
            for params, curve in zip(tried, curves, strict=True):
                found.append({"params": params, "recall_at_1": curve})
                print(f"{len(found)} of {count}: R@1 {max(curve):.1%} {params}", flush=True)
        file.write_text(json.dumps(tree, indent=1) + "\n", encoding="utf-8")


def search(arm: str, seed: int, surrogate: Surrogate, goal: float, pairs: int) -> float:
    """Return the pair-epochs until one sweep of an arm reaches the goal; infinity if it never does."""
    sampler, scheduler = ARMS[arm]
    config = base(f"tune.sampler={sampler}", f"tune.scheduler={scheduler}", f"tune.seed={seed}")
    with tempfile.TemporaryDirectory(prefix="s2s-sweep-") as folder:
        study, space = SweepStudy(config.tune, folder), Space(config)
        study.prepare(space)
        searcher, stopping = StudySearch(config, space, study), early_stopping(config, [])
        clock, started, epochs = 0.0, 0, 0
        running: list[tuple[float, int, int]] = []  # end of the next epoch, trial, epoch
        curves: dict[int, NDArray[np.float64]] = {}
        while True:
            while started < TRIALS and len(running) < SLOTS:
                params = searcher.suggest(str(started))
                assert params is not None
                curves[started] = surrogate.curve(params)
                stopping.on_trial_add(None, StandIn(str(started)))  # type: ignore[arg-type]
                heapq.heappush(running, (clock + 1 + 1e-3 * started, started, 1))
                started += 1
            if not running:
                return math.inf
            clock, number, epoch = heapq.heappop(running)
            epochs += 1
            recall, name = float(curves[number][epoch - 1]), str(number)
            if recall >= goal:
                return float(epochs * pairs)
            result = {"recall_at_1": recall, EPOCH: epoch, STARTED: 0.0, "training_iteration": epoch}
            searcher.on_trial_result(name, result)
            decision = stopping.on_trial_result(None, StandIn(name), result)  # type: ignore[arg-type]
            if epoch == EPOCHS or decision == "STOP":
                searcher.on_trial_complete(name, result)
                stopping.on_trial_complete(None, StandIn(name), result)  # type: ignore[arg-type]
            else:
                heapq.heappush(running, (clock + 1, number, epoch + 1))


def main() -> int:
    """Print each arm's median pair-epochs and their ratio to random search."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", type=Path, help="train the configurations and write their curves to this file")
    parser.add_argument("--configurations", type=int, default=48, help="number of configurations to record")
    parser.add_argument("--curves", type=Path, default=CURVES, help="recorded curves to replay")
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.record is not None:
        record(arguments.configurations, arguments.record)
        return 0
    tree = json.loads(arguments.curves.read_text(encoding="utf-8"))
    surrogate = Surrogate(tree["curves"])
    best, anywhere = surrogate.curves[:, -1], surrogate.random(3000)
    print(
        f"surrogate of {len(best)} recorded trainings ({tree['pairs']} pairs, {EPOCHS} epochs, R@1 of "
        f"{tree['gallery']} tiles): R@1 from {best.min():.1%} to {best.max():.1%}, of the default {best[0]:.1%}; "
        f"at most {TRIALS} trials, {SLOTS} concurrently"
    )
    for quantile in GOALS:
        goal = float(np.quantile(anywhere, quantile))
        print(f"\ngoal: R@1 {goal:.1%}, which one random configuration in {1 / (1 - quantile):.0f} reaches")
        print("arm             median pair-epochs   ratio to random   of seeds reached")
        medians: dict[str, float] = {}
        for arm in ARMS:
            runs = [search(arm, seed, surrogate, goal, tree["pairs"]) for seed in range(arguments.seeds)]
            medians[arm] = statistics.median(runs)
            reached = sum(math.isfinite(run) for run in runs)
            ratio = medians[arm] / medians["random"]
            print(f"{arm:13s}   {medians[arm]:18.0f}   {ratio:15.2f}   {reached:11d} of {len(runs)}", flush=True)
        ratios = {arm: median / medians["random"] for arm, median in medians.items()}
        print(f"sampler's share {ratios['TPE']:.2f}, scheduler's {ratios['random + ASHA']:.2f}", end=", ")
        print(f"both {ratios['TPE + ASHA']:.2f}")
    holds = ratios["TPE + ASHA"] <= 0.5
    print(
        f"\nTPE + ASHA needs {'at most half' if holds else 'MORE THAN HALF'} of random's pair-epochs for the last goal"
    )
    return 0 if holds else 1


if __name__ == "__main__":
    raise SystemExit(main())
