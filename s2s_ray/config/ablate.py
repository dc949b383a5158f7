"""The section `ablate`: variants of the configured training, compared with each other."""

from __future__ import annotations

import re
from typing import Annotated, Self

from pydantic import Field, model_validator

from s2s_ray.config.frozen import FrozenDict
from s2s_ray.config.model import Ablation
from s2s_ray.config.section import NAME, Scalar, Section
from s2s_ray.uri import Uri


class AblateConfig(Section):
    """An ablation study: the configured training in several variants and with several seeds, side by side."""

    name: str = Field("ablation", pattern=NAME, description="the study; the same name continues it")
    storage: Uri = Field(Uri("ablations"), description="root of all studies: a directory or an object-store URI")
    arms: tuple[Ablation, ...] = Field(
        ("full", "retrieval_only", "no_gan", "separate_features"), description="values of model.ablation to compare"
    )
    differences: FrozenDict[str, FrozenDict[str, Scalar | tuple[Scalar, ...]]] = Field(
        default_factory=FrozenDict,
        description="further arms by name: dotted keys and their values, over the configuration",
    )
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (0, 1, 2), min_length=1, description="values of train.seed for each arm"
    )
    concurrent: int | None = Field(None, ge=1, description="most runs at a time; default: what the cluster holds")
    max_failures: int = Field(2, ge=0, description="times a run is restarted after its process was lost")
    examples: int = Field(3, ge=1, description="pairs shown in the comparison of synthesised views")

    @model_validator(mode="after")
    def _distinct_arms(self) -> Self:
        for key, values in (("arms", self.arms), ("seeds", self.seeds)):
            if len(set(values)) < len(values):
                raise ValueError(f"{key}={list(values)!r}: a value is listed twice")
        if both := sorted(set(self.arms) & set(self.differences)):
            raise ValueError(f"differences.{both[0]}: {both[0]!r} is one of the arms already")
        if not self.arms and not self.differences:
            raise ValueError("arms and differences are both empty: there is nothing to compare")
        for name in self.differences:
            if not re.fullmatch(NAME, name):
                raise ValueError(f"differences: {name!r} cannot name a run (letters, digits, '.', '_', '-')")
        return self
