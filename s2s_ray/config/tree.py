"""The whole configuration, and its values by dotted key."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ValidationError, ValidationInfo, field_validator, model_validator

from s2s_ray.config import notation
from s2s_ray.config.ablate import AblateConfig
from s2s_ray.config.annotations import alternatives, is_optional, is_text
from s2s_ray.config.augmentation import AugmentationConfig
from s2s_ray.config.data import DataConfig, PrepareConfig
from s2s_ray.config.evaluation import EvaluationConfig
from s2s_ray.config.explain import explain, without_kind
from s2s_ray.config.frozen import FrozenDict
from s2s_ray.config.keys import Place, assign, find
from s2s_ray.config.losses import LossConfig, MiningConfig
from s2s_ray.config.model import ModelConfig
from s2s_ray.config.protocol import metric
from s2s_ray.config.section import STORED, Section
from s2s_ray.config.sources import SourceConfig, SyntheticSourceConfig
from s2s_ray.config.training import TrainConfig
from s2s_ray.config.tune import TuneConfig
from s2s_ray.errors import ConfigError, InputError, StateError
from s2s_ray.uri import Uri

log = logging.getLogger(__name__)

FORMAT = 1
"""Version of a stored configuration. Files of this version do not carry it, because older releases refuse the key."""


class Config(Section):
    """Everything a run needs, saved with it as `config.yaml`."""

    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    mining: MiningConfig = MiningConfig()
    source: SourceConfig = SyntheticSourceConfig()
    prepare: PrepareConfig = PrepareConfig()
    data: DataConfig = DataConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    train: TrainConfig = TrainConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    tune: TuneConfig = TuneConfig()
    ablate: AblateConfig = AblateConfig()

    @model_validator(mode="after")
    def _micro_batches_have_no_statistics(self) -> Self:
        if self.train.micro_batch is not None and self.model.street_batchnorm == "live":
            raise ValueError(
                f"train.micro_batch={self.train.micro_batch} computes a batch in pieces, and model.street_batchnorm="
                "'live' normalises by the statistics of the whole batch, which no piece knows: set "
                "model.street_batchnorm=frozen, or leave train.micro_batch unset"
            )
        return self

    @model_validator(mode="after")
    def _mining_discards_triplets(self) -> Self:
        if self.loss.retrieval != "triplet" and self.mining.start != "never":
            raise ValueError(
                f"mining.start={self.mining.start!r} discards easy triplets, and loss.retrieval="
                f"{self.loss.retrieval!r} has none: it weighs negatives by their difficulty itself. Set "
                "mining.start=never"
            )
        return self

    @model_validator(mode="after")
    def _descriptors_that_turn(self) -> Self:
        if self.loss.turned and (self.loss.retrieval != "infonce" or self.model.pooling != "azimuth"):
            raise ValueError(
                f"loss.turned={self.loss.turned:g} compares turned descriptors by InfoNCE: set loss.retrieval=infonce "
                "and model.pooling=azimuth, or leave loss.turned at 0"
            )
        return self

    @model_validator(mode="after")
    def _synthesis_to_measure(self) -> Self:
        if not self.model.synthesizes:
            for key, requested in (
                ("train.validate_synthesis", self.train.validate_synthesis),
                ("tune.synthesis", self.tune.synthesis is not None),
            ):
                if requested:
                    raise ValueError(
                        f"{key} measures synthesised views, and model.ablation={self.model.ablation!r} makes none"
                    )
        return self

    @model_validator(mode="after")
    def _metrics_are_measured(self) -> Self:
        given = self.evaluation.protocols
        for key, name in (("train.best_metric", self.train.best_metric), ("tune.metric", self.tune.metric)):
            protocol = metric(name)[0]
            if protocol is not None and protocol.name not in given:
                raise ValueError(
                    f"{key}={name!r} is a figure of the protocol {protocol.name}, and evaluation.protocols="
                    f"{list(given)!r} does not measure it: add it there"
                )
        return self

    @model_validator(mode="after")
    def _text_for_keys_that_take_text(self, info: ValidationInfo) -> Self:
        if (info.context or {}).get("stored"):
            return self
        tried = [(f"tune.space.{key}.choices", key, entry.choices or ()) for key, entry in self.tune.space.items()]
        for name, arm in self.ablate.differences.items():
            tried += [(f"ablate.differences.{name}.{key}", key, (value,)) for key, value in arm.items()]
        for place, key, values in tried:
            annotation = _annotation({"source": {"kind": self.source.kind}}, key)
            for value in values:
                if is_text(annotation) and not isinstance(value, str | None):
                    raise ValueError(f"{place}: {value!r} is no text, and {key} takes text: put it in quotes")
        return self

    @field_validator("source", mode="before")
    @classmethod
    def _synthetic_by_default(cls, value: Any) -> Any:
        return {"kind": "synthetic", **value} if isinstance(value, Mapping) else value

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any], *, stored: bool = False) -> Config:
        """Validate a nested mapping; a `stored` one may hold a secret. Raises `ConfigError` with one line per fault."""
        try:
            return cls.model_validate(tree, context=STORED if stored else None)
        except ValidationError as error:
            raise ConfigError(explain(error, cls)) from None

    @classmethod
    def from_stored(cls, tree: Any, uri: str) -> Config:
        """Validate a nested mapping that some version of this program wrote.

        Keys that this version does not have were written by a newer one: they are logged and left out. In a file
        that a person writes they are refused, see `load_config`. So is a password or a key in an address, which
        earlier versions accepted: a configuration that holds one can be read, but not trained with.

        Args:
            tree: the content of a `config.yaml`, or the configuration inside another file.
            uri: the file, for messages.

        Raises:
            StateError: a newer version whose files this one cannot read wrote the file.
            ConfigError: it is not a configuration; one line per fault.
        """
        if not isinstance(tree, Mapping):
            raise ConfigError(f"{uri} holds {type(tree).__name__}, expected a mapping of sections")
        known = copy.deepcopy(dict(tree))
        _drop_empty_paths(cls, known)
        version = known.pop("format", FORMAT)
        if version != FORMAT:
            raise StateError(f"{uri} has format {version!r}, this version reads {FORMAT}: upgrade s2s-ray")
        try:
            return cls.model_validate(known, context=STORED)
        except ValidationError as error:
            newer = [without_kind(fault["loc"]) for fault in error.errors() if fault["type"] == "extra_forbidden"]
        for path in newer:
            _remove(known, path)
        if newer:
            names = ", ".join(".".join(map(str, path)) for path in newer)
            log.warning("%s: ignored keys that this version does not know: %s", uri, names)
        try:
            return cls.model_validate(known, context=STORED)
        except ValidationError as error:
            raise ConfigError(f"{uri}: {explain(error, cls)}") from None

    def located(self) -> Self:
        """Return the same settings with absolute paths, also where a sweep or a study tries several."""
        located = super().located()
        known = {"source": {"kind": located.source.kind}}
        space = {}
        for key, parameter in located.tune.space.items():
            own = {"choices": _located(known, key, parameter.choices), "when": _each_located(known, parameter.when)}
            space[key] = parameter.model_copy(update=own)
        differences = {name: _each_located(known, values) for name, values in located.ablate.differences.items()}
        tune = located.tune.model_copy(update={"space": FrozenDict(space)})
        ablate = located.ablate.model_copy(update={"differences": FrozenDict(differences)})
        return located.model_copy(update={"tune": tune, "ablate": ablate})

    def check_storable(self) -> None:
        """Raise ConfigError if it holds a secret, as one that an earlier version stored may."""
        Config.from_tree(self.model_dump(mode="json"))

    def to_yaml(self) -> str:
        """Return the whole configuration as YAML, which `load_config` reads back to an equal one."""
        return notation.dump(self.model_dump(mode="json"))


def value_at(config: Config, key: str) -> Any:
    """Return the value of a dotted key; a number is a position in a list (`mining.discard.0`).

    Raises:
        ConfigError: there is no such key.
    """
    tree = config.model_dump(mode="json")
    node: Any = tree
    for step in _known(tree, key).steps:
        if isinstance(node, dict) and step not in node:
            raise ConfigError(f"{key}: unknown key; {step!r} is none of {', '.join(node) or 'nothing'}")
        node = node[step]
    return node


def with_values(config: Config, values: Mapping[str, Any]) -> Config:
    """Return the configuration with other values at dotted keys.

    Raises:
        ConfigError: there is no such key, or its value is not allowed.
    """
    tree = config.model_dump(mode="json")
    for key, value in values.items():
        assign(tree, _known(tree, key), value, key)
    return Config.from_tree(tree)


def _located(tree: Mapping[str, Any], key: str, value: Any) -> Any:
    """Return a value, or several, of a dotted key with absolute paths."""
    if isinstance(value, tuple):
        return tuple(_located(tree, key, item) for item in value)
    kinds = alternatives(_annotation(tree, key)) if isinstance(value, str) else []
    place = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Uri)), None)
    try:
        return value if place is None else str(place(value).absolute)
    except InputError:  # no path: it is refused where the value is used
        return value


def _annotation(tree: Mapping[str, Any], key: str) -> Any:
    """Return the type of a dotted key; Any if it is unknown, which is refused where its value is used."""
    try:
        return find(Config, tree, key).annotation
    except ConfigError:
        return Any


def _each_located(tree: Mapping[str, Any], values: Mapping[str, Any]) -> FrozenDict[str, Any]:
    """Return values by dotted key with absolute paths."""
    return FrozenDict({key: _located(tree, key, value) for key, value in values.items()})


def _known(tree: dict[str, Any], key: str) -> Place:
    place = find(Config, tree, key)
    if place.unknown is not None:
        raise ConfigError(place.unknown)
    return place


def _drop_empty_paths(model: type[BaseModel], tree: dict[str, Any]) -> None:
    """Set paths that may be missing to None where earlier versions accepted an empty text."""
    for name, field in model.model_fields.items():
        kinds = [kind for kind in alternatives(field.annotation) if isinstance(kind, type)]
        if isinstance(tree.get(name), dict):
            for section in (kind for kind in kinds if issubclass(kind, BaseModel)):
                _drop_empty_paths(section, tree[name])
        elif tree.get(name) == "" and is_optional(field.annotation) and any(issubclass(kind, Uri) for kind in kinds):
            tree[name] = None


def _remove(tree: dict[str, Any], path: list[Any]) -> None:
    node: Any = tree
    for part in path[:-1]:
        node = node[part]
    del node[path[-1]]
