"""Checkpoints of the model: `model.safetensors` and `meta.json` in a published directory.

A checkpoint directory may hold the trainer's state too (`s2s_ray.training.checkpoints`); readers here never need it.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from s2s_ray import storage
from s2s_ray.errors import CheckpointError
from s2s_ray.model.checkpoint_meta import (
    FORMAT,
    META_FILE,
    MODEL_FILE,
    checked_meta,
    model_config,
)
from s2s_ray.model.s2s import S2S
from s2s_ray.version import code_version


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
        meta = json.loads((directory / META_FILE).read_text(encoding="utf-8"))
        config = model_config(checked_meta(meta, str(uri)), str(uri))
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
