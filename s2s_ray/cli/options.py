"""Options that several verbs share."""

from __future__ import annotations

from typing import Annotated

import typer

from s2s_ray.config import (
    Config,
)
from s2s_ray.errors import ConfigError

ConfigOption = Annotated[str, typer.Option("--config", "-c", help="A YAML file or a preset: see `s2s --version`.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", "-s", help="Change a value: a.b=value. Repeatable.")]
RegistryOption = Annotated[
    str, typer.Option("--registry", help="Root of the registry: a directory or an object-store URI.")
]
NameOption = Annotated[str, typer.Option(help="Name of the model in the registry.")]
CheckpointOption = Annotated[str, typer.Option("--checkpoint", help="A checkpoint, or a run: its best one is taken.")]


def device_of(config: Config) -> str:
    """Where a checkpoint is measured. Raises ConfigError where the configuration asks for a GPU that there is not."""
    import torch

    if config.train.use_gpu and not torch.cuda.is_available():
        raise ConfigError("train.use_gpu=True, but this machine has no CUDA device: add `-s train.use_gpu=false`")
    return "cuda" if config.train.use_gpu else "cpu"
