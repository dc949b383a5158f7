"""Optuna as Ray Tune's searcher, and the scheduler that stops poor trials, both going on from a study."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler
from ray.tune.search.optuna import OptunaSearch

from s2s_ray.config import (
    Config,
)
from s2s_ray.errors import ConfigError
from s2s_ray.sweep.space import Space
from s2s_ray.sweep.study import RECALL, SweepStudy, direction, run_name, sampler
from s2s_ray.trials.trial import BEGUN, EPOCH, FAILED

History = list[dict[str, Any]]
"""Figures of a run's epochs, as in its `history.json`."""


class StudySearch(OptunaSearch):
    """`OptunaSearch` over a sweep's space that keeps in the study what became of each trial."""

    def __init__(self, config: Config, space: Space, study: SweepStudy) -> None:
        self._study = study.study
        self.fault: Callable[[str], str] = lambda trial_id: "its process was lost"
        """Why one of Tune's trials could not go on."""
        names = study.objectives
        modes = ["max" if direction(name) == "maximize" else "min" for name in names]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            super().__init__(
                space=space.suggest,
                metric=names if len(names) > 1 else names[0],
                mode=modes if len(names) > 1 else modes[0],
                sampler=sampler(config.tune, len(study.study.get_trials(deepcopy=False))),
                study_name=config.tune.name,
                storage=study.storage,
            )

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        params = super().suggest(trial_id)
        trial = self._ot_trials[trial_id]
        trial.set_user_attr("run", run_name(trial.params))
        trial.set_user_attr("asked", time.time())
        return params

    def number(self, trial_id: str) -> int:
        """The study's number of one of Tune's trials."""
        return int(self._ot_trials[trial_id].number)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        if FAILED in result:
            return
        trial = self._ot_trials[trial_id]
        trial.set_user_attr("epochs", result[EPOCH])
        if "start_s" not in trial.user_attrs:
            trial.set_user_attr("start_s", round(result[BEGUN] - trial.user_attrs["asked"], 2))
        super().on_trial_result(trial_id, result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        if not error and result is not None and FAILED not in result:
            super().on_trial_complete(trial_id, result)
            return
        trial = self._ot_trials[trial_id]
        if result is not None and FAILED in result:
            trial.set_user_attr("reason", result[FAILED])
        elif error:
            trial.set_user_attr("reason", self.fault(trial_id))
        self._study.tell(trial, state=TrialState.FAIL)
        self._completed_trials.add(trial_id)

    def save(self, checkpoint_path: str) -> None:
        """The study is what is kept, not this object."""
        Path(checkpoint_path).touch()


class StandIn:
    """What schedulers need to know of a trial that is none of Tune's."""

    def __init__(self, trial_id: str) -> None:
        self.trial_id = trial_id


def early_stopping(config: Config, past: Sequence[History]) -> TrialScheduler:
    """The configured scheduler, told the epochs of the trials that ended before.

    Raises:
        ConfigError: a grace period as long as the training.
    """
    chosen, epochs = config.tune, config.train.epochs
    if chosen.scheduler == "none":
        return FIFOScheduler()  # type: ignore[no-untyped-call]
    if chosen.grace_epochs >= epochs:
        raise ConfigError(
            f"tune.grace_epochs={chosen.grace_epochs}: with train.epochs={epochs} nothing could be stopped early; "
            "lower it, or set tune.scheduler=none"
        )
    common: dict[str, Any] = {"time_attr": EPOCH, "metric": RECALL, "mode": "max", "grace_period": chosen.grace_epochs}
    made: Any  # its stand-ins below are neither a controller nor a trial
    if chosen.scheduler == "asha":
        made = AsyncHyperBandScheduler(
            max_t=epochs, reduction_factor=chosen.reduction, stop_last_trials=False, **common
        )
    else:
        # trials are stopped for good, and never paused to let others in
        made = MedianStoppingRule(min_samples_required=3, **common | {"min_time_slice": math.inf})
    for number, history in enumerate(past):
        trial, best, result = StandIn(f"past {number}"), 0.0, None
        made.on_trial_add(None, trial)
        for figures in history:
            best = max(best, figures.get(RECALL, 0.0))
            result = {EPOCH: figures["epoch"] + 1, RECALL: best}
            made.on_trial_result(None, trial, result)
        if result is not None:
            made.on_trial_complete(None, trial, result)
    scheduler: TrialScheduler = made
    return scheduler
