"""A storage root with runs, a sweep and a registry in every state."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import optuna
import pytest
import yaml

from s2s_ray import registry, storage
from s2s_ray.config import Config, with_values
from s2s_ray.data.prepare import prepare
from s2s_ray.errors import DivergedError
from s2s_ray.model.checkpoint import save_model
from s2s_ray.sweep.study import SweepStudy
from s2s_ray.training.loop import Trainer

if TYPE_CHECKING:
    from tests.support.pair_folder import PairFolder


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, pair_folder: type[PairFolder]) -> Path:
    """Runs that are complete, unfinished, diverged and damaged, a running sweep and a registry."""
    folder = tmp_path_factory.mktemp("root")
    pairs = pair_folder(folder / "pairs")
    for split, count in (("train", 4), ("val", 3), ("test", 1)):
        for number in range(count):
            pairs.add(f"{split}-{number}", split)
    config = pairs.config(folder / "data")
    prepare(config)
    small = with_values(
        config,
        {
            "model.channels": 4,
            "model.residual_blocks": 1,
            "model.discriminator_channels": 4,
            "model.street_blocks": [1, 1, 1],
            "model.masks": 2,
            "train.batch": 4,
            "train.epochs": 2,
            "train.storage": str(folder / "runs"),
            "train.name": "complete",
            "tune.storage": str(folder / "sweeps"),
            "tune.name": "night",
            "tune.trials": 5,
            "tune.space": {"loss.alpha": {"low": 2, "high": 50}},
        },
    )
    trainer = Trainer(small)
    trainer.fit()
    Trainer(with_values(small, {"train.name": "cut", "train.epochs": 1})).fit()
    longer = with_values(small, {"train.name": "cut", "train.epochs": 9})
    (folder / "runs" / "cut" / "config.yaml").write_text(longer.to_yaml())
    with pytest.raises(DivergedError):
        Trainer(with_values(small, {"train.name": "wild", "train.lr_retrieval": 1e30})).fit()
    (folder / "runs" / "damaged" / "checkpoints").mkdir(parents=True)
    (folder / "runs" / "damaged" / "config.yaml").write_text("train: {epochs: many}")
    fill_sweep(small, folder)
    save_model(trainer.model, {"run": "complete", "step": 2}, folder / "weights")
    storage.publish(folder / "weights", str(folder / "checkpoint"))
    registry.publish(str(folder / "registry"), "city", str(folder / "checkpoint"))
    return folder


def fill_sweep(config: Config, folder: Path) -> None:
    """Write a sweep with two complete trials, a failed one and a running one, as the first version did."""
    root = folder / "sweeps" / "night"
    root.mkdir(parents=True)
    (root / "sweep.yaml").write_text(yaml.safe_dump({"dataset": "d", "config": config.model_dump(mode="json")}))
    study = SweepStudy(config.tune, str(root)).study
    space = {"loss.alpha": optuna.distributions.FloatDistribution(2, 50)}
    for value in (0.25, 0.5):
        study.tell(study.ask(space), value)
    study.tell(study.ask(space), state=optuna.trial.TrialState.FAIL)
    study.ask(space)
