"""A run: the URIs of its files, its configuration, and whether another configuration may resume it."""

from __future__ import annotations

import logging
from typing import Any

from s2s_ray import storage
from s2s_ray.config import AugmentationConfig, Config, load_stored
from s2s_ray.errors import CheckpointError, RunError
from s2s_ray.model.checkpoint_meta import META_FILE, check_fits, read_meta
from s2s_ray.training.checkpoint_store import CheckpointStore

logger = logging.getLogger(__name__)

CONFIG_FILE = "config.yaml"
DIVERGED_FILE = "diverged.json"
CHECKPOINTS = "checkpoints"

# With another value of these a step number would mean other pairs, or the best checkpoint another comparison.
_FIXED = ("train.batch", "train.seed", "data.window", "data.flip", "train.best_metric")


def run_uri(config: Config) -> str:
    """Return `STORAGE/NAME`, which identifies a run."""
    return storage.join(config.train.storage, config.train.name)


def checkpoint_store(config: Config) -> CheckpointStore:
    """Return the checkpoints of the configured run."""
    return CheckpointStore(storage.join(run_uri(config), CHECKPOINTS), config.train.keep_checkpoints)


def save_config(config: Config) -> None:
    """Write the resolved configuration to the run's `config.yaml`. Raises ConfigError if it holds a secret."""
    config.check_storable()
    storage.write_bytes(storage.join(run_uri(config), CONFIG_FILE), config.to_yaml().encode())


def check_resumable(uri: str, meta: dict[str, Any], config: Config, dataset_digest: str) -> None:
    """Refuse to resume a checkpoint with a configuration that gives its step another meaning.

    Args:
        uri: the checkpoint, for messages.
        meta: its metadata.
        config: the configuration to resume with.
        dataset_digest: digest of the configured data set.

    Raises:
        CheckpointError: another model, or a checkpoint that no run has saved.
        RunError: another data set, batch, seed or order of pairs.
    """
    if meta.get("config") is None or meta.get("dataset") is None:
        raise CheckpointError(f"checkpoint {uri} was not saved by a run, so none can be resumed from it")
    saved = Config.from_stored(meta["config"], storage.join(uri, META_FILE))
    check_fits(uri, saved.model, config.model)
    before, now = saved.model_dump(), config.model_dump()
    for key in (*_FIXED, *(f"augmentation.{field}" for field in AugmentationConfig.model_fields)):
        section, field = key.split(".")
        if before[section][field] != now[section][field]:
            raise RunError(
                f"run {config.train.name!r} was started with {key}={before[section][field]!r}, now it is "
                f"{now[section][field]!r}: keep it, or choose another train.name"
            )
    if meta["dataset"]["digest"] != dataset_digest:
        raise RunError(
            f"run {config.train.name!r} was started on another data set ({meta['dataset']['uri']}) than "
            f"data.uri={config.data.uri!r}: choose another train.name"
        )
    changed = [
        f"{section}.{field}: {before[section][field]!r} -> {value!r}"
        for section in ("loss", "mining", "train")
        for field, value in now[section].items()
        if before[section][field] != value
    ]
    if changed:
        logger.info("resuming %s with changes: %s", uri, "; ".join(changed))


def load_run_config(run: str) -> Config:
    """Return the configuration saved with a run; keys of a newer version are logged and left out.

    Raises:
        StateError: a newer version that this one cannot read wrote it.
        ConfigError: it is not a configuration.
        StorageError: it cannot be read.
    """
    uri = storage.join(run, CONFIG_FILE)
    return load_stored(storage.read_bytes(uri), uri)


def config_of(uri: str) -> Config | None:
    """Return the configuration that the run or the checkpoint at a URI was trained with.

    A run has it in `config.yaml`, and so has the run around a checkpoint (`RUN/checkpoints/STEP`). A checkpoint that
    was moved elsewhere has it in its `meta.json`. None if it is neither, as in an imported checkpoint.

    Raises:
        StateError, ConfigError: it cannot be used, see `Config.from_stored`.
        StorageError: it cannot be read.
    """
    run = uri
    if storage.is_complete(uri):
        run = storage.parent(storage.parent(uri)) if storage.name(storage.parent(uri)) == CHECKPOINTS else ""
    if run and storage.exists(storage.join(run, CONFIG_FILE)):
        return load_run_config(run)
    tree = read_meta(uri).get("config") if storage.is_complete(uri) else None
    return None if tree is None else Config.from_stored(tree, storage.join(uri, META_FILE))


def find_checkpoint(uri: str) -> str:
    """Return the URI of a checkpoint: `uri` itself, or the best of the run at `uri`.

    Raises:
        RunError: it is neither a checkpoint nor a run with a validated one.
        CheckpointError: a newer version that this one cannot read wrote the run.
        StorageError: it cannot be read.
    """
    if storage.is_complete(uri):
        return uri
    store = CheckpointStore(storage.join(uri, CHECKPOINTS))
    best = store.best()
    if best is None:
        for step in store.steps():
            read_meta(store.uri(step))  # says so if a newer version wrote it
        raise RunError(f"{uri} is neither a checkpoint nor a run with a validated checkpoint below it")
    return store.uri(best)
