"""An ablation study: Ray Tune's trials of the one trainer, one for each arm and seed, which resume after a stop.

    STORAGE/NAME/ablate.yaml            the data set and the configuration with which it was started
                /runs/ARM-seedN/        each run, as `train` writes it
                /results/ARM-seedN/     its evaluation: metrics.json, queries.parquet, galleries
                /ablation.json, table.txt, comparison.png, comparison.pdf
                /driver.json            the process that runs it

A run with results is finished and is not repeated.
"""

from __future__ import annotations

import logging
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from ray import tune
from ray.tune.experiment import Trial

from s2s_ray import storage
from s2s_ray.ablation.comparison import Arm, arms, run_of, summarise
from s2s_ray.config import Config, with_values
from s2s_ray.data.dataset import PairDataset
from s2s_ray.errors import AblationError, DivergedError, S2SError, StoppedError
from s2s_ray.evaluation.evaluate import METRICS, evaluate
from s2s_ray.model.checkpoint import load_checkpoint
from s2s_ray.runtime.cluster import in_thread, original_error
from s2s_ray.runtime.ray_internals import keep_credentials
from s2s_ray.runtime.ray_settings import quieten_tune
from s2s_ray.storage.lease import Fence, Lease, driving
from s2s_ray.training.loop import Trainer
from s2s_ray.training.ready import check_ready
from s2s_ray.training.run import find_checkpoint, run_uri
from s2s_ray.trials.claim import DATA_FREE, TRAIN_FREE, Origin, claim
from s2s_ray.trials.placement import max_concurrent, placement

logger = logging.getLogger(__name__)


class AblationOrigin(Origin):
    """The data set and the configuration with which a study was started; the content of `ablate.yaml`."""

    ERROR = AblationError
    FILE = "ablate.yaml"
    KIND = "study"
    SECTION = "ablate"
    COMPARED = ("model", "loss", "mining", "augmentation", "train", "data", "evaluation")
    FREE: ClassVar[Mapping[str, Sequence[str]]] = {
        "train": (*TRAIN_FREE, "seed"),
        "data": DATA_FREE,
        "evaluation": ("chunk", "batch", "gallery_rows", "weights"),
    }


def ablate(config: Config) -> str:
    """Train and evaluate every arm with every seed on the connected Ray cluster, or resume the study.

    Returns:
        The URI of the study, with the summary that `ablation.comparison.summarise` writes.

    Raises:
        ConfigError, StorageError, RunError, PlacementError: the study cannot run; nothing was changed.
        AblationError: the folder belongs to another study, another process runs this one, or runs failed; the results
            of the other runs are kept.
        StoppedError: Ctrl-C; the message says how to resume.
    """
    config = config.located()
    planned = arms(config)
    root = storage.join(config.ablate.storage, config.ablate.name)
    for arm in planned:
        for seed in config.ablate.seeds:
            check_ready(run_config(config, root, arm, seed))
    concurrent = max_concurrent(config, config.ablate.concurrent)
    claim(config, root, AblationOrigin)
    with driving(root, f"study {config.ablate.name!r}", AblationError) as lease:
        todo = [
            {"arm": arm.name, "seed": seed}
            for seed in config.ablate.seeds
            for arm in planned
            if not storage.exists(storage.join(result_uri(root, arm, seed), METRICS))
        ]
        total = len(planned) * len(config.ablate.seeds)
        if todo:
            logger.info("%d of %d runs to do", len(todo), total)
            if failed := _run(config, root, todo, concurrent, lease):
                raise AblationError(f"study {config.ablate.name!r}: {'; '.join(failed)}; the same command retries them")
        else:
            logger.info("all %d runs have finished", total)
        checkpoints = {
            arm.name: find_checkpoint(run_uri(run_config(config, root, arm, config.ablate.seeds[0]))) for arm in planned
        }
        lease.check()
        summarise(config, root, planned, checkpoints)
    return root


def run_config(config: Config, root: str, arm: Arm, seed: int) -> Config:
    """Return the configuration of one run: the arm's values and the seed, stored below `root`."""
    varied = with_values(config, arm.values)
    own = {"name": run_of(arm.name, seed), "storage": storage.join(root, "runs"), "seed": seed}
    return varied.model_copy(update={"train": varied.train.model_copy(update=own)})


