"""A sweep's memory: the Optuna study in its storage, and its trials read back.

The study is the only authority on what was tried. It is a journal file at `SWEEP/study.journal` (any URI; Optuna
works on a local copy that is stored again when a trial begins or ends), or an RDB where `tune.study` names one.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from s2s_ray import storage
from s2s_ray.config import (
    TuneConfig,
)
from s2s_ray.errors import ConfigError, NotFoundError
from s2s_ray.storage.filesystem import is_local
from s2s_ray.sweep.space import Params, Space

JOURNAL = "study.journal"
RECALL = "recall_at_1"
_UP = ("psnr", "ssim")


@dataclass(frozen=True)
class TrialRecord:
    """One trial as it ended, or as far as it is.

    `state` is complete, failed or running; `values` are the objectives of its best validated epoch; `epochs` how
    many it trained and `start_s` how long it took to begin.
    """

    number: int
    state: str
    params: Params
    values: dict[str, float]
    run: str
    epochs: int
    start_s: float | None
    seconds: float | None
    reason: str


class SweepStudy:
    """The Optuna study of one sweep."""

    def __init__(self, config: TuneConfig, root: str) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.objectives = objectives(config)
        self._uri = storage.join(root, JOURNAL)
        self._copy: tempfile.TemporaryDirectory[str] | None = None
        self.storage = self._open(config)
        self.study = optuna.create_study(
            storage=self.storage,
            study_name=config.name,
            directions=[direction(name) for name in self.objectives],
            load_if_exists=True,
        )

    def save(self) -> None:
        """Store the journal where the sweep is; nothing to do where Optuna writes there itself."""
        if self._copy is not None:
            storage.upload(Path(self._copy.name) / JOURNAL, self._uri)

    def prepare(self, space: Space) -> int:
        """Make ready to go on: the first trial where there is none, again those that were interrupted.

        Returns: how many trials have ended.
        """
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            self._close(trial)
            self.study.enqueue_trial(trial.params, user_attrs={"resumes": trial.number})
        if not self.study.get_trials(deepcopy=False):
            self.study.enqueue_trial(space.start())
        self.save()
        return sum(record.state in ("complete", "failed") for record in self.records())

    def records(self) -> list[TrialRecord]:
        """All trials but the ones that an interruption cut off and a later one took up, in their order."""
        return _records(self.study, self.objectives)

    def best(self) -> TrialRecord | None:
        """The complete trial with the highest recall, the earlier of equals; None where none is complete."""
        complete = [record for record in self.records() if record.state == "complete"]
        return max(complete, key=lambda record: record.values[RECALL], default=None)

    def pareto(self) -> set[int]:
        """Numbers of the trials that no other one beats in all objectives."""
        return {trial.number for trial in self.study.best_trials}

    def _close(self, trial: FrozenTrial) -> None:
        self.storage.set_trial_user_attr(trial._trial_id, "interrupted", True)
        self.study.tell(trial.number, state=TrialState.FAIL)

    def _open(self, config: TuneConfig) -> BaseStorage:
        if config.study is not None:
            return _database(config.study)
        if is_local(self._uri):
            path = Path(storage.absolute(self._uri))
            path.parent.mkdir(parents=True, exist_ok=True)
        else:
            self._copy = tempfile.TemporaryDirectory(prefix="s2s-study-")
            path = Path(self._copy.name) / JOURNAL
            if storage.exists(self._uri):
                storage.download(self._uri, path)
        return JournalStorage(JournalFileBackend(str(path)))


def read_records(config: TuneConfig, root: str) -> list[TrialRecord]:
    """The trials of a sweep that may be running, [] where it has none yet; nothing is written.

    Raises: ConfigError: the database that `config.study` names cannot be opened.
    """
    with tempfile.TemporaryDirectory(prefix="s2s-study-") as folder:
        if config.study is None:
            copy = Path(folder) / JOURNAL  # a storage object of Optuna may write to the file it reads
            try:
                storage.download(storage.join(root, JOURNAL), copy)
            except NotFoundError:
                return []
            opened: BaseStorage = JournalStorage(JournalFileBackend(str(copy)))
        else:
            opened = _database(config.study)
        try:
            study = optuna.load_study(study_name=config.name, storage=opened)
        except KeyError:
            return []
        return _records(study, objectives(config))


def searched(records: Sequence[TrialRecord]) -> list[str]:
    """The keys that any of the trials has, in the order they first appear."""
    return list(dict.fromkeys(key for record in records for key in record.params))


def _records(study: optuna.Study, objectives: Sequence[str]) -> list[TrialRecord]:
    return [
        _record(trial, objectives)
        for trial in study.get_trials(deepcopy=False)
        if trial.state != TrialState.WAITING and "interrupted" not in trial.user_attrs
    ]


def _record(trial: FrozenTrial, objectives: Sequence[str]) -> TrialRecord:
    complete = trial.state == TrialState.COMPLETE
    attributes = trial.user_attrs
    begun, ended = trial.datetime_start, trial.datetime_complete
    return TrialRecord(
        number=trial.number,
        state={TrialState.COMPLETE: "complete", TrialState.RUNNING: "running"}.get(trial.state, "failed"),
        params=dict(trial.params),
        values=dict(zip(objectives, trial.values, strict=True)) if complete else {},
        run=attributes.get("run", ""),
        epochs=int(attributes.get("epochs", 0)),
        start_s=attributes.get("start_s"),
        seconds=(ended - begun).total_seconds() if begun and ended else None,
        reason=attributes.get("reason", "" if complete else "no result was reported"),
    )


def _database(url: str) -> BaseStorage:
    try:
        return RDBStorage(url)
    except Exception as error:  # whatever the database's driver raises
        raise ConfigError(f"tune.study={url!r} cannot be opened: {error}") from None


def objectives(config: TuneConfig) -> list[str]:
    """Names of the objectives, recall first."""
    return [RECALL, *([config.synthesis] if config.synthesis else [])]


def direction(objective: str) -> Literal["maximize", "minimize"]:
    """Which way an objective gets better, in Optuna's words."""
    return "maximize" if objective == RECALL or objective in _UP else "minimize"


def run_name(params: Mapping[str, Any]) -> str:
    """The run of a trial, a function of its parameters: the same ones proposed again find the run they began."""
    digest = hashlib.blake2b(json.dumps(params, sort_keys=True).encode(), digest_size=5)
    return f"trial-{digest.hexdigest()}"


def sampler(config: TuneConfig, trials: int) -> optuna.samplers.BaseSampler:
    """The configured sampler; after a restart its seed moves on by the `trials` there are, not to repeat them.

    Raises:
        ConfigError: no such sampler, or arguments that it does not take.
    """
    kind = getattr(optuna.samplers, config.sampler, None)
    if not (isinstance(kind, type) and issubclass(kind, optuna.samplers.BaseSampler)) or kind.__name__[:4] == "Base":
        known = [name for name in optuna.samplers.__all__ if name.endswith("Sampler") and name != "BaseSampler"]
        raise ConfigError(f"tune.sampler={config.sampler!r}: optuna.samplers has {', '.join(sorted(known))}")
    options: dict[str, Any] = {"seed": config.seed + trials}
    if kind is optuna.samplers.TPESampler:
        options |= {"multivariate": True, "group": True, "constant_liar": True}
    fault: Exception | None = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        for given in (options | config.sampler_options, config.sampler_options):  # not every sampler takes a seed
            try:
                return kind(**given)
            except (TypeError, ValueError) as error:
                fault = error
    raise ConfigError(f"tune.sampler={config.sampler!r} with tune.sampler_options={config.sampler_options!r}: {fault}")
