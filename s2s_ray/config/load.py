"""Reading a configuration: presets, files, stored files and overrides."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from s2s_ray.config import notation
from s2s_ray.config.keys import assign, find
from s2s_ray.config.tree import Config
from s2s_ray.errors import ConfigError
from s2s_ray.references import refuse_secret

_PRESETS = resources.files("s2s_ray.config") / "presets"


def preset_names() -> list[str]:
    """Return the names that `--config` accepts besides file names."""
    return sorted(entry.name.removesuffix(".yaml") for entry in _PRESETS.iterdir() if entry.name.endswith(".yaml"))


def load_config(config: str | Path = "paper", overrides: Iterable[str] = ()) -> Config:
    """Read a preset or a YAML file and apply `a.b=value` overrides in their order.

    A file may start from a preset with a top-level `preset: NAME`; its other keys are merged over it. Where a value is
    a string, an override is that string as typed (`train.name=007`); `~` and `null` stand for none where a string may
    be missing. Other values of overrides are YAML (`train.batch=16`, `model.street_blocks=[1,1,1]`).

    Raises:
        ConfigError: no such preset or file, not a mapping, an unknown key, a value that is not allowed.
    """
    return Config.from_tree(_overridden(_read(str(config)), overrides))


def with_overrides(config: Config, overrides: Iterable[str]) -> Config:
    """Apply `a.b=value` overrides, in their order, to a configuration that was read before.

    Raises:
        ConfigError: an unknown key, or a value that is not allowed.
    """
    overrides = list(overrides)
    for override in overrides:
        key, _, text = override.partition("=")
        refuse_secret(text, key)
    changed = Config.from_tree(_overridden(config.model_dump(mode="json"), overrides), stored=True)
    known = _faults(config)  # of an earlier version, which accepted them
    if added := [fault for fault in _faults(changed) if fault not in known]:
        raise ConfigError("\n".join(added))
    return changed


def _faults(config: Config) -> list[str]:
    """Return why a configuration may not be stored, one line for each fault."""
    try:
        Config.from_tree(config.model_dump())  # not as JSON, in which an infinite number is null
    except ConfigError as error:
        return str(error).splitlines()
    return []


def load_stored(content: bytes, uri: str) -> Config:
    """Parse a `config.yaml` that some version of this program wrote, see `Config.from_stored`.

    Args:
        content: the content of the file.
        uri: the file, for messages.

    Raises:
        DamagedError: it is not YAML.
        StateError: a newer version whose files this one cannot read wrote it.
        ConfigError: it is not a configuration.
    """
    return Config.from_stored(notation.parse_stored(content, uri), uri)


def _overridden(tree: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise ConfigError(f"--set {override!r}: expected a.b=value")
        place = find(Config, tree, key)
        assign(tree, place, place.parse(text, f"--set {override!r}: the value"), key)
    return tree


def _read(config: str) -> dict[str, Any]:
    text, name = _text(config)
    tree = notation.parse(text, name) or {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{name} holds {type(tree).__name__}, expected a mapping of sections")
    base = tree.pop("preset", None)
    if base is None:
        return tree
    if base not in preset_names():
        raise ConfigError(f"{name}: preset={base!r} is not one of {', '.join(preset_names())}")
    return _merge(_read(str(base)), tree)


def _text(config: str) -> tuple[str, str]:
    """Return the content of a preset or a file, and its name for messages."""
    if config in preset_names():
        return (_PRESETS / f"{config}.yaml").read_text(encoding="utf-8"), f"preset {config}"
    try:
        if Path(config).is_file():
            return Path(config).read_text(encoding="utf-8"), config
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a NUL in the name
        raise ConfigError(f"config {config!r} cannot be read: {error}") from None
    raise ConfigError(f"config {config!r} is neither a preset ({', '.join(preset_names())}) nor a file")


def _merge(base: dict[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    if "kind" in top and base.get("kind", "synthetic") != top["kind"]:
        return dict(top)  # a source of another kind shares no keys with the one it replaces
    for key, value in top.items():
        both = isinstance(value, Mapping) and isinstance(base.get(key), dict)
        base[key] = _merge(base[key], value) if both else value
    return base
