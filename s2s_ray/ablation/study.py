"""An ablation study: Ray Tune's trials of the one trainer, one for each arm and seed, that goes on after a stop.

    STORAGE/NAME/ablate.yaml            the configuration it was begun with
                /runs/ARM-seedN/        each run, as `train` leaves it
                /results/ARM-seedN/     its evaluation: metrics.json, queries.parquet, galleries
                /ablation.json, table.txt, comparison.png, comparison.pdf

A run with results is finished and is not done again.
"""

from __future__ import annotations

import logging
import tempfile
import uuid
from typing import Any

import torch
from ray import tune
from ray.tune.experiment import Trial

from s2s_ray import storage
from s2s_ray.ablation.comparison import Arm, arms, run_of, summarise
from s2s_ray.config import Config, with_values
from s2s_ray.data.dataset import PairDataset
from s2s_ray.errors import AblationError, DivergedError, StoppedError
from s2s_ray.evaluation.evaluate import METRICS, evaluate
from s2s_ray.model.checkpoint import load_checkpoint
from s2s_ray.runtime.cluster import (
    in_thread,
)
from s2s_ray.training.loop import (
    Trainer,
    check_ready,
)
from s2s_ray.training.run import find_checkpoint, located, run_uri
from s2s_ray.trials.claim import DATA_FREE, TRAIN_FREE, claim
from s2s_ray.trials.driver import driving
from s2s_ray.trials.placement import placement, quieten_tune, slots

logger = logging.getLogger(__name__)

BEGUN_FILE = "ablate.yaml"
_COMPARED = ("model", "loss", "mining", "train", "data", "evaluation")
_FREE = {"train": (*TRAIN_FREE, "seed"), "data": DATA_FREE, "evaluation": ("chunk", "batch", "gallery_rows", "weights")}


def ablate(config: Config) -> str:
    """Train and measure every arm with every seed on the connected Ray cluster, or go on with it.

    Returns: the study's URI, with the summary that `evaluation.ablation.summarise` writes.

    Raises:
        ConfigError, StorageError, RunError, PlacementError, AblationError: the study cannot run; nothing was changed.
        AblationError: another process runs the study; runs that failed; the results of the others are kept.
        StoppedError: Ctrl-C; the message says how to go on.
    """
    config = located(config)
    planned = arms(config)
    root = storage.join(config.ablate.storage, config.ablate.name)
    for arm in planned:
        for seed in config.ablate.seeds:
            check_ready(run_config(config, root, arm, seed))
    at_a_time = slots(config, config.ablate.concurrent)
    claim(
        config, root, kind="study", section="ablate", file=BEGUN_FILE, compared=_COMPARED, free=_FREE,
        fault=AblationError,
    )  # fmt: skip
    todo = [
        {"arm": arm.name, "seed": seed}
        for seed in config.ablate.seeds
        for arm in planned
        if not storage.exists(storage.join(result_uri(root, arm, seed), METRICS))
    ]
    total = len(planned) * len(config.ablate.seeds)
    if todo:
        logger.info("%d of %d runs to do", len(todo), total)
        with driving(root, f"study {config.ablate.name!r}", AblationError):
            failed = _run(config, root, todo, at_a_time)
        if failed:
            raise AblationError(f"study {config.ablate.name!r}: {'; '.join(failed)}; the same command tries them again")
    else:
        logger.info("all %d runs have ended", total)
    first = {
        arm.name: find_checkpoint(run_uri(run_config(config, root, arm, config.ablate.seeds[0]))) for arm in planned
    }
    summarise(config, root, planned, first)
    return root


def run_config(config: Config, root: str, arm: Arm, seed: int) -> Config:
    """What one run trains: the configuration with the arm's values and the seed, below `root`."""
    varied = with_values(config, arm.values)
    own = {"name": run_of(arm.name, seed), "storage": storage.join(root, "runs"), "seed": seed}
    return varied.model_copy(update={"train": varied.train.model_copy(update=own)})


def result_uri(root: str, arm: Arm, seed: int) -> str:
    """Where the evaluation of a run is."""
    return storage.join(root, "results", run_of(arm.name, seed))


class Told(tune.Callback):
    """Log lines as runs begin and end."""

    def __init__(self, total: int) -> None:
        self.total, self.done = total, 0

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        logger.info("ablation: %s started", _name(trial))

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self.done += 1
        recall = trial.last_result.get("recall_at_1")
        told = "no result" if recall is None else f"R@1 {100 * recall:.1f}%"
        logger.info("ablation: %s has ended, %s; %d of %d runs", _name(trial), told, self.done, self.total)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        logger.warning("ablation: %s failed", _name(trial))


def _name(trial: Trial) -> str:
    what = trial.config["run"]
    return run_of(what["arm"], what["seed"])


def _run(config: Config, root: str, todo: list[dict[str, Any]], at_a_time: int) -> list[str]:
    """Do the runs; returns what is wrong with those that failed."""
    quieten_tune()
    with tempfile.TemporaryDirectory(prefix="s2s-ablate-") as folder:
        trainable = tune.with_parameters(train_and_measure, base=config.model_dump(mode="json"), root=root)
        tuner = tune.Tuner(
            tune.with_resources(trainable, placement(config)),
            param_space={"run": tune.grid_search(todo)},
            tune_config=tune.TuneConfig(max_concurrent_trials=at_a_time),
            run_config=tune.RunConfig(
                name=f"attempt-{uuid.uuid4().hex[:8]}",
                storage_path=folder,
                callbacks=[Told(len(todo))],
                failure_config=tune.FailureConfig(max_failures=config.ablate.max_failures),
                verbose=0,
            ),
        )
        try:
            found = in_thread(tuner.fit)
        except KeyboardInterrupt:
            raise StoppedError(
                f"study stopped: the same command goes on with study {config.ablate.name!r} at {root}"
            ) from None
        failed = []
        for result in [found[k] for k in range(len(found))]:
            what = (result.config or {})["run"]
            if result.error is not None:
                failed.append(f"{run_of(what['arm'], what['seed'])} was lost ({type(result.error).__name__})")
            elif result.metrics and "failed" in result.metrics:
                failed.append(f"{run_of(what['arm'], what['seed'])} {result.metrics['failed']}")
        return failed


def train_and_measure(params: dict[str, Any], base: dict[str, Any], root: str) -> None:
    """Tune's trainable: one run to its last epoch, and the evaluation of its best checkpoint."""
    logging.getLogger("s2s_ray").setLevel(logging.WARNING)  # many runs tell their epochs at a time
    config, seed = Config.from_tree(base), int(params["run"]["seed"])
    arm = next(arm for arm in arms(config) if arm.name == params["run"]["arm"])
    own = run_config(config, root, arm, seed)
    device = "cuda" if own.train.use_gpu and own.train.workers == 1 else "cpu"
    torch.set_num_threads(own.train.threads)
    try:
        if own.train.workers == 1:
            Trainer(own, device).fit()
        else:
            from s2s_ray.training.ray_train import train

            train(own)
    except DivergedError as error:
        tune.report({"failed": f"diverged at {error}"})
        return
    model = load_checkpoint(find_checkpoint(run_uri(own)), device)
    dataset = PairDataset(own.data.uri, own.evaluation.split, cache_dir=own.data.cache_dir)
    report = evaluate(model, dataset, own.evaluation, device=device, out=result_uri(root, arm, seed))
    tune.report({"recall_at_1": report.street_to_satellite.recall["1"]})
