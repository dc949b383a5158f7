"""The authors' published checkpoints: their names and layout, mapped to ours.

Such a file is a pickle (`torch.save` of a dict, PyTorch 1.5) and is only ever read with `weights_only`.
Layout: docs/model.md, "Released checkpoints".
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from s2s_ray.config import ModelConfig
from s2s_ray.errors import WeightsError
from s2s_ray.model.s2s import S2S

SECTIONS = {
    "generator_model_dict": "generator",
    "discriminator_model_dict": "discriminator",
    "retriebal_model_dict": "retrieval",
}

DAMAGED_PICKLE = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
)
"""Errors that `torch.load` raises for a damaged file."""

_SPECTRAL = {"weight_orig": "weight"}
_DOWN = {"conv_r1.conv2d": "conv1", "conv_r2.conv2d": "conv2", "conv_l.conv2d": "skip"}
_UP = {"norm_r1": "norm1", "norm_r2": "norm2", **_DOWN}
_RESIDUAL = {"conv1.conv2d": "conv1", "in1": "norm1", "conv2.conv2d": "conv2", "in2": "norm2"}
_NON_LOCAL = {"theta": "query", "phi": "key", "g": "value", "o": "output", "gamma": "gamma"}
_ATTENTION = {"sa1": "satellite_attention", "sa2": "street_attention"}
_STREET = {"0": "conv1", "1": "bn1", "3": "layer1", "4": "layer2", "5": "layer3"}


def _generator_modules() -> dict[str, str]:
    modules = {"begin_conv": "encoder.stem", "begini_e": "encoder.stem_norm", "conv_end.0": "decoder.head"}
    for n in (1, 2, 3):
        modules |= {f"conv{n}.{theirs}": f"encoder.down{n}.{ours}" for theirs, ours in _DOWN.items()}
        modules |= {f"deconv{n}.{theirs}": f"decoder.up{n}.{ours}" for theirs, ours in _UP.items()}
        modules |= {f"in{n}_e": f"encoder.down{n}_norm", f"in{n}_d": f"decoder.up{n}_norm"}
    for n in range(6):
        modules |= {f"res{n + 1}.{theirs}": f"encoder.bottleneck.{n}.{ours}" for theirs, ours in _RESIDUAL.items()}
    return modules | {f"attention2.{theirs}": f"decoder.attention.{ours}" for theirs, ours in _NON_LOCAL.items()}


def _discriminator_modules() -> dict[str, str]:
    convs = {
        "model.0": "conv1",
        "model.2": "conv2",
        "model.5": "conv3",
        "model.7": "conv4",
        "model.9": "conv5",
    }
    return convs | {f"model.4.{theirs}": f"attention.{ours}" for theirs, ours in _NON_LOCAL.items()}


def read_released(path: str | Path) -> tuple[S2S, list[str]]:
    """Return a model in evaluation mode with the weights of one of the authors' files, and the unused keys.

    The discriminator is the released variant. Keys may have the prefix `module.`. Unknown keys of the generator are
    ignored and listed, as with the authors' `strict=False`.

    Raises:
        WeightsError: not such a file, anything but tensors and plain values in the pickle, a missing key, or the shapes
            of another resolution or width.
    """
    try:
        tree = torch.load(path, map_location="cpu", weights_only=True)
    except DAMAGED_PICKLE as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise WeightsError(f"{path} is not a checkpoint of plain tensors: {reason}") from None
    missing = [section for section in SECTIONS if not isinstance(tree, dict) or section not in tree]
    if missing:
        raise WeightsError(f"{path} is not one of the authors' checkpoints: it has no {', '.join(missing)}")
    if wrong := [section for section in SECTIONS if not _is_state(tree[section])]:
        raise WeightsError(f"{path}: {', '.join(wrong)}: expected tensors by name")
    model = S2S(ModelConfig(discriminator_variant="released"))
    unused: list[str] = []
    for section, network in SECTIONS.items():
        state = {key.removeprefix("module."): tensor for key, tensor in tree[section].items()}
        ours, extra = _rename(network, state, model.get_submodule(network).state_dict())
        if network != "generator" and extra:
            raise WeightsError(f"{path}: unexpected keys in {section}: {', '.join(extra)}")
        _fill(model.get_submodule(network), ours, f"{path}: {section}")
        unused += [f"{section}.{key}" for key in extra]
    return model.eval(), unused


def _is_state(tree: object) -> bool:
    return isinstance(tree, dict) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in tree.items())


def _rename(network: str, state: dict[str, Tensor], known: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Return the state of one network under our names, and the keys that have none."""
    renamed, extra = {}, []
    for key, tensor in state.items():
        name = _street_name(key) if network == "retrieval" else _module_name(network, key)
        if name is None or name not in known:
            extra.append(key)
        else:
            renamed[name] = tensor
    return renamed, extra


def _module_name(network: str, key: str) -> str | None:
    modules = _generator_modules() if network == "generator" else _discriminator_modules()
    if key in modules:  # gamma is a parameter, not a module
        return modules[key]
    module, _, leaf = key.rpartition(".")
    return f"{modules[module]}.{_SPECTRAL.get(leaf, leaf)}" if module in modules else None


def _street_name(key: str) -> str | None:
    if found := re.fullmatch(r"extract2\.layers\.(\d)\.(.+)", key):
        return f"street_encoder.{_STREET[found[1]]}.{found[2]}" if found[1] in _STREET else None
    module, _, leaf = key.partition(".")
    return f"{_ATTENTION[module]}.{leaf}" if module in _ATTENTION else None


def _fill(network: nn.Module, state: dict[str, Tensor], where: str) -> None:
    own = network.state_dict()
    if missing := sorted(set(own) - set(state)):
        raise WeightsError(f"{where} lacks the keys that this project names {', '.join(missing)}")
    wrong = [
        f"{name} is {tuple(tensor.shape)}, expected {tuple(own[name].shape)}"
        for name, tensor in state.items()
        if name in own and tensor.shape != own[name].shape
    ]
    if wrong:
        raise WeightsError(f"{where} has another resolution or width: {'; '.join(wrong)}")
    network.load_state_dict(state, strict=False)
