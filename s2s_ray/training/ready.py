"""The check that a run can start: its data set has its model's resolution, and its checkpoints fit its settings."""

from __future__ import annotations

import math

from s2s_ray.config import Config
from s2s_ray.config.protocol import Protocol, metric
from s2s_ray.data.dataset import PairDataset
from s2s_ray.data.places import places_of
from s2s_ray.data.schema import Split
from s2s_ray.errors import ConfigError, DamagedError, DatasetError, NotFoundError, RunError
from s2s_ray.evaluation.protocols import require_margin
from s2s_ray.model.checkpoint_meta import read_meta
from s2s_ray.training.run import check_resumable, checkpoint_store
from s2s_ray.training.trackers import check_installed


def check_ready(config: Config) -> None:
    """Refuse a run that the workers would refuse, before any of them is started.

    Raises:
        ConfigError: a tracker that is not installed, too small a cache, or a secret in the configuration.
        DatasetError: no data set, an empty split, or no margin for a protocol of the validation.
        RunError: another resolution, or a run that was started with incompatible settings.
        CheckpointError: a checkpoint of another model, or all checkpoints are damaged.
        StorageError: a file cannot be read.
    """
    config.check_storable()
    check_installed(config)
    data = open_split(config, "train", flip=0.0).info
    open_split(config, "val", flip=0.0)
    store = checkpoint_store(config)
    for uri in map(store.uri, reversed(store.steps())):
        try:
            meta = read_meta(uri)
        except (DamagedError, NotFoundError):
            continue  # as the workers do, which log it
        check_resumable(uri, meta, config, data.digest)
        break
    else:
        store.newest()  # says so if all are damaged


def open_split(config: Config, split: Split, flip: float) -> PairDataset:
    """Open a split of the configured data set.

    Raises:
        RunError: it has another resolution than the model.
        ConfigError: a warm-up that is longer than the run.
        DatasetError: the validation split has no margin for a protocol that is to be measured on it, or no positions
            for the metric that chooses the best checkpoint.
    """
    augmentation = config.augmentation if split == "train" else None
    dataset = PairDataset.open(config.data, split, flip=flip, seed=config.train.seed, augmentation=augmentation)
    found = (dataset.height, dataset.width)
    if found != (config.model.height, config.model.width):
        raise RunError(
            f"data.uri={config.data.uri!r} was prepared at {found[0]} x {found[1]}, the model takes "
            f"{config.model.height} x {config.model.width}: prepare it again, or change model.height and model.width"
        )
    steps = math.ceil(len(dataset) / config.train.batch) * config.train.epochs
    if split == "train" and config.train.warmup_steps > steps:
        raise ConfigError(
            f"train.warmup_steps={config.train.warmup_steps}: the run has {steps} steps (train.epochs="
            f"{config.train.epochs}), so its rates would never reach their values: choose fewer"
        )
    if split == "val":
        for name in config.evaluation.protocols:
            require_margin(dataset, Protocol.parse(name), config.evaluation)
        chosen = config.train.best_metric
        if metric(chosen)[1].startswith("metres") and not (places_of(dataset).frames != 0).any():
            raise DatasetError(f"train.best_metric={chosen!r} needs positions, and {dataset.uri} has none")
    return dataset
