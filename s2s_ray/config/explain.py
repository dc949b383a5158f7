"""Messages for configurations that pydantic refuses: each names the key, its value and what is allowed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from s2s_ray.config.annotations import alternatives, element, entry
from s2s_ray.config.sources import SOURCE_KINDS
from s2s_ray.secrets import masked, masked_address


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """Return one line per fault of a tree that `model` has refused."""
    lines = []
    for fault in error.errors():
        key = ".".join(map(str, without_kind(fault["loc"])))
        if fault["type"] == "extra_forbidden":
            allowed = ", ".join(_fields(model, fault["loc"][:-1]))
            lines.append(f"{key}={_short(fault['input'])}: unknown key; valid keys: {allowed}")
        elif fault["type"] == "missing":
            lines.append(f"{key} is missing: it has no default")
        elif fault["type"] == "invalid_key" or fault["loc"][-1:] == ("[key]",):
            key = key.removesuffix(".[key]")
            lines.append(f"{key}: expected a name as the key, in quotes if it looks like a number")
        else:
            reason = fault["msg"].removeprefix("Value error, ").removeprefix(f"{fault['input']!r}: ")
            # A fault of the whole tree names its keys itself.
            lines.append(f"{key}={_short(fault['input'])}: {reason}" if key else reason)
    return "\n".join(lines)


def without_kind(path: Sequence[int | str]) -> list[int | str]:
    """Return the keys of a path in which pydantic also names the kind of the source."""
    parts = list(path)
    if parts[:1] == ["source"] and len(parts) > 1 and parts[1] in SOURCE_KINDS:
        del parts[1]
    return parts


def _short(value: Any) -> str:
    text = repr(masked_address(value)) if isinstance(value, str) else masked(repr(value))
    return text if len(text) <= 80 else text[:77] + "..."


def _fields(model: type[BaseModel], path: Sequence[int | str]) -> list[str]:
    """Return the fields of the section at a path, below mappings and lists as well."""
    annotation: Any = model
    for part in path:
        kinds = alternatives(annotation)
        sections = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if len(sections) > 1:
            annotation = SOURCE_KINDS[str(part)]  # pydantic names the kind of the source here
        elif sections:
            annotation = sections[0].model_fields[str(part)].annotation
        else:
            annotation = entry(annotation) if isinstance(part, str) else element(annotation, part)
    return list(alternatives(annotation)[0].model_fields)
