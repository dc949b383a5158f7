"""Annotations of the configuration's fields: the values that a type allows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from s2s_ray.config.frozen import FrozenDict


def alternatives(annotation: Any) -> list[Any]:
    """Return the types of a union, at any depth, without what `Annotated` adds; one for any other annotation."""
    if get_origin(annotation) is Annotated:
        return alternatives(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [inner for argument in get_args(annotation) for inner in alternatives(argument)]
    return [annotation]


def is_optional(annotation: Any) -> bool:
    """Return whether None is allowed."""
    return NoneType in alternatives(annotation)


def is_text(annotation: Any) -> bool:
    """Return whether every value but None is a string."""
    kinds = [kind for kind in alternatives(annotation) if kind is not NoneType]
    return bool(kinds) and all(
        all(isinstance(value, str) for value in get_args(kind))
        if get_origin(kind) is Literal
        else isinstance(kind, type) and issubclass(kind, str)
        for kind in kinds
    )


def element(annotation: Any, position: int) -> Any | None:
    """Return the annotation of a value in a list; None if the annotation allows no list, or none as long."""
    for kind in alternatives(annotation):
        if get_origin(kind) in (tuple, list):
            arguments = get_args(kind)
            if get_origin(kind) is list or arguments[1:] == (...,):
                return arguments[0]
            return arguments[position] if position < len(arguments) else None
    return None


def entry(annotation: Any) -> Any | None:
    """Return the annotation of the values of a mapping; None if the annotation allows no mapping."""
    for kind in alternatives(annotation):
        if get_origin(kind) in (FrozenDict, dict):
            return get_args(kind)[1]
    return None


def holds_misplaced_bool(annotation: Any, value: Any) -> bool:
    """Return whether a value, or one inside it, is true or false where the annotation wants a number."""
    kinds = alternatives(annotation)
    if isinstance(value, bool):
        return bool not in kinds and (int in kinds or float in kinds)
    if isinstance(value, Mapping):
        inner = entry(annotation)
        return inner is not None and any(holds_misplaced_bool(inner, item) for item in value.values())
    if isinstance(value, list | tuple):
        return any(holds_misplaced_bool(element(annotation, k), item) for k, item in enumerate(value))
    return False


def is_finite(value: Any) -> bool:
    """Return whether every number in a value of plain types is finite."""
    if isinstance(value, Mapping):
        return all(is_finite(item) for item in value.values())
    if isinstance(value, list | tuple):
        return all(is_finite(item) for item in value)
    return not isinstance(value, float) or math.isfinite(value)


def texts(value: Any) -> Iterator[str]:
    """Yield the strings in a value of plain types."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from texts(key)
            yield from texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from texts(item)
