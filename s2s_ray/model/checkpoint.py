"""A checkpoint of the model: `model.safetensors` and `meta.json` in a published directory.

A checkpoint directory of a run also holds the trainer's state (`s2s_ray.training.checkpoint_store`), which is never
needed here.
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
from s2s_ray.model.checkpoint_meta import META_FILE, MODEL_FILE, CheckpointMeta, model_config, parse_meta
from s2s_ray.model.s2s import S2S
from s2s_ray.version import code_version


def save_model(model: S2S, meta: dict[str, Any], directory: Path) -> None:
    """Write a model and its `meta` into a local directory; `storage.publish` then makes it a checkpoint.

    `format`, `model` (its configuration) and `version` are added to the run, step and metrics in `meta`.
    """
    save_state(model.state_dict(), {**meta, "model": model.config.model_dump(mode="json")}, directory)


def save_state(state: dict[str, torch.Tensor], meta: dict[str, Any], directory: Path) -> None:
    """Write a state dict like `save_model`; `meta["model"]` is the model's configuration."""
    directory.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}, directory / MODEL_FILE)
    tree = {"format": CheckpointMeta.FORMAT, "version": code_version(), **meta}
    (directory / META_FILE).write_text(json.dumps(tree, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def load_checkpoint(uri: str | Path, device: str | torch.device = "cpu") -> S2S:
    """Return the model of a checkpoint, in evaluation mode. Its configuration is `.config`.

    Raises:
        StorageError: the checkpoint does not exist or is unfinished, or a file is damaged.
        CheckpointError: another format, or weights that do not fit the configuration in `meta.json`.
    """
    with tempfile.TemporaryDirectory() as folder:
        directory = storage.fetch(str(uri), Path(folder) / "checkpoint", only=(MODEL_FILE, META_FILE))
        meta = parse_meta(storage.read_json(str(directory / META_FILE)), str(uri))
        config = model_config(meta, str(uri))
        try:
            state = load_file(directory / MODEL_FILE)
        except SafetensorError as error:
            raise CheckpointError(f"checkpoint {uri}: {MODEL_FILE} is not a safetensors file ({error})") from None
    model = S2S(config)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())  # PyTorch writes a line for each key
        raise CheckpointError(f"checkpoint {uri}: its weights do not fit its configuration: {reason}") from None
    return model.to(device).eval()
