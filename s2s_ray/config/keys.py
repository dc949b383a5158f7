"""Dotted keys of the configuration: the place of a value in the tree, and its type.

A part of a key is a field, a key of a mapping or a position in a list: `train.resources_per_worker.GPU`,
`mining.discard.0`. Below `tune.space` and `ablate.differences` the keys of the mapping are dotted keys themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from s2s_ray.config import notation
from s2s_ray.config.annotations import alternatives, element, entry, is_optional, is_text
from s2s_ray.config.tune import ParameterConfig
from s2s_ray.errors import ConfigError

_NULL = ("~", "null")


@dataclass
class Place:
    """The place of a value in the tree of a configuration."""

    annotation: Any
    """The type of the value; Any if the key is unknown, or any value is allowed."""
    node: Any
    """The value that the tree or the defaults have there; None if there is none."""
    steps: list[str | int] = field(default_factory=list)
    """Keys of mappings and positions in lists, from the root of the tree."""
    lists: dict[int, list[Any]] = field(default_factory=dict)
    """The lists on the way, by the number of steps that lead to them: a tree may lack one that is the default."""
    unknown: str | None = None
    """Why there is no such key, if there is none."""

    def parse(self, text: str, name: str) -> Any:
        """Return the value that a text stands for: itself where the value is a string, otherwise YAML.

        Where a string may be missing, `~` and `null` stand for None.

        Args:
            text: the text, as typed.
            name: of the value, for messages.

        Raises:
            ConfigError: it is not YAML.
        """
        if is_text(self.annotation):
            return None if is_optional(self.annotation) and text in _NULL else text
        return notation.parse(text, name)


def find(root: type[BaseModel], tree: Mapping[str, Any], key: str) -> Place:
    """Return the place of a dotted key.

    Args:
        root: class of the configuration.
        tree: values; keys that it lacks have their defaults.
        key: the dotted key.

    Raises:
        ConfigError: a part below a single value, or a position that a list does not have.
    """
    place, parts = Place(root, tree), key.split(".")
    while parts and place.unknown is None:
        parts = _descend(root, tree, place, parts, key)
    return place


def assign(tree: dict[str, Any], place: Place, value: Any, key: str) -> None:
    """Set the value at a place, making the mappings and lists on the way that the tree lacks.

    Another kind of source shares no keys with the one it replaces.

    Raises:
        ConfigError: the tree has something else where the key needs a section or a list.
    """
    node: Any = tree
    *_, leaf = place.steps
    for depth, step in enumerate(place.steps):
        above = ".".join(map(str, place.steps[:depth]))
        if isinstance(step, int) and not (isinstance(node, list) and step < len(node)):
            raise ConfigError(f"{key}={value!r}: {above} is not a list with a position {step}")
        if isinstance(step, str) and not isinstance(node, dict):
            raise ConfigError(f"{key}={value!r}: {above} is not a section")
        if depth + 1 < len(place.steps):
            child = list(place.lists[depth + 1]) if depth + 1 in place.lists else {}
            node = node.setdefault(step, child) if isinstance(node, dict) else node[step]
    if place.steps == ["source", "kind"] and node.get("kind", "synthetic") != value:
        node.clear()
    node[leaf] = value


def _descend(root: type[BaseModel], tree: Mapping[str, Any], place: Place, parts: list[str], key: str) -> list[str]:
    """Move a place by one step, and return the parts of the key that are left."""
    if place.annotation is Any and not isinstance(place.node, list):
        _move(place, parts[0], Any)
        return parts[1:]
    if (model := _model(place)) is not None:
        if parts[0] not in model.model_fields:
            place.unknown = f"{key}: unknown key; {parts[0]!r} is none of {', '.join(model.model_fields)}"
            place.steps, place.annotation, place.node = [*place.steps, *parts], Any, None
            return []
        _move(place, parts[0], model.model_fields[parts[0]].annotation, _default(model, parts[0]))
        return parts[1:]
    if (inner := entry(place.annotation)) is not None:
        count = _name_length(root, place, parts)
        name = ".".join(parts[:count])
        searched = _typed_by(root, tree, place.steps, name)
        _move(place, name, inner if searched is None else searched)
        return parts[count:]
    if isinstance(place.node, list | tuple) or element(place.annotation, 0) is not None:
        return _into_list(root, tree, place, parts, key)
    at = ".".join(map(str, place.steps))
    raise ConfigError(f"{key}: unknown key; {at} is a single value, and there is nothing below it")


def _into_list(root: type[BaseModel], tree: Mapping[str, Any], place: Place, parts: list[str], key: str) -> list[str]:
    at = ".".join(map(str, place.steps))
    if not isinstance(place.node, list | tuple | None):
        raise ConfigError(f"{key}: {at} is not a list")
    values = list(place.node or ())
    is_position = parts[0].isascii() and parts[0].isdigit() and len(parts[0]) < 10
    if not (is_position and int(parts[0]) < len(values)):
        positions = f"{parts[0]!r} is none of 0 to {len(values) - 1}, the" if values else "it has no"
        raise ConfigError(f"{key}: unknown key; {positions} positions of the {len(values)} values in {at}")
    position = int(parts[0])
    inner: Any = Any if place.annotation is Any else element(place.annotation, position)
    typed = _searched(place.steps)
    if typed is not None:
        inner = find(root, tree, typed).annotation
    place.lists[len(place.steps)] = values
    place.steps, place.annotation, place.node = [*place.steps, position], inner, values[position]
    return parts[1:]


def _move(place: Place, name: str, annotation: Any, default: Any = None) -> None:
    known = isinstance(place.node, Mapping) and name in place.node
    node = place.node[name] if known else default
    place.steps, place.annotation, place.node = [*place.steps, name], annotation, node


def _model(place: Place) -> type[BaseModel] | None:
    """Return the class of the section at a place; of several kinds of sources, the one in the tree."""
    models = [kind for kind in alternatives(place.annotation) if isinstance(kind, type) and issubclass(kind, BaseModel)]
    if len(models) < 2:
        return models[0] if models else None
    kind = place.node.get("kind", "synthetic") if isinstance(place.node, Mapping) else "synthetic"
    return next((model for model in models if model.model_fields["kind"].default == kind), models[0])


def _default(model: type[BaseModel], name: str) -> Any:
    """Return the default of a field as a plain value; None if it has none."""
    info = model.model_fields[name]
    value = None if info.is_required() else info.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    return list(value) if isinstance(value, tuple) else value


def _name_length(root: type[BaseModel], place: Place, parts: Sequence[str]) -> int:
    """Return how many parts of a key name an entry of the mapping at a place."""
    match place.steps:
        case ["tune", "space"]:
            return next((k for k in range(1, len(parts)) if parts[k] in ParameterConfig.model_fields), len(parts))
        case ["tune", "space", _, "when"]:
            known = isinstance(place.node, Mapping) and ".".join(parts[:-1]) in place.node
            return len(parts) - 1 if known and parts[-1].isdigit() else len(parts)
        case ["ablate", "differences"]:
            return next((k for k in range(1, len(parts)) if parts[k] in root.model_fields), len(parts))
        case ["ablate", "differences", _]:
            return len(parts)
    return 1


def _typed_by(root: type[BaseModel], tree: Mapping[str, Any], steps: Sequence[str | int], name: str) -> Any | None:
    """Return the type of the entry of a mapping that is a value of another key, as in `ablate.differences.NAME`."""
    if list(steps[:2]) != ["ablate", "differences"] or len(steps) != 3:
        return None
    found = find(root, tree, name)
    return None if found.unknown else found.annotation


def _searched(steps: Sequence[str | int]) -> str | None:
    """Return the key whose values a list below `tune.space` holds; None for any other list."""
    match list(steps):
        case ["tune", "space", str(name), "choices"] | ["tune", "space", _, "when", str(name)]:
            return name
    return None
