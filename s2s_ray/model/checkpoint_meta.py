"""What a checkpoint says of itself in `meta.json`; read without PyTorch, which takes seconds to import."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from s2s_ray import storage
from s2s_ray.config import ModelConfig
from s2s_ray.errors import CheckpointError

FORMAT = 1
MODEL_FILE = "model.safetensors"
META_FILE = "meta.json"


def read_meta(uri: str | Path) -> dict[str, Any]:
    """`meta.json` of a checkpoint. Raises StorageError or CheckpointError."""
    tree = storage.read_json(storage.join(str(uri), META_FILE))
    return checked_meta(tree, str(uri))


def model_config(meta: dict[str, Any], uri: str) -> ModelConfig:
    """The model configuration that a checkpoint's `meta` carries."""
    try:
        return ModelConfig.model_validate(meta.get("model"))
    except ValidationError as error:
        raise CheckpointError(f"checkpoint {uri}: model configuration in {META_FILE} is not valid: {error}") from None


def check_fits(uri: str, found: ModelConfig, wanted: ModelConfig) -> None:
    """Refuse a checkpoint whose model differs from the configured one, naming each difference.

    How weights were first filled (`street_weights`) is not part of a model's shape.
    """
    theirs, ours = found.model_dump(exclude={"street_weights"}), wanted.model_dump(exclude={"street_weights"})
    differences = [
        f"model.{key} is {theirs[key]} there and {ours[key]} here" for key in ours if theirs[key] != ours[key]
    ]
    if differences:
        raise CheckpointError(f"checkpoint {uri} is of another model: {'; '.join(differences)}")


def checked_meta(tree: Any, uri: str) -> dict[str, Any]:
    """What was read from the `meta.json` of a checkpoint, if it is of the format read here. Raises CheckpointError."""
    if not isinstance(tree, dict) or tree.get("format") != FORMAT:
        found = tree.get("format") if isinstance(tree, dict) else type(tree).__name__
        raise CheckpointError(f"checkpoint {uri}: {META_FILE} has format {found!r}, this version reads {FORMAT}")
    return tree
