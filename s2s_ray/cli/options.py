"""Options that several verbs share, and their values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from s2s_ray.errors import ConfigError, OptionError

if TYPE_CHECKING:
    from s2s_ray.config import Config
    from s2s_ray.data.dataset import PairDataset

ConfigOption = Annotated[
    str, typer.Option("--config", "-c", help="A YAML file or a preset (`s2s --version` lists them).")
]
RunConfigOption = Annotated[
    str | None,
    typer.Option(
        "--config", "-c", help="A YAML file or a preset; default: the configuration of the run, else the preset paper."
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", help="Change a value: a.b=TEXT, as typed for a string, otherwise YAML. Repeatable."),
]
RegistryOption = Annotated[
    str, typer.Option("--registry", help="Root of the registry: a directory or an object-store URI.")
]
NameOption = Annotated[str, typer.Option(help="Name of the model in the registry.")]
CheckpointOption = Annotated[
    str, typer.Option("--checkpoint", help="A checkpoint, or a run, whose best checkpoint is used.")
]


def run_settings(uri: str, config: str | None, overrides: Sequence[str] | None) -> Config:
    """Return the configuration for work on a run or a checkpoint, with overrides.

    Args:
        uri: of the run or checkpoint.
        config: a YAML file or a preset; default: what the run or checkpoint was trained with, or the preset paper if
            that is not stored.
        overrides: `a.b=value`.

    Raises:
        ConfigError, RunError, CheckpointError, StorageError: as reading it does.
    """
    from s2s_ray.config import load_config, with_overrides
    from s2s_ray.training.run import config_of

    stored = config_of(uri) if config is None else None
    if stored is not None:
        return with_overrides(stored, overrides or ())
    return load_config(config or "paper", overrides or ())


def split_of(settings: Config) -> PairDataset:
    """Open the split evaluation.split of the data set at data.uri."""
    from s2s_ray.data.dataset import PairDataset

    return PairDataset.open(settings.data, settings.evaluation.split)


def device_of(settings: Config) -> str:
    """Return the device to measure a checkpoint on. Raises ConfigError if the configured GPU does not exist."""
    import torch

    if settings.train.use_gpu and not torch.cuda.is_available():
        raise ConfigError("train.use_gpu=True, but this machine has no CUDA device: add `-s train.use_gpu=false`")
    return "cuda" if settings.train.use_gpu else "cpu"


def default_device() -> str:
    """Return the value of `--device` when it is not given: a GPU if there is one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def local_device(name: str) -> str:
    """Return the value of `--device`. Raises OptionError if this machine has no such device."""
    import torch

    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda", "mps"):
        raise OptionError(f"--device {name}: expected cpu, cuda or cuda:N")
    count = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}.get(device.type, 1)
    if (device.index or 0) >= count:
        raise OptionError(f"--device {name}: this machine has no such device")
    return name
