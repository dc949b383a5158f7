"""A sweep: Ray Tune's trials of the one trainer, proposed by Optuna, that goes on where it was stopped.

    STORAGE/NAME/sweep.yaml       the configuration it was begun with
                /study.journal    every trial: the only authority (or an RDB, with `tune.study`)
                /trials/RUN/      each trial's run, as `train` leaves it, its best checkpoint only once it has ended
                /best.yaml        the best trial's configuration, for `s2s train --config`
                /trials.parquet, report.html, plots/*.png
                /driver.json      while it runs: a second driver would take the first one's trials for interrupted

Tune's own experiment state is not kept: each start is a new experiment over the one study.
"""

from __future__ import annotations

import logging
import tempfile
import uuid
from dataclasses import dataclass

from ray import tune

from s2s_ray import registry, storage
from s2s_ray.config import Config
from s2s_ray.errors import StoppedError, SweepError
from s2s_ray.runtime.cluster import (
    in_thread,
)
from s2s_ray.sweep.progress import SweepProgress
from s2s_ray.sweep.report import write_report
from s2s_ray.sweep.search import History, StudySearch, early_stopping
from s2s_ray.sweep.space import Space, told
from s2s_ray.sweep.study import RECALL, SweepStudy, TrialRecord, sampler
from s2s_ray.training.checkpoints import CheckpointStore
from s2s_ray.training.loop import check_ready
from s2s_ray.training.run import located
from s2s_ray.trials.claim import DATA_FREE, TRAIN_FREE, claim
from s2s_ray.trials.driver import driving
from s2s_ray.trials.placement import asked, placement, quieten_tune, slots
from s2s_ray.trials.trial import run_trial

logger = logging.getLogger(__name__)

BEGUN_FILE = "sweep.yaml"
BEST_FILE = "best.yaml"

_FREE = {
    "tune": ("storage", "trials", "concurrent", "max_failures", "registry", "study"),
    "train": TRAIN_FREE,
    "data": DATA_FREE,
}
_COMPARED = ("model", "loss", "mining", "train", "data", "tune")


@dataclass(frozen=True)
class SweepResult:
    """What a sweep found: its URI, the best trial and the first one, and the release published of the best."""

    uri: str
    best: TrialRecord
    start: TrialRecord | None
    config: Config
    release: registry.Release
    trials: list[TrialRecord]


def sweep(config: Config) -> SweepResult:
    """Run the configured sweep on the connected Ray cluster, or go on with it.

    Trials that have ended are kept, interrupted ones go on from their checkpoints. With more `tune.trials` than
    before a finished sweep is extended.

    Raises:
        ConfigError, SweepError, StorageError, RunError: the sweep cannot run, or another process drives it; nothing was
            changed.
        SweepError: not one trial had a result.
        StoppedError: Ctrl-C; the message says how to go on.
    """
    config = located(config)
    space = Space(config)
    check_ready(config)
    at_a_time = slots(config, config.tune.concurrent)
    early_stopping(config, [])
    sampler(config.tune, 0)  # both are made again with what the study knows
    root = sweep_uri(config)
    claim(config, root, kind="sweep", section="tune", file=BEGUN_FILE, compared=_COMPARED, free=_FREE, fault=SweepError)
    with driving(root, f"sweep {config.tune.name!r}", SweepError):
        study = SweepStudy(config.tune, root)
        ended = study.prepare(space)
        if ended < config.tune.trials:
            _run(config, root, space, study, at_a_time, config.tune.trials - ended)
        else:
            logger.info("all %d trials have ended: raise tune.trials for more", ended)
        return _conclude(config, root, space, study)


def sweep_uri(config: Config) -> str:
    """`STORAGE/NAME`."""
    return storage.join(config.tune.storage, config.tune.name)


def _run(config: Config, root: str, space: Space, study: SweepStudy, at_a_time: int, trials: int) -> None:
    quieten_tune()
    search = StudySearch(config, space, study)
    progress = SweepProgress(study, search, root, config.tune.trials, asked(config))
    with tempfile.TemporaryDirectory(prefix="s2s-tune-") as folder:
        tuner = tune.Tuner(
            tune.with_resources(
                tune.with_parameters(run_trial, base=config.model_dump(mode="json"), root=root), placement(config)
            ),
            tune_config=tune.TuneConfig(
                search_alg=search,
                scheduler=early_stopping(config, _past(study, root)),
                num_samples=trials,
                max_concurrent_trials=at_a_time,
                reuse_actors=config.train.workers == 1,
            ),
            run_config=tune.RunConfig(
                name=f"attempt-{uuid.uuid4().hex[:8]}",
                storage_path=folder,
                callbacks=[progress],
                failure_config=tune.FailureConfig(max_failures=config.tune.max_failures),
                verbose=0,
            ),
        )
        try:
            in_thread(tuner.fit)
        except KeyboardInterrupt:
            study.save()
            raise StoppedError(
                f"sweep stopped after {sum(record.state != 'running' for record in study.records())} of "
                f"{config.tune.trials} trials: the same command goes on with sweep {config.tune.name!r} at {root}"
            ) from None
        finally:
            progress.close()
    study.save()


def _past(study: SweepStudy, root: str) -> list[History]:
    """The epochs of the trials that are complete; one that goes on tells its own again."""
    return [
        storage.read_json(storage.join(root, "trials", record.run, "history.json"))[: record.epochs]
        for record in study.records()
        if record.state == "complete"
    ]


def _conclude(config: Config, root: str, space: Space, study: SweepStudy) -> SweepResult:
    """Write what was found, and publish the best checkpoint."""
    records, best = study.records(), study.best()
    if best is None:
        reasons = "; ".join(f"trial {record.number}: {record.reason}" for record in records[:3])
        write_report(root, config, study, None)
        raise SweepError(f"sweep {config.tune.name!r}: no trial reported {RECALL} ({reasons})")
    found = space.config(best.params)
    storage.write_bytes(storage.join(root, BEST_FILE), found.to_yaml().encode())
    store = CheckpointStore(storage.join(root, "trials", best.run, "checkpoints"))
    step = store.best()
    if step is None:
        raise SweepError(f"sweep {config.tune.name!r}: run {best.run} of trial {best.number} has lost its checkpoints")
    release = registry.publish(config.tune.registry, config.tune.name, store.uri(step))
    start = next((record for record in records if record.params == space.start()), None)
    write_report(root, config, study, best)
    return SweepResult(root, best, start, found, release, records)


def describe(result: SweepResult) -> str:
    """What a sweep found, in two lines."""
    recall = result.best.values[RECALL]
    lines = [f"best of {len(result.trials)} trials: number {result.best.number}, validation R@1 {recall:.1%}"]
    if result.start is not None and result.start.values:
        gain = 100 * (recall - result.start.values[RECALL])
        lines[0] += f", {gain:+.1f} points over the configuration's own values"
    return "\n".join([*lines, told(result.best.params)])
