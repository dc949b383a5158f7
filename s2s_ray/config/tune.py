"""The section `tune`: a sweep over keys of the configuration."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, FiniteFloat, model_validator

from s2s_ray.config.frozen import FrozenDict
from s2s_ray.config.protocol import Metric
from s2s_ray.config.section import NAME, Positive, Scalar, Section
from s2s_ray.uri import Uri

_SQLITE = re.compile(r"(sqlite(?:\+\w+)?:///)(?!:memory:|file:)([^/?][^?]*)(.*)", re.DOTALL)


class DatabaseUrl(Uri):
    """The URL of a database; one of SQLite names a file on this machine."""

    __slots__ = ()

    @property
    def is_local(self) -> bool:
        """False: it is no path, even if it consists of a reference."""
        return False

    @property
    def absolute(self) -> Self:
        """The same database under a name that holds in a process with another working directory."""
        found = _SQLITE.fullmatch(self)
        return type(self)(f"{found[1]}{Path(found[2]).absolute()}{found[3]}") if found else self


class ParameterConfig(Section):
    """One searched key: a range `low`..`high`, or `choices`."""

    low: FiniteFloat | None = Field(None, description="smallest value")
    high: FiniteFloat | None = Field(None, description="largest value")
    log: bool = Field(False, description="uniform in the logarithm")
    step: Positive | None = Field(None, description="distance between the values tried, starting at low; not with log")
    integer: bool = Field(False, description="whole numbers only")
    choices: tuple[Scalar | tuple[Scalar, ...], ...] | None = Field(None, description="the values, instead of a range")
    when: FrozenDict[str, tuple[Scalar | tuple[Scalar, ...], ...]] = Field(
        default_factory=FrozenDict, description="searched only if these other searched keys have one of these values"
    )

    @model_validator(mode="after")
    def _range_or_choices(self) -> Self:
        if self.choices is not None:
            if (self.low, self.high, self.step, self.log, self.integer) != (None, None, None, False, False):
                raise ValueError("choices stand alone, without low, high, log, step and integer")
            if len(self.choices) < 2:
                raise ValueError(f"choices={list(self.choices)!r}: at least two are needed")
        elif self.low is None or self.high is None:
            raise ValueError("either choices, or low and high are needed")
        elif self.low >= self.high:
            raise ValueError(f"the range low={self.low:g} to high={self.high:g} is empty: low must be below high")
        elif self.log and self.low <= 0:
            raise ValueError(f"low={self.low:g}: must be above 0 with log")
        elif self.log and self.step is not None:
            raise ValueError(f"step={self.step:g}: not with log")
        elif self.integer and not (self.low.is_integer() and self.high.is_integer()):
            raise ValueError(f"low={self.low:g} and high={self.high:g} must be whole numbers with integer")
        return self


_SPACE = {
    "loss.lambda_ret": ParameterConfig(low=100.0, high=10000.0, log=True),
    "loss.lambda_l1": ParameterConfig(low=10.0, high=1000.0, log=True),
    "loss.alpha": ParameterConfig(low=2.0, high=50.0, log=True),
    "mining.start": ParameterConfig(choices=("never", "plateau")),
    "mining.discard.0": ParameterConfig(low=50.0, high=97.0, when=FrozenDict({"mining.start": ("plateau",)})),
}


class TuneConfig(Section):
    """A sweep: Ray Tune runs the trainer once per trial, and Optuna proposes the trials' values."""

    name: str = Field("sweep", pattern=NAME, description="the sweep; the same name continues it")
    storage: Uri = Field(Uri("sweeps"), description="root of all sweeps: a directory or an object-store URI")
    trials: int = Field(20, ge=1, description="total number of trials; a larger number extends a finished sweep")
    concurrent: int | None = Field(None, ge=1, description="most trials at a time; default: what the cluster holds")
    space: FrozenDict[str, ParameterConfig] = Field(
        default_factory=lambda: FrozenDict(_SPACE), description="dotted key -> what to search it over"
    )
    sampler: str = Field("TPESampler", description="a class of optuna.samplers")
    sampler_options: FrozenDict[str, Any] = Field(default_factory=FrozenDict, description="its arguments")
    seed: int = Field(0, ge=0, description="seed of the sampler, if it takes one")
    metric: Metric = Field(
        "recall_at_1",
        description="objective: recall_at_1 of validation, or PROTOCOL.FIGURE of one of evaluation.protocols, such as "
        "heading.recall_at_1; errors and ranks go down, all else up",
    )
    synthesis: Literal["l1", "psnr", "ssim"] | None = Field(
        None, description="second objective beside the metric: l1 down, psnr up or ssim up; default: none"
    )
    scheduler: Literal["asha", "median", "none"] = Field("asha", description="how poor trials are stopped early")
    grace_epochs: int = Field(1, ge=1, description="epochs that every trial gets")
    reduction: int = Field(3, ge=2, description="asha: one trial in this many continues at each rung")
    max_failures: int = Field(2, ge=0, description="times a trial is restarted after its process was lost")
    study: DatabaseUrl | None = Field(
        None,
        description="an Optuna RDB URL (sqlite:///..., postgresql://user:${env:NAME}@host/db, or ${env:NAME} for all "
        "of it); default: a journal beside the trials",
    )
    registry: Uri = Field(
        Uri("registry"),
        description="registry of the best checkpoint, by the sweep's name: a directory or an object-store URI",
    )
    calibrate: bool = Field(
        True, description="also calibrate the best checkpoint for its release; minutes for a large model on a CPU"
    )

    @model_validator(mode="after")
    def _early_stopping_needs_one_objective(self) -> Self:
        if self.synthesis is not None and self.scheduler != "none":
            raise ValueError(
                f"scheduler={self.scheduler!r} compares trials by one objective, and synthesis={self.synthesis!r} "
                "makes two: set tune.scheduler=none"
            )
        return self
