"""Progress of a sweep: a live table in a terminal, log lines elsewhere."""

from __future__ import annotations

import logging
import pickle
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.experiment import Trial
from rich.console import Console
from rich.live import Live
from rich.table import Table

from s2s_ray import storage
from s2s_ray.config.protocol import RECALL
from s2s_ray.errors import StorageError
from s2s_ray.runtime.cluster import original_error
from s2s_ray.runtime.gauges import RayGauges
from s2s_ray.runtime.terminal import as_typed
from s2s_ray.sweep.objectives import shown
from s2s_ray.sweep.search import StudySearch
from s2s_ray.sweep.space import format_params, format_value
from s2s_ray.sweep.study import SweepStudy, TrialRecord, searched
from s2s_ray.sweep.trial import EPOCH, FAILED
from s2s_ray.training.checkpoint_store import CheckpointStore

logger = logging.getLogger(__name__)

WAITING_AFTER_S = 20.0
"""After so long without a running trial a warning names the resources that a trial waits for."""
_MAX_ROWS = 20


class SweepProgress(tune.Callback):
    """Tune's callback that shows the trials, stores the study whenever one starts or finishes, and sets the gauges.

    A finished trial keeps only its best checkpoint.

    Args:
        study: the sweep's study.
        search: the searcher, which knows the study's number of each of Tune's trials.
        root: URI of the sweep.
        total: number of trials of the sweep, earlier ones included.
        resources: resources of one trial.
    """

    def __init__(
        self, study: SweepStudy, search: StudySearch, root: str, total: int, resources: dict[str, float]
    ) -> None:
        self._study, self._search, self._root, self._total, self._resources = study, search, root, total, resources
        self._gauges = RayGauges(sweep=storage.name(root))
        self._latest: dict[int, dict[str, Any]] = {}
        self._idle_since = time.monotonic()
        self._live = Live(console=Console(stderr=True), auto_refresh=False) if sys.stderr.isatty() else None

    def setup(self, *arguments: Any, **info: Any) -> None:
        """Start the live table."""
        if self._live is not None:
            self._live.start()

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Warn if no trial has been running for a while."""
        by_id = {trial.trial_id: trial for trial in trials}
        self._search.failure_reason = lambda trial_id: _failure_reason(by_id[trial_id])
        self._search.fault = lambda trial_id: _fault(by_id[trial_id])
        if any(trial.status == Trial.RUNNING for trial in trials) or not trials:
            self._idle_since = time.monotonic()
        elif time.monotonic() - self._idle_since > WAITING_AFTER_S:
            self._idle_since = time.monotonic()
            free = ray.available_resources()  # type: ignore[no-untyped-call]
            needed = [f"{amount:g} {name} ({free.get(name, 0):g} free)" for name, amount in self._resources.items()]
            logger.warning("sweep: waiting for a trial to start; it needs %s", ", ".join(needed))

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Store the study with the new trial."""
        with self._search.ending():
            self._study.save()
        self._count()
        self._show(trial, "started with %s", format_params(trial.config))

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """Show the objectives of the best epoch so far."""
        if FAILED in result:
            return
        self._latest[self._search.number(trial.trial_id)] = result
        values = ", ".join(f"{name} {result[name]:.4g}" for name in self._study.objectives)
        self._show(trial, "epoch %d: best %s", result[EPOCH], values)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Store the study with the outcome of the trial."""
        self._finished(trial)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Store the study with the outcome of the trial."""
        self._finished(trial)

    def close(self) -> None:
        """Stop the live table."""
        if self._live is not None:
            self._live.stop()

    def _finished(self, trial: Trial) -> None:
        with self._search.ending():
            self._study.save()
        number = self._search.number(trial.trial_id)
        record = next(record for record in self._study.records() if record.number == number)
        self._count()
        if record.state == "complete":
            store = CheckpointStore(storage.join(self._root, "trials", record.run, "checkpoints"))
            store.require_lease = self._study.check
            with self._search.ending(), suppress(StorageError):  # its process may be pruning the same checkpoints
                store.keep_best()
        metric = self._study.objectives[0]
        outcome = shown(metric, record.values[metric]) if record.values else record.reason
        self._show(trial, "finished: %s", outcome)

    def _count(self) -> None:
        """Set the sweep's gauges."""
        records, best = self._study.records(), self._study.best()
        for state in ("complete", "failed", "running"):
            self._gauges("s2s_sweep_trials", sum(record.state == state for record in records), state=state)
        self._gauges("s2s_sweep_trials_asked", self._total)
        if best is not None and RECALL in best.values:
            self._gauges("s2s_sweep_best_recall_at_1", best.values[RECALL])

    def _show(self, trial: Trial, text: str, *values: Any) -> None:
        if self._live is not None:
            self._live.update(self._table(), refresh=True)
        else:
            logger.info(f"trial %d {text}", self._search.number(trial.trial_id), *values)

    def _table(self) -> Table:
        records = self._study.records()
        best = self._study.best()
        finished = sum(record.state != "running" for record in records)
        keys = searched(records)
        table = Table(title=f"{finished} of {self._total} trials finished")
        for title in ("trial", "state", "epoch", *self._study.objectives, *keys):
            table.add_column(as_typed(title))
        for record in records[-_MAX_ROWS:]:
            table.add_row(*map(as_typed, self._row(record, keys)), style="bold" if record == best else None)
        return table

    def _row(self, record: TrialRecord, keys: list[str]) -> list[str]:
        latest = self._latest.get(record.number, {})
        values = [record.values.get(name, latest.get(name)) for name in self._study.objectives]
        return [
            str(record.number),
            record.state,
            str(record.epochs),
            *("" if value is None else f"{value:.4g}" for value in values),
            *(format_value(record.params.get(key, "")) for key in keys),
        ]


def _failure_reason(trial: Trial) -> str:
    """Return the last line of the error that ended a trial."""
    error = _fault(trial)
    return str(error).strip().splitlines()[-1] if error is not None and str(error).strip() else "its process was lost"


def _fault(trial: Trial) -> BaseException | None:
    """Return the error that ended a trial, as it was raised there; None if its process was lost."""
    path = trial.pickled_error_file
    if path is None or not Path(path).exists():
        return None
    return original_error(pickle.loads(Path(path).read_bytes()))  # written by Tune in this process
