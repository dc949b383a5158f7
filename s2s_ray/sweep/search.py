"""The sweep's Optuna study as Ray Tune's searcher, and the scheduler that stops poor trials early."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler
from ray.tune.search import Searcher

from s2s_ray.config import Config
from s2s_ray.errors import ConfigError, S2SError, StorageError
from s2s_ray.sweep.objectives import direction
from s2s_ray.sweep.space import Params, Space
from s2s_ray.sweep.study import SweepStudy, run_name, sampler
from s2s_ray.sweep.trial import EPOCH, FAILED, STARTED

logger = logging.getLogger(__name__)

History = list[dict[str, Any]]
"""Figures of a run's epochs, as in its `history.json`."""
_ITERATION = "training_iteration"  # Tune's own count of a trial's results


class StudySearch(Searcher):
    """Tune's searcher over the space of a sweep; the study records the outcome of each trial.

    The study decides everything: this object holds only which of its trials belongs to which of Tune's.

    Args:
        config: the sweep's configuration.
        space: what is searched.
        study: the study that proposes values and records results.
    """

    def __init__(self, config: Config, space: Space, study: SweepStudy) -> None:
        names = study.objectives
        modes = ["max" if direction(name) == "maximize" else "min" for name in names]
        if len(names) > 1:
            super().__init__(metric=names, mode=modes)  # type: ignore[arg-type]  # Ray accepts lists
        else:
            super().__init__(metric=names[0], mode=modes[0])
        self.failure_reason: Callable[[str], str] = lambda trial_id: "its process was lost"
        """Return why one of Tune's trials failed."""
        self.fault: Callable[[str], BaseException | None] = lambda trial_id: None
        """Return the error of one of Tune's trials, if it raised one."""
        self.ended_by: S2SError | None = None
        """The error that ended the sweep. Ray Tune replaces it by one with the text of its traceback."""
        self._check = study.check
        self._objectives = names
        self._sampler = config.tune.sampler
        self._space = space
        self._trials: dict[str, optuna.Trial] = {}
        self._finished: set[str] = set()
        self._study = optuna.load_study(
            study_name=study.study.study_name,
            storage=study.storage,
            sampler=sampler(config.tune, len(study.study.get_trials(deepcopy=False))),
            pruner=optuna.pruners.NopPruner(),  # Tune's scheduler stops trials
        )

    @contextmanager
    def ending(self) -> Iterator[None]:
        """Record an error of this library in the block as the one that ended the sweep."""
        try:
            yield
        except S2SError as error:
            self.ended_by = error
            raise

    def suggest(self, trial_id: str) -> Params:
        """Return the values of a new trial, and record its run in the study. Raises ConfigError, SweepError."""
        with self.ending():
            return self._suggest(trial_id)

    def _suggest(self, trial_id: str) -> Params:
        self._check()
        if trial_id not in self._trials:
            self._trials[trial_id] = self._study.ask()
        trial = self._trials[trial_id]
        try:
            params = self._space.suggest(trial)
        except (ValueError, ImportError) as error:  # a sampler that cannot handle this space
            raise ConfigError(f"tune.sampler={self._sampler!r} cannot sample tune.space: {error}") from None
        trial.set_user_attr("run", run_name(trial.params))
        trial.set_user_attr("proposed", time.time())
        return params

    def number(self, trial_id: str) -> int:
        """Return the study's number of one of Tune's trials."""
        return self._trials[trial_id].number

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Record the epochs of a running trial and, if it is the only objective, its value."""
        if FAILED not in result:
            with self.ending():
                self._record(trial_id, result)

    def _record(self, trial_id: str, result: dict[str, Any]) -> None:
        self._check()
        trial = self._trials[trial_id]
        trial.set_user_attr("epochs", result[EPOCH])
        if "start_s" not in trial.user_attrs:
            trial.set_user_attr("start_s", round(result[STARTED] - trial.user_attrs["proposed"], 2))
        if len(self._objectives) == 1 and trial_id not in self._finished:  # Optuna refuses it for several objectives
            trial.report(result[self._objectives[0]], result[_ITERATION])

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Record the outcome of a trial: its last values, or why it failed.

        Raises:
            StorageError: the storage was the reason. The trial has no outcome, and the next start resumes it.
        """
        with self.ending():
            self._complete(trial_id, result, error)

    def _complete(self, trial_id: str, result: dict[str, Any] | None, error: bool) -> None:
        self._check()
        if error and isinstance(fault := self.fault(trial_id), StorageError):
            raise fault
        if trial_id in self._finished:
            logger.warning("trial %d finished twice; only the first result counts", self.number(trial_id))
            return
        self._finished.add(trial_id)
        trial, result = self._trials[trial_id], result or {}
        if error or FAILED in result:
            trial.set_user_attr("reason", result[FAILED] if FAILED in result else self.failure_reason(trial_id))
            self._study.tell(trial, state=TrialState.FAIL)
            return
        values = [result.get(name) for name in self._objectives]
        if any(value is None for value in values):
            self._study.tell(trial, state=TrialState.PRUNED)
            return
        try:
            self._study.tell(trial, values, state=TrialState.COMPLETE)  # type: ignore[arg-type]  # none is None
        except ValueError as fault:  # a value that is not a number
            trial.set_user_attr("reason", str(fault))
            self._study.tell(trial, state=TrialState.FAIL)

    def save(self, checkpoint_path: str) -> None:
        """Write an empty file: the study is stored by itself, and Tune never restores this object."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: a new start makes a new searcher over the study."""


class StandIn:
    """A trial for schedulers that only need its id: one of an earlier start, or of a simulation."""

    def __init__(self, trial_id: str) -> None:
        self.trial_id = trial_id


def early_stopping(config: Config, past: Sequence[History]) -> TrialScheduler:
    """Return the configured scheduler, which has seen the epochs of the trials in `past`.

    Raises:
        ConfigError: the grace period is as long as the training.
    """
    chosen, epochs = config.tune, config.train.epochs
    if chosen.scheduler == "none":
        return FIFOScheduler()  # type: ignore[no-untyped-call]
    if chosen.grace_epochs >= epochs:
        raise ConfigError(
            f"tune.grace_epochs={chosen.grace_epochs}: with train.epochs={epochs} nothing could be stopped early; "
            "lower it, or set tune.scheduler=none"
        )
    upwards = direction(chosen.metric) == "maximize"
    common: dict[str, Any] = {"time_attr": EPOCH, "metric": chosen.metric, "mode": "max" if upwards else "min"}
    common["grace_period"] = chosen.grace_epochs
    scheduler: Any  # the stand-ins below are neither a controller nor a trial
    if chosen.scheduler == "asha":
        scheduler = AsyncHyperBandScheduler(
            max_t=epochs, reduction_factor=chosen.reduction, stop_last_trials=False, **common
        )
    else:
        # An infinite time slice: trials are stopped, never paused to make room for others.
        scheduler = MedianStoppingRule(min_samples_required=3, **common | {"min_time_slice": math.inf})
    for number, history in enumerate(past):
        trial, result = StandIn(f"past {number}"), None
        worst = 0.0 if upwards else math.inf
        best = worst
        scheduler.on_trial_add(None, trial)
        for figures in history:
            best = (max if upwards else min)(best, figures.get(chosen.metric, worst))
            result = {EPOCH: figures["epoch"] + 1, chosen.metric: best}
            scheduler.on_trial_result(None, trial, result)
        if result is not None:
            scheduler.on_trial_complete(None, trial, result)
    chosen_scheduler: TrialScheduler = scheduler
    return chosen_scheduler
