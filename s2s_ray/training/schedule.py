"""The schedule of the learning rates over a run."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch.optim import Optimizer

from s2s_ray.config import TrainConfig


def factor(train: TrainConfig, step: int, steps: int) -> float:
    """Return the factor of all learning rates at a step.

    It rises linearly over the first `train.warmup_steps`. With `cosine` it also falls to 0 at the end of the run, as
    half a cosine over all steps; so it depends on `train.epochs`.

    Args:
        train: the configuration.
        step: cycles done before this one.
        steps: cycles of the whole run.
    """
    warm = min(1.0, (step + 1) / train.warmup_steps) if train.warmup_steps else 1.0
    return warm * (0.5 * (1 + math.cos(math.pi * step / steps)) if train.schedule == "cosine" else 1.0)


def set_rates(optimizers: Mapping[str, Optimizer], train: TrainConfig, step: int, steps: int) -> None:
    """Set the learning rates of the networks' optimisers, by name, for a step; see `factor`."""
    rates = {
        "generator": train.lr_generator,
        "discriminator": train.lr_discriminator,
        "retrieval": train.lr_retrieval,
    }
    scale = factor(train, step, steps)
    for name, optimizer in optimizers.items():
        for group in optimizer.param_groups:
            group["lr"] = scale * rates[name]
