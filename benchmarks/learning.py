"""Learning against luck: the `tiny` preset on three worlds, with two controls measured in the same run.

    python benchmarks/learning.py

For each seed (of the world and of the training) it measures the held-out R@1 of the model, of the same model trained on
shuffled pairs, which cannot be learned, and of matching by colour without a model. The exit code is 1 if the first
control is above 3 x chance, or if matching by colour reaches half the R@1 of the model.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from colour import colour_matching_recall

from s2s_ray.config import Config, load_config
from s2s_ray.data.batch import Sample
from s2s_ray.data.dataset import PairDataset
from s2s_ray.data.prepare import prepare
from s2s_ray.evaluation.evaluate import evaluate
from s2s_ray.training.loop import Trainer


class ShuffledPairs(PairDataset):
    """The training pairs with the panoramas of other pairs, as a control."""

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        epoch, index = key if isinstance(key, tuple) else (None, key)
        partner = int(np.random.default_rng(self.seed).permutation(len(self))[index])
        satellite, street = (
            super().__getitem__(key),
            super().__getitem__(partner if epoch is None else (epoch, partner)),
        )
        return Sample(satellite.polar, street.street, index)


def trained_recall(config: Config, *, shuffled: bool) -> float:
    """Return the held-out R@1 after training from scratch."""
    trainer = Trainer(config)
    if shuffled:
        trainer.train_set = ShuffledPairs.open(config.data, "train", flip=config.data.flip, seed=config.train.seed)
    trainer.fit()
    trainer.model.eval()
    test = PairDataset.open(config.data, "test")
    return evaluate(trainer.model, test, config.evaluation).street_to_satellite.recall["1"]


def colour_recall(config: Config) -> float:
    """Return the best R@1 of matching by colour (mean colour and histograms) on the held-out pairs."""
    test = PairDataset.open(config.data, "test")
    pairs = [test[index] for index in range(len(test))]
    streets = [pair.street.permute(1, 2, 0).numpy() for pair in pairs]
    polars = [pair.polar.permute(1, 2, 0).numpy() for pair in pairs]
    return max(colour_matching_recall(streets, polars).values())


def measure(seed: int, folder: Path, overrides: list[str]) -> tuple[float, float, float, float]:
    """Return the R@1 of model, control and colour, and chance, for one seed."""
    places = [f"data.uri={folder}/data", f"train.storage={folder}/runs", f"source.seed={seed}", f"train.seed={seed}"]
    config = load_config("tiny", [*places, "prepare.parallel=false", *overrides])
    prepare(config)
    model = trained_recall(_named(config, "model"), shuffled=False)
    control = trained_recall(_named(config, "control"), shuffled=True)
    return model, control, colour_recall(config), 1 / len(PairDataset.open(config.data, "test"))


def _named(config: Config, name: str) -> Config:
    return config.model_copy(update={"train": config.train.model_copy(update={"name": name})})


def main() -> int:
    """Print a row for each seed, and whether both controls hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", dest="overrides", action="append", default=[], help="change the preset: a.b=value")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    print("seed   R@1 model   shuffled pairs   best colour match   chance   colour/model", flush=True)
    holds = True
    for seed in arguments.seeds:
        with tempfile.TemporaryDirectory(prefix="s2s-learning-") as folder:
            model, control, colour, chance = measure(seed, Path(folder), arguments.overrides)
        row = f"{seed:4d}   {model:9.1%}   {control:14.1%}   {colour:17.1%}   {chance:6.2%}   {colour / model:12.2f}"
        print(row, flush=True)
        holds &= control <= 3 * chance and colour < 0.5 * model
    print("both controls hold" if holds else "A CONTROL DOES NOT HOLD")
    return 0 if holds else 1


if __name__ == "__main__":
    raise SystemExit(main())
