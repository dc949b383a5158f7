"""YAML as people read it: version 1.2, in which `1e-4` is a number, and `on`, `12:30:45` and `2024-11-28` are text."""

from __future__ import annotations

import re
from typing import Any

import yaml

from s2s_ray.errors import ConfigError, DamagedError

_INTEGER = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(
    r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
_TAG = "tag:yaml.org,2002:"
_DEEPEST = 50


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the types of YAML 1.2 instead of 1.1, which refuses keys that appear twice."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  # PyYAML's attribute

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != f"{_TAG}merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"key {key.value!r} appears twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper, which also quotes what only YAML 1.2 reads as a number."""


def _integer(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node))
    base = {"0o": 8, "0x": 16}.get(text[:2], 10)
    return int(text if base == 10 else text[2:], base)


def _float(loader: _Loader, node: yaml.ScalarNode) -> float:
    text = str(loader.construct_scalar(node)).lower()
    return float(text.replace(".inf", "inf").replace(".nan", "nan"))


for name, pattern, first in (
    ("null", re.compile(r"~|null|Null|NULL|"), ["~", "n", "N", ""]),
    ("bool", re.compile(r"true|True|TRUE|false|False|FALSE"), list("tTfF")),
    ("int", _INTEGER, list("-+0123456789")),
    ("float", _FLOAT, list("-+.0123456789")),
    ("merge", re.compile(r"<<"), ["<"]),
):
    _Loader.add_implicit_resolver(f"{_TAG}{name}", re.compile(rf"(?:{pattern.pattern})\Z"), first)
_Loader.add_constructor(f"{_TAG}int", _integer)
_Loader.add_constructor(f"{_TAG}float", _float)
for name, pattern in (("int", _INTEGER), ("float", _FLOAT)):
    # After PyYAML's own: they only matter for text that those would write without quotes.
    _Dumper.add_implicit_resolver(f"{_TAG}{name}", re.compile(rf"(?:{pattern.pattern})\Z"), list("-+.0123456789"))


def parse(text: str, name: str, error: type[Exception] = ConfigError) -> Any:
    """Return the value of a YAML text.

    Args:
        text: the text.
        name: of the text, which begins the message of an error.
        error: class of the error that is raised if the text is not YAML.
    """
    return _load(text, name, _Loader, error)


def parse_stored(content: bytes, uri: str) -> Any:
    """Return the value of a YAML file that some version of this program wrote. Raises DamagedError."""
    return _load(content, uri, yaml.SafeLoader, DamagedError)


def _load(content: str | bytes, name: str, loader: type[yaml.SafeLoader], error: type[Exception]) -> Any:
    try:
        value = yaml.load(content, loader)
        _require_tree(value, set(), set())
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, RecursionError) as fault:
        # PyYAML raises all of them, for `!!bool x` and `!!timestamp x`, for example.
        reason = repr(fault) if isinstance(fault, LookupError | AttributeError | TypeError) else str(fault)
        raise error(f"{name} is not YAML: {' '.join(reason.split())}") from None
    return value


def _require_tree(value: Any, above: set[int], seen: set[int]) -> None:
    """Raise ValueError for a value that contains itself, or is nested too deeply."""
    if not isinstance(value, dict | list) or id(value) in seen:
        return
    if id(value) in above:
        raise ValueError("an anchor contains itself")
    if len(above) >= _DEEPEST:
        raise ValueError(f"it is nested more than {_DEEPEST} levels deep")
    for item in value.values() if isinstance(value, dict) else value:
        _require_tree(item, above | {id(value)}, seen)
    seen.add(id(value))


def dump(tree: Any) -> str:
    """Return a tree as YAML that versions 1.1 and 1.2 read alike."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False)
