"""Typed configuration: one frozen tree, read from a preset or a YAML file, changed with `a.b=value`.

Unknown keys, values out of range and contradictions are refused with a `ConfigError` that names the key, the value and
what is allowed.
"""

from __future__ import annotations

from s2s_ray.config.ablate import AblateConfig
from s2s_ray.config.augmentation import AugmentationConfig
from s2s_ray.config.data import DataConfig, PrepareConfig
from s2s_ray.config.evaluation import EvaluationConfig
from s2s_ray.config.load import load_config, load_stored, preset_names, with_overrides
from s2s_ray.config.losses import LossConfig, MiningConfig
from s2s_ray.config.model import Ablation, ModelConfig
from s2s_ray.config.section import BelowOne, Fraction, NonNegative, Positive, Scalar, Section
from s2s_ray.config.sources import (
    Contrast,
    CvactSourceConfig,
    CvusaSourceConfig,
    ManifestSourceConfig,
    Resize,
    SourceConfig,
    SyntheticSourceConfig,
)
from s2s_ray.config.training import TrainConfig
from s2s_ray.config.tree import Config, value_at, with_values
from s2s_ray.config.tune import ParameterConfig, TuneConfig

__all__ = [
    "AblateConfig",
    "Ablation",
    "AugmentationConfig",
    "BelowOne",
    "Config",
    "Contrast",
    "CvactSourceConfig",
    "CvusaSourceConfig",
    "DataConfig",
    "EvaluationConfig",
    "Fraction",
    "LossConfig",
    "ManifestSourceConfig",
    "MiningConfig",
    "ModelConfig",
    "NonNegative",
    "ParameterConfig",
    "Positive",
    "PrepareConfig",
    "Resize",
    "Scalar",
    "Section",
    "SourceConfig",
    "SyntheticSourceConfig",
    "TrainConfig",
    "TuneConfig",
    "load_config",
    "load_stored",
    "preset_names",
    "value_at",
    "with_overrides",
    "with_values",
]
