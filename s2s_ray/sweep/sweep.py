"""A sweep: trials of the one trainer, proposed by Optuna and run by Ray Tune, which resume after a stop.

    STORAGE/NAME/sweep.yaml       the data set and the configuration with which it was started
                /study.journal    every trial: the only authority (or a database, with `tune.study`)
                /trials/RUN/      each trial's run, as `train` writes it; a finished one keeps its best checkpoint only
                /best.yaml        the best trial's configuration, for `s2s train --config`
                /trials.parquet, report.html, plots/*.png
                /driver.json      the process that runs it: a second one would take its trials for interrupted

Tune's own experiment state is not kept: each start is a new experiment over the same study.
"""

from __future__ import annotations

import logging
import tempfile
import uuid
from dataclasses import dataclass

import torch
from ray import tune

from s2s_ray import registry, storage
from s2s_ray.config import Config
from s2s_ray.errors import StoppedError, SweepError
from s2s_ray.publishing import publish_calibrated
from s2s_ray.runtime.cluster import in_thread
from s2s_ray.runtime.ray_internals import keep_credentials
from s2s_ray.runtime.ray_settings import quieten_tune
from s2s_ray.storage.lease import Lease, driving
from s2s_ray.sweep.objectives import is_share, shown
from s2s_ray.sweep.origin import SweepOrigin
from s2s_ray.sweep.progress import SweepProgress
from s2s_ray.sweep.report import write_report
from s2s_ray.sweep.search import History, StudySearch, early_stopping
from s2s_ray.sweep.space import Space, format_params
from s2s_ray.sweep.study import SweepStudy, TrialRecord, sampler
from s2s_ray.sweep.trial import run_trial
from s2s_ray.training.checkpoint_store import CheckpointStore
from s2s_ray.training.history import read_history
from s2s_ray.training.ready import check_ready
from s2s_ray.trials.claim import claim
from s2s_ray.trials.placement import max_concurrent, placement, trial_demand

logger = logging.getLogger(__name__)

BEST_FILE = "best.yaml"


@dataclass(frozen=True)
class SweepResult:
    """The outcome of a sweep."""

    uri: str
    best: TrialRecord
    start: TrialRecord | None
    """The trial with the configuration's own values."""
    config: Config
    """The configuration of the best trial."""
    release: registry.Release
    """The release of the best trial's checkpoint."""
    trials: list[TrialRecord]


def sweep(config: Config) -> SweepResult:
    """Run the configured sweep on the connected Ray cluster, or resume it.

    Finished trials are kept, interrupted ones resume from their checkpoints. With a higher `tune.trials` a finished
    sweep is extended.

    Raises:
        ConfigError, PlacementError, StorageError, RunError: the sweep cannot run; nothing was changed.
        SweepError: the folder belongs to another sweep, another process runs this one, or no trial had a result.
        StoppedError: Ctrl-C; the message says how to resume.
    """
    config = config.located()
    space = Space(config)
    check_ready(config)
    concurrent = max_concurrent(config, config.tune.concurrent)
    early_stopping(config, [])  # this and the sampler only to check the configuration: `_run` makes them again
    sampler(config.tune, 0)
    root = sweep_uri(config)
    origin = claim(config, root, SweepOrigin)
    with driving(root, f"sweep {config.tune.name!r}", SweepError) as lease:
        study = SweepStudy(config.tune, root, origin.study(config.tune), lease.check)
        finished = study.prepare(space)
        if finished < config.tune.trials:
            _run(config, root, space, study, concurrent, config.tune.trials - finished, lease)
        else:
            logger.info("all %d trials have finished; raise tune.trials to run more", finished)
        return _conclude(config, root, space, study)


def sweep_uri(config: Config) -> str:
    """Return the URI of the configured sweep, `STORAGE/NAME`."""
    return storage.join(config.tune.storage, config.tune.name)


def _run(
    config: Config, root: str, space: Space, study: SweepStudy, concurrent: int, trials: int, lease: Lease
) -> None:
    quieten_tune()
    keep_credentials()
    search = StudySearch(config, space, study)
    progress = SweepProgress(study, search, root, config.tune.trials, trial_demand(config).total)
    with tempfile.TemporaryDirectory(prefix="s2s-tune-") as folder:
        tuner = tune.Tuner(
            tune.with_resources(
                tune.with_parameters(run_trial, base=config.model_dump(mode="json"), root=root, fence=lease.fence),
                placement(config),
            ),
            tune_config=tune.TuneConfig(
                search_alg=search,
                scheduler=early_stopping(config, _past(study, root)),
                num_samples=trials,
                max_concurrent_trials=concurrent,
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
            in_thread(tuner.fit, lease.raise_if_lost)
        except KeyboardInterrupt:
            study.save()
            raise StoppedError(
                f"sweep stopped after {sum(record.state != 'running' for record in study.records())} of "
                f"{config.tune.trials} trials: the same command resumes sweep {config.tune.name!r} at {root}"
            ) from None
        except Exception as error:
            if search.ended_by is not None:
                raise search.ended_by from error
            raise
        finally:
            progress.close()
    study.save()


def _past(study: SweepStudy, root: str) -> list[History]:
    """Return the epochs of the complete trials; a trial that resumes reports its own again."""
    return [
        read_history(storage.join(root, "trials", record.run))[: record.epochs]
        for record in study.records()
        if record.state == "complete"
    ]


def _conclude(config: Config, root: str, space: Space, study: SweepStudy) -> SweepResult:
    """Write the results of the trials, and publish the best checkpoint."""
    study.check()
    records, best = study.records(), study.best()
    if best is None:
        reasons = "; ".join(f"trial {record.number}: {record.reason}" for record in records[:3])
        write_report(root, config, study, None)
        raise SweepError(f"sweep {config.tune.name!r}: no trial reported {study.objectives[0]} ({reasons})")
    best_config = space.config(best.params)
    storage.write_bytes(storage.join(root, BEST_FILE), best_config.to_yaml().encode())
    store = CheckpointStore(storage.join(root, "trials", best.run, "checkpoints"))
    step = store.best()
    if step is None:
        raise SweepError(f"sweep {config.tune.name!r}: run {best.run} of trial {best.number} has lost its checkpoints")
    study.check()
    release = _published(config, store.uri(step))
    start = next((record for record in records if record.params == space.start()), None)
    write_report(root, config, study, best)
    return SweepResult(root, best, start, best_config, release, records)


def _published(config: Config, checkpoint: str) -> registry.Release:
    """Publish the best checkpoint, with a calibration if the sweep is to make one."""
    if not config.tune.calibrate:
        return registry.publish(config.tune.registry, config.tune.name, checkpoint)
    device = "cuda" if config.train.use_gpu and torch.cuda.is_available() else "cpu"
    return publish_calibrated(config.tune.registry, config.tune.name, checkpoint, device=device)


def describe(result: SweepResult) -> str:
    """Return a summary of a sweep in two lines."""
    metric, best = result.config.tune.metric, result.best
    lines = [f"best of {len(result.trials)} trials: number {best.number}, {shown(metric, best.values[metric])}"]
    if result.start is not None and result.start.values:
        gain = best.values[metric] - result.start.values[metric]
        text = f"{100 * gain:+.1f} points over" if is_share(metric) else f"{gain:+.4g} against"
        lines[0] += f", {text} the configuration's own values"
    return "\n".join([*lines, format_params(result.best.params)])