def result_uri(root: str, arm: Arm, seed: int) -> str:
    """Return the URI of a run's evaluation."""
    return storage.join(root, "results", run_of(arm.name, seed))


class ProgressLogger(tune.Callback):
    """Tune's callback that logs runs as they start and finish.

    Args:
        total: number of runs to do.
    """

    def __init__(self, total: int) -> None:
        self.total, self.done = total, 0

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Log the start of a run."""
        logger.info("ablation: %s started", _run_name(trial))

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Log the recall of a run."""
        self.done += 1
        recall = trial.last_result.get("recall_at_1")
        result = "no result" if recall is None else f"R@1 {100 * recall:.1f}%"
        logger.info("ablation: %s finished, %s; %d of %d runs", _run_name(trial), result, self.done, self.total)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Log that a run failed."""
        logger.warning("ablation: %s failed", _run_name(trial))


def _run_name(trial: Trial) -> str:
    run = trial.config["run"]
    return run_of(run["arm"], run["seed"])


def _run(config: Config, root: str, todo: list[dict[str, Any]], concurrent: int, lease: Lease) -> list[str]:
    """Do the runs, and return why each one that failed did."""
    quieten_tune()
    keep_credentials()
    with tempfile.TemporaryDirectory(prefix="s2s-ablate-") as folder:
        base = config.model_dump(mode="json")
        trainable = tune.with_parameters(train_and_measure, base=base, root=root, fence=lease.fence)
        tuner = tune.Tuner(
            tune.with_resources(trainable, placement(config)),
            param_space={"run": tune.grid_search(todo)},
            tune_config=tune.TuneConfig(max_concurrent_trials=concurrent),
            run_config=tune.RunConfig(
                name=f"attempt-{uuid.uuid4().hex[:8]}",
                storage_path=folder,
                callbacks=[ProgressLogger(len(todo))],
                failure_config=tune.FailureConfig(max_failures=config.ablate.max_failures),
                verbose=0,
            ),
        )
        try:
            results = in_thread(tuner.fit, lease.raise_if_lost)
        except KeyboardInterrupt:
            raise StoppedError(
                f"study stopped: the same command resumes study {config.ablate.name!r} at {root}"
            ) from None
        failed = []
        for result in [results[k] for k in range(len(results))]:
            run = (result.config or {})["run"]
            name = run_of(run["arm"], run["seed"])
            if result.error is not None:
                failed.append(f"{name} failed ({_reason(result.error)})")
            elif result.metrics and "failed" in result.metrics:
                failed.append(f"{name} {result.metrics['failed']}")
        return failed


def _reason(error: BaseException) -> str:
    """Return why a run failed, in one line."""
    original = original_error(error)
    return str(original) if isinstance(original, S2SError) else type(error).__name__


def train_and_measure(params: dict[str, Any], base: dict[str, Any], root: str, fence: Fence) -> None:
    """Train one run to its last epoch and evaluate its best checkpoint; this is Tune's trainable."""
    logging.getLogger("s2s_ray").setLevel(logging.WARNING)  # the epochs of many runs would be mixed
    config, seed = Config.from_tree(base), int(params["run"]["seed"])
    arm = next(arm for arm in arms(config) if arm.name == params["run"]["arm"])
    own = run_config(config, root, arm, seed)
    device = "cuda" if own.train.use_gpu and own.train.workers == 1 else "cpu"
    torch.set_num_threads(own.train.threads)
    try:
        if own.train.workers == 1:
            Trainer(own, device).fit(wait=True)
        else:
            from s2s_ray.training.ray_train import train

            train(own, wait=True)
    except DivergedError as error:
        tune.report({"failed": f"diverged at {error}"})
        return
    model = load_checkpoint(find_checkpoint(run_uri(own)), device)
    dataset = PairDataset.open(own.data, own.evaluation.split)
    fence.check()
    report = evaluate(model, dataset, own.evaluation, device=device, out=result_uri(root, arm, seed))
    tune.report({"recall_at_1": report.street_to_satellite.recall["1"]})
