"""Configurations of models that are small enough for a test."""

from __future__ import annotations

from typing import Any

from s2s_ray.config import ModelConfig

TINY: dict[str, Any] = {
    "height": 32,
    "width": 40,
    "channels": 4,
    "residual_blocks": 1,
    "discriminator_channels": 4,
    "street_blocks": (1, 1, 1),
    "masks": 2,
}


def tiny_model(**changes: Any) -> ModelConfig:
    """Return the smallest model that has every part of the paper's, with some values changed."""
    return ModelConfig(**TINY | changes)
