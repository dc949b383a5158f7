"""One trial of a sweep: the trainer of `s2s train` with other values, which reports its best epoch to Ray Tune."""

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
from s2s_ray.storage.lease import Fence
from s2s_ray.sweep.objectives import direction, objectives
from s2s_ray.sweep.space import Space
from s2s_ray.sweep.study import run_name
from s2s_ray.training.loop import Report, Trainer

EPOCH = "epoch"
"""Epochs done. Schedulers count these, because Tune's own iterations start again when a trial is restarted."""
FAILED = "failed"
"""Why the trial failed; a result with this key has no objectives."""
STARTED = "started"
"""When training started, in seconds since 1970."""


class BestSoFar:
    """A wrapper of a report function that reports the best validated epoch so far, once its checkpoint is stored.

    Args:
        names: the objectives to report; the first one decides which epoch is the best.
    """

    def __init__(self, names: list[str]) -> None:
        self.names = names

    def __call__(self, trainer: Trainer, report: Report) -> Report:
        """Return the function to which `trainer` reports its epochs and which forwards the best ones to `report`."""
        logging.getLogger("s2s_ray").setLevel(logging.WARNING)  # the sweep logs the epochs of all its trials
        started = time.time()
        best: dict[str, float] = {}
        metric = self.names[0]
        sign = 1 if direction(metric) == "maximize" else -1

        def report_best(figures: Mapping[str, Any]) -> None:
            if metric in figures and (not best or sign * figures[metric] >= sign * best[metric]):
                best.update({name: float(figures[name]) for name in self.names})
            if best:
                trainer.store.flush()  # Tune may stop the trial immediately
                report({**best, EPOCH: figures["epoch"] + 1, STARTED: started})

        return report_best


def trial_config(base: Config, params: Mapping[str, Any], root: str) -> Config:
    """Return the configuration of a trial: `base` with the trial's values, as a run below `root`."""
    config = Space(base).config(params)
    own = {
        "name": run_name(params),
        "storage": storage.join(root, "trials"),
        "validate_synthesis": base.tune.synthesis is not None,
        "best_metric": base.tune.metric,
    }
    return config.model_copy(update={"train": config.train.model_copy(update=own)})


def run_trial(params: dict[str, Any], base: dict[str, Any], root: str, fence: Fence) -> None:
    """Train one trial; this is Tune's trainable.

    Divergence is reported as a result instead of raised, because a retry would only diverge again. A trial with the
    values of one that is still running waits for its end, because both have the same run.
    """
    fence.check()
    config = trial_config(Config.from_tree(base), params, root)
    wrap_report = BestSoFar(objectives(config.tune))
    try:
        if config.train.workers == 1:
            torch.set_num_threads(config.train.threads)
            trainer = Trainer(config, "cuda" if config.train.use_gpu else "cpu")
            gauges = RayGauges(run=config.train.name)
            trainer.fit(wrap_report(trainer, tune.report), repeat=True, gauges=gauges, wait=True)
        else:
            from ray.tune.integration.ray_train import TuneReportCallback

            from s2s_ray.training.ray_train import train

            callbacks = [TuneReportCallback()]  # type: ignore[no-untyped-call]
            train(config, callbacks=callbacks, wrap_report=wrap_report, wait=True)
    except DivergedError as error:
        tune.report({FAILED: f"diverged at {error}"})
