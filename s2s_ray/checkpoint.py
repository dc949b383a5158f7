"""Checkpoints of the model: `model.safetensors` and `meta.json` in a published directory.

A checkpoint directory may hold the trainer's state too (`s2s_ray.training.checkpoint`); readers here never need it.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from s2s_ray import storage
from s2s_ray.config import ModelConfig
from s2s_ray.model.s2s import S2S
from s2s_ray.version import code_version

FORMAT = 1
MODEL_FILE = "model.safetensors"
META_FILE = "meta.json"


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names it and what is wrong."""


def save_model(model: S2S, meta: dict[str, Any], directory: Path) -> None:
    """Write a model and its `meta` into a local directory; `storage.publish` then makes it a checkpoint.

    `format`, `model` (its configuration) and `version` are added to what `meta` says of run, step and metrics.
    """
    save_state(model.state_dict(), {**meta, "model": model.config.model_dump(mode="json")}, directory)


def save_state(state: dict[str, torch.Tensor], meta: dict[str, Any], directory: Path) -> None:
    """`save_model` of a state dict taken earlier; `meta["model"]` is the model's configuration."""
    directory.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}, directory / MODEL_FILE)
    tree = {"format": FORMAT, "version": code_version(), **meta}
    (directory / META_FILE).write_text(json.dumps(tree, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def load_checkpoint(uri: str | Path, device: str | torch.device = "cpu") -> S2S:
    """The model of a checkpoint, in evaluation mode. Its configuration is `.config`.

    Raises:
        StorageError: no checkpoint there, an unfinished one, or a file that fails its checksum.
        CheckpointError: another format, or weights that do not fit the configuration beside them.
    """
    with tempfile.TemporaryDirectory() as folder:
        directory = storage.fetch(str(uri), Path(folder) / "checkpoint", only=(MODEL_FILE, META_FILE))
        config = model_config(_read_meta_file(directory / META_FILE, str(uri)), str(uri))
        try:
            state = load_file(directory / MODEL_FILE)
        except SafetensorError as error:
            raise CheckpointError(f"checkpoint {uri}: {MODEL_FILE} is not a safetensors file ({error})") from None
    model = S2S(config)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(f"checkpoint {uri}: its weights do not fit its configuration: {error}") from None
    return model.to(device).eval()


def read_meta(uri: str | Path) -> dict[str, Any]:
    """`meta.json` of a checkpoint. Raises StorageError or CheckpointError."""
    tree = storage.read_json(storage.join(str(uri), META_FILE))
    return _checked(tree, str(uri))


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


def _read_meta_file(path: Path, uri: str) -> dict[str, Any]:
    return _checked(json.loads(path.read_text(encoding="utf-8")), uri)


def _checked(tree: Any, uri: str) -> dict[str, Any]:
    if not isinstance(tree, dict) or tree.get("format") != FORMAT:
        found = tree.get("format") if isinstance(tree, dict) else type(tree).__name__
        raise CheckpointError(f"checkpoint {uri}: {META_FILE} has format {found!r}, this version reads {FORMAT}")
    return tree
