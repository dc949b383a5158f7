"""The Optuna study of a sweep in its storage, and its trials read back.

The study is the only authority on the trials of a sweep. It is a journal file at `SWEEP/study.journal`, or a database
if `tune.study` names one. In object storage Optuna works on a local copy of the journal, which is uploaded whenever a
trial starts or finishes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import create_engine, inspect, make_url

from s2s_ray import storage
from s2s_ray.config import TuneConfig
from s2s_ray.errors import ConfigError, NotFoundError, SweepError
from s2s_ray.references import resolved
from s2s_ray.storage.filesystem import is_local
from s2s_ray.sweep.journal import cut_torn_tail, open_journal
from s2s_ray.sweep.objectives import direction, objectives
from s2s_ray.sweep.space import Params, Space

logger = logging.getLogger(__name__)

JOURNAL = "study.journal"


@dataclass(frozen=True)
class TrialRecord:
    """One trial, finished or running."""

    number: int
    state: str
    """`complete`, `failed` or `running`."""
    params: Params
    values: dict[str, float]
    """The objectives of its best validated epoch; empty unless it is complete."""
    run: str
    epochs: int
    """Epochs trained so far."""
    start_s: float | None
    """Seconds from the proposal to the start of training."""
    seconds: float | None
    """Seconds from the proposal to the end."""
    reason: str
    """Why it failed."""


class SweepStudy:
    """The Optuna study of one sweep, which is created if it does not exist yet. Only the sweep's driver may make one.

    Args:
        config: the section `tune`.
        root: URI of the sweep.
        name: name of the study, see `SweepOrigin.study`.
        check: called before every write; raises an error if this process no longer drives the sweep.

    Raises:
        ConfigError: the database that `config.study` names cannot be opened.
        SweepError: the database has a study of the same name with other objectives.
        DamagedError, StorageError: the journal cannot be read.
    """

    def __init__(
        self, config: TuneConfig, root: str, name: str | None = None, check: Callable[[], None] = lambda: None
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.check = check
        self.objectives = objectives(config)
        self._uri = storage.join(root, JOURNAL)
        self._copy: tempfile.TemporaryDirectory[str] | None = None
        self.storage = self._open(config)
        directions = [direction(name) for name in self.objectives]
        self.study = optuna.create_study(
            storage=self.storage, study_name=name or config.name, directions=directions, load_if_exists=True
        )
        if [one.name.lower() for one in self.study.directions] != directions:
            raise SweepError(
                f"the study {self.study.study_name!r} in {config.study or self._uri} has other objectives than "
                f"{', '.join(self.objectives)}: choose another tune.name or tune.study"
            )

    def save(self) -> None:
        """Upload the journal; do nothing if Optuna writes to the sweep's own file or to a database."""
        self.check()
        if self._copy is not None:
            storage.upload(Path(self._copy.name) / JOURNAL, self._uri)

    def prepare(self, space: Space) -> int:
        """Enqueue the trials that an earlier start left unfinished, or the first trial of a new study.

        Returns:
            The number of finished trials.
        """
        trials = self.study.get_trials(deepcopy=False)
        resumed = {trial.user_attrs.get("resumes") for trial in trials}
        for trial in trials:
            # Enqueued before the old one is closed: a start that is killed in between must not lose it.
            if trial.number not in resumed and (trial.state == TrialState.RUNNING or _is_interrupted(trial)):
                params = trial.system_attrs.get("fixed_params", {}) | trial.params  # perhaps not all were suggested yet
                self.study.enqueue_trial(params, user_attrs={"resumes": trial.number})
            if trial.state == TrialState.RUNNING:
                self._close(trial)
        if not trials:
            self.study.enqueue_trial(space.start())
        self.save()
        return sum(record.state in ("complete", "failed") for record in self.records())

    def records(self) -> list[TrialRecord]:
        """Return all trials in order, except interrupted ones, which a later trial continues."""
        return _records(self.study, self.objectives)

    def best(self) -> TrialRecord | None:
        """Return the complete trial with the best metric, the earliest of equals, or None if none is complete."""
        return best_of(self.records(), self.objectives[0])

    def pareto(self) -> set[int]:
        """Return the numbers of the trials that no other trial beats in all objectives."""
        return {trial.number for trial in self.study.best_trials}

    def _close(self, trial: FrozenTrial) -> None:
        study_id = self.storage.get_study_id_from_name(self.study.study_name)
        trial_id = self.storage.get_trial_id_from_study_id_trial_number(study_id, trial.number)
        self.storage.set_trial_user_attr(trial_id, "interrupted", True)
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
        self.check()
        if cut := cut_torn_tail(path, self._uri):
            logger.warning("%s: cut %d bytes of a change that was not written completely", self._uri, cut)
        return open_journal(path, self._uri, self.check)


