"""The search space of a sweep: dotted keys of the configuration, validated before anything runs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import optuna

from s2s_ray.config import Config, ParameterConfig, value_at, with_values
from s2s_ray.errors import ConfigError

Params = dict[str, Any]
"""Values by dotted key, as Optuna stores them: a choice that is a list is stored as JSON."""

# All trials read the same data set, and the sweep chooses the names and storage of their runs.
_FIXED = (
    "data.uri",
    "data.cache_dir",
    "data.cache_gb",
    "evaluation.",
    "model.height",
    "model.width",
    "prepare.",
    "source.",
    "train.name",
    "train.resources_per_worker",
    "train.storage",
    "train.use_gpu",
    "train.validate_synthesis",
    "train.workers",
    "tune.",
)


class Space:
    """The searched keys of a configuration.

    Raises:
        ConfigError: an unknown key, a key that all trials share, a value that the configuration does not allow, a
            condition that cannot be met, or a range without the configuration's own value, which the first trial has.
    """

    def __init__(self, config: Config) -> None:
        self.base = config
        self.parameters = config.tune.space
        if not self.parameters:
            raise ConfigError("tune.space={}: no key to search")
        for key in self.parameters:
            self._check(key)
        self.order = self._parents_first()
        self.start()

    def start(self) -> Params:
        """Return the configuration's own values, which are those of the first trial."""
        params: Params = {}
        for key in self.order:
            if self._active(key, params):
                value = value_at(self.base, key)
                params[key] = _encode(value)
                if not _contains(self.parameters[key], params[key]):
                    raise ConfigError(
                        f"tune.space.{key} does not contain the configuration's own {key}={value!r}, which is the "
                        "first trial: widen it, or set the value"
                    )
        return params

    def suggest(self, trial: optuna.Trial) -> Params:
        """Return the values that an Optuna trial proposes for the keys whose conditions hold."""
        params: Params = {}
        for key in self.order:
            if self._active(key, params):
                params[key] = _suggest(trial, key, self.parameters[key])
        return params

    def config(self, params: Mapping[str, Any]) -> Config:
        """Return the configuration of a trial."""
        values = {key: _decode(self.parameters[key], value) for key, value in params.items()}
        return with_values(self.base, values)

    def _active(self, key: str, params: Params) -> bool:
        return all(
            parent in params and params[parent] in {_encode(value) for value in values}
            for parent, values in self.parameters[key].when.items()
        )

    def _check(self, key: str) -> None:
        value_at(self.base, key)
        shared = next((part for part in _FIXED if key == part or key.startswith(part)), None)
        if shared is not None:
            raise ConfigError(
                f"tune.space.{key}: cannot be searched, because the trials of a sweep share {shared.rstrip('.')}"
            )
        parameter = self.parameters[key]
        for value in parameter.choices or (parameter.low, parameter.high):
            try:
                with_values(self.base, {key: _decode(parameter, _encode(value))})
            except ConfigError as error:
                raise ConfigError(f"tune.space.{key}: {error}") from None
        for parent, values in parameter.when.items():
            if parent not in self.parameters:
                raise ConfigError(f"tune.space.{key}.when.{parent}: {parent} is not a searched key")
            unknown = [value for value in values if not _contains(self.parameters[parent], _encode(value))]
            if unknown:
                raise ConfigError(f"tune.space.{key}.when.{parent}={unknown[0]!r}: {parent} never has this value")

    def _parents_first(self) -> list[str]:
        order: list[str] = []
        waiting = list(self.parameters)
        while waiting:
            ready = [key for key in waiting if set(self.parameters[key].when) <= set(order)]
            if not ready:
                raise ConfigError(f"tune.space: the conditions of {', '.join(waiting)} depend on each other")
            order += ready
            waiting = [key for key in waiting if key not in ready]
        return order


def format_params(params: Params) -> str:
    """Return the values of a trial in one line, with four significant digits."""
    return ", ".join(f"{key}={format_value(value)}" for key, value in params.items())


def format_value(value: Any) -> str:
    """Return one value as text, with four significant digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _suggest(trial: optuna.Trial, key: str, parameter: ParameterConfig) -> Any:
    if parameter.choices is not None:
        return trial.suggest_categorical(key, [_encode(value) for value in parameter.choices])
    assert parameter.low is not None
    assert parameter.high is not None
    if parameter.integer:
        step = int(parameter.step or 1)
        return trial.suggest_int(key, int(parameter.low), int(parameter.high), step=step, log=parameter.log)
    return trial.suggest_float(key, parameter.low, parameter.high, step=parameter.step, log=parameter.log)


def _contains(parameter: ParameterConfig, value: Any) -> bool:
    if parameter.choices is not None:
        return value in [_encode(choice) for choice in parameter.choices]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    assert parameter.low is not None
    assert parameter.high is not None
    if not parameter.low <= value <= parameter.high or (parameter.integer and value != int(value)):
        return False
    steps = 0.0 if parameter.step is None else (value - parameter.low) / parameter.step
    return math.isclose(steps, round(steps), abs_tol=1e-9)


def _encode(value: Any) -> Any:
    """Return a list as JSON, in which 90 and 90.0 are written alike, and any other value as it is."""
    if not isinstance(value, list | tuple):
        return value
    return json.dumps([float(item) if isinstance(item, int) and not isinstance(item, bool) else item for item in value])


def _decode(parameter: ParameterConfig, value: Any) -> Any:
    if parameter.choices is not None:
        return next((list(c) if isinstance(c, tuple) else c for c in parameter.choices if _encode(c) == value), value)
    return int(value) if parameter.integer else value
