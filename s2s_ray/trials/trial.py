"""One trial: the trainer of `s2s train` with other values, its best epoch told to Ray Tune."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

import torch
from ray import tune

from s2s_ray import storage
from s2s_ray.config import Config
from s2s_ray.errors import DivergedError
from s2s_ray.runtime.gauges import RayGauges
from s2s_ray.sweep.space import Space
from s2s_ray.sweep.study import RECALL, objectives, run_name
from s2s_ray.training.loop import (
    Report,
    Trainer,
)

EPOCH = "epoch"
"""Epochs done, what schedulers count by: Tune's own iterations begin again where a trial is restarted."""
FAILED = "failed"
BEGUN = "begun"


class BestSoFar:
    """Tells the objectives of the best validated epoch so far, once its checkpoint is stored."""

    def __init__(self, names: list[str]) -> None:
        self.names = names

    def __call__(self, trainer: Trainer, report: Report) -> Report:
        logging.getLogger("s2s_ray").setLevel(logging.WARNING)  # the sweep tells the epochs of all its trials
        begun = time.time()
        best: dict[str, float] = {}

        def told(figures: Mapping[str, Any]) -> None:
            if RECALL in figures and figures[RECALL] >= best.get(RECALL, 0.0):
                best.update({name: float(figures[name]) for name in self.names})
            if best:
                trainer.store.flush()  # Tune may stop the trial at once
                report({**best, EPOCH: figures["epoch"] + 1, BEGUN: begun})

        return told


def trial_config(base: Config, params: Mapping[str, Any], root: str) -> Config:
    """What a trial trains: the base with its values, as a run below `root`."""
    config = Space(base).config(params)
    own = {
        "name": run_name(params),
        "storage": storage.join(root, "trials"),
        "validate_synthesis": base.tune.synthesis is not None,
    }
    return config.model_copy(update={"train": config.train.model_copy(update=own)})


def run_trial(params: dict[str, Any], base: dict[str, Any], root: str) -> None:
    """Tune's trainable. A loss that is not finite is a result, not a fault: the trial would only diverge again."""
    config = trial_config(Config.from_tree(base), params, root)
    tell = BestSoFar(objectives(config.tune))
    try:
        if config.train.workers == 1:
            torch.set_num_threads(config.train.threads)
            trainer = Trainer(config, "cuda" if config.train.use_gpu else "cpu")
            trainer.fit(tell(trainer, tune.report), repeat=True, gauges=RayGauges(run=config.train.name))
        else:
            from ray.tune.integration.ray_train import TuneReportCallback

            from s2s_ray.training.ray_train import train

            train(config, callbacks=[TuneReportCallback()], tell=tell)  # type: ignore[no-untyped-call]
    except DivergedError as error:
        tune.report({FAILED: f"diverged at {error}"})