def read_records(config: TuneConfig, root: str, name: str | None = None) -> list[TrialRecord]:
    """Return the trials of a sweep that may be running, without writing anything; [] if it has none yet.

    Args:
        config: the section `tune`.
        root: URI of the sweep.
        name: name of the study, see `SweepOrigin.study`.

    Raises:
        ConfigError: the database that `config.study` names cannot be opened.
        DamagedError, StorageError: the journal cannot be read.
    """
    with tempfile.TemporaryDirectory(prefix="s2s-study-") as folder:
        if config.study is None:
            copy = Path(folder) / JOURNAL  # Optuna's storage objects may write to the file that they read
            try:
                storage.download(storage.join(root, JOURNAL), copy)
            except NotFoundError:
                return []
            cut_torn_tail(copy, storage.join(root, JOURNAL))  # a running driver may be writing it
            opened: BaseStorage = open_journal(copy, storage.join(root, JOURNAL))
        else:
            if not _has_studies(config.study):
                return []
            opened = _database(config.study)
        try:
            study = optuna.load_study(study_name=name or config.name, storage=opened)
        except KeyError:
            return []
        return _records(study, objectives(config))


def best_of(records: Sequence[TrialRecord], metric: str) -> TrialRecord | None:
    """Return the complete trial with the best metric, the earliest of equals, or None if none is complete."""
    complete = [record for record in records if record.state == "complete"]
    sign = 1 if direction(metric) == "maximize" else -1
    return max(complete, key=lambda record: sign * record.values[metric], default=None)


def searched(records: Sequence[TrialRecord]) -> list[str]:
    """Return the keys that any of the trials has, in the order of their first appearance."""
    return list(dict.fromkeys(key for record in records for key in record.params))


def _records(study: optuna.Study, objectives: Sequence[str]) -> list[TrialRecord]:
    return [
        _record(trial, objectives)
        for trial in study.get_trials(deepcopy=False)
        if trial.state != TrialState.WAITING and not _is_interrupted(trial)
    ]


def _is_interrupted(trial: FrozenTrial) -> bool:
    return "interrupted" in trial.user_attrs


def _record(trial: FrozenTrial, objectives: Sequence[str]) -> TrialRecord:
    complete = trial.state == TrialState.COMPLETE
    attributes = trial.user_attrs
    started, finished = trial.datetime_start, trial.datetime_complete
    return TrialRecord(
        number=trial.number,
        state={TrialState.COMPLETE: "complete", TrialState.RUNNING: "running"}.get(trial.state, "failed"),
        params=dict(trial.params),
        values=dict(zip(objectives, trial.values, strict=True)) if complete else {},
        run=attributes.get("run", ""),
        epochs=int(attributes.get("epochs", 0)),
        start_s=attributes.get("start_s"),
        seconds=(finished - started).total_seconds() if started and finished else None,
        reason=attributes.get("reason", "" if complete else "no result was reported"),
    )


def _database(url: str) -> BaseStorage:
    with _opening(url) as address:
        return RDBStorage(address)


def _has_studies(url: str) -> bool:
    """Return whether a database has Optuna's tables. Optuna would create them, and SQLite the file."""
    with _opening(url) as address:
        parsed = make_url(address)
        is_path = parsed.get_backend_name() == "sqlite" and "uri" not in parsed.query
        if is_path and not Path(parsed.database or "").exists():
            return False
        engine = create_engine(parsed)
        try:
            return inspect(engine).has_table("studies")
        finally:
            engine.dispose()


@contextmanager
def _opening(url: str) -> Iterator[str]:
    """Yield the address of a database. Raises ConfigError if the block cannot open it."""
    address = resolved(url)
    try:
        yield address
    except Exception as error:  # each database driver has its own classes
        raise ConfigError(f"tune.study={url!r} cannot be opened: {error}") from None


def run_name(params: Mapping[str, Any]) -> str:
    """Return the name of a trial's run. It depends on the values only, so repeated values continue the same run."""
    digest = hashlib.blake2b(json.dumps(params, sort_keys=True).encode(), digest_size=5)
    return f"trial-{digest.hexdigest()}"


def sampler(config: TuneConfig, trials: int) -> optuna.samplers.BaseSampler:
    """Return the configured sampler.

    Args:
        config: the section `tune`.
        trials: number of trials in the study; the seed advances by it, so that a restart does not repeat proposals.

    Raises:
        ConfigError: no such sampler, or options that it does not accept.
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
        for arguments in ({**options, **config.sampler_options}, config.sampler_options):  # some samplers have no seed
            try:
                return kind(**arguments)
            except (TypeError, ValueError, ImportError) as error:  # some samplers need another package
                fault = error
    raise ConfigError(f"tune.sampler={config.sampler!r} with tune.sampler_options={config.sampler_options!r}: {fault}")
