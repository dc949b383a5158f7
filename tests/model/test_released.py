"""Files in the layout of the authors' checkpoints: every name, both serialisations, and refusals."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from s2s_ray.config import ModelConfig
from s2s_ray.errors import WeightsError
from s2s_ray.model import released
from s2s_ray.model.released import (
    read_released,
)
from s2s_ray.model.s2s import S2S
from tests.conformance.seeded_checkpoint import layout

NARROW = {"height": 32, "width": 40, "channels": 4, "discriminator_channels": 4, "masks": 2}
SECTIONS = {
    "generator_model_dict": "generator",
    "discriminator_model_dict": "discriminator",
    "retriebal_model_dict": "retrieval",
}
NON_LOCAL = {"theta": "query", "phi": "key", "g": "value", "o": "output"}


def authors_modules() -> dict[str, dict[str, str]]:
    """Return the authors' names of the modules of each section (docs/model.md), and ours."""
    generator = {"begin_conv": "encoder.stem", "begini_e": "encoder.stem_norm", "conv_end.0": "decoder.head"}
    for n in "123":
        for theirs, down, up in (("conv", "encoder.down", "_e"), ("deconv", "decoder.up", "_d")):
            generator[f"{theirs}{n}.conv_r1.conv2d"] = f"{down}{n}.conv1"
            generator[f"{theirs}{n}.conv_r2.conv2d"] = f"{down}{n}.conv2"
            generator[f"{theirs}{n}.conv_l.conv2d"] = f"{down}{n}.skip"
            generator[f"in{n}{up}"] = f"{down}{n}_norm"
        generator[f"deconv{n}.norm_r1"] = f"decoder.up{n}.norm1"
        generator[f"deconv{n}.norm_r2"] = f"decoder.up{n}.norm2"
    for n in range(6):
        for m in "12":
            generator[f"res{n + 1}.conv{m}.conv2d"] = f"encoder.bottleneck.{n}.conv{m}"
            generator[f"res{n + 1}.in{m}"] = f"encoder.bottleneck.{n}.norm{m}"
    generator |= {f"attention2.{theirs}": f"decoder.attention.{ours}" for theirs, ours in NON_LOCAL.items()}
    discriminator = {f"model.{n}": f"conv{i}" for i, n in enumerate((0, 2, 5, 7, 9), start=1)}
    discriminator |= {f"model.4.{theirs}": f"attention.{ours}" for theirs, ours in NON_LOCAL.items()}
    retrieval = {"sa1": "satellite_attention", "sa2": "street_attention"}
    children = enumerate(("conv1", "bn1", "relu", "layer1", "layer2", "layer3"))
    retrieval |= {f"extract2.layers.{n}": f"street_encoder.{child}" for n, child in children}
    return {"generator": generator, "discriminator": discriminator, "retrieval": retrieval}


def authors_key(network: str, name: str) -> str:
    """Return the authors' name of one of our tensors."""
    attention = {"generator": ("attention2", "decoder.attention"), "discriminator": ("model.4", "attention")}
    if name.endswith("gamma"):
        return name.replace(*reversed(attention[network]))
    for theirs, ours in authors_modules()[network].items():
        if name.startswith(ours + "."):
            leaf = name.removeprefix(ours + ".")
            return f"{theirs}.{leaf}"
    raise KeyError(name)


def in_authors_layout(model: S2S, prefix: str = "module.") -> dict[str, Any]:
    """Return the file of the authors' script for this model; old-style spectral norm stores weight as weight_orig."""
    tree: dict[str, Any] = {"last_epoch": 3, "best_acc": 50.0}
    tree |= {f"optimizer_{letter}_dict": {} for letter in "GDR"}
    for section, network in SECTIONS.items():
        state = model.get_submodule(network).state_dict()
        tree[section] = {}
        for name, tensor in state.items():
            key = authors_key(network, name)
            spectral = name.endswith(".weight") and f"{name}_u" in state
            tree[section][prefix + key + ("_orig" if spectral else "")] = tensor.clone()
    return tree


def key_of(network: str, name: str, tree: dict[str, Any]) -> tuple[str, str]:
    section = next(section for section, known in SECTIONS.items() if known == network)
    key = f"module.{authors_key(network, name)}"
    return section, key if key in tree[section] else f"{key}_orig"


@pytest.fixture(autouse=True)
def _narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of a narrow model of the same structure: the real ones take 150 MB."""
    monkeypatch.setattr(released, "ModelConfig", partial(ModelConfig, **NARROW))


@pytest.fixture
def model() -> S2S:
    torch.manual_seed(0)
    model = S2S(ModelConfig(**NARROW, discriminator_variant="released"))
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.normal_()
    return model


def save(tree: object, path: Path, **options: Any) -> Path:
    torch.save(tree, path, **options)
    return path


def assert_read(path: Path, model: S2S) -> None:
    found, unused = read_released(path)
    assert unused == []
    assert not found.training
    assert found.config.discriminator_variant == "released"
    state: dict[str, Tensor] = found.state_dict()
    assert set(state) == set(model.state_dict())
    assert [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, state[name])] == []


def test_the_layout_is_that_of_the_authors() -> None:
    """Every name of the authors' files, and every shape at full width and resolution."""
    tree = in_authors_layout(S2S(ModelConfig(discriminator_variant="released")), prefix="")
    found = {section: {key: list(tensor.shape) for key, tensor in tree[section].items()} for section in SECTIONS}
    assert found == layout()


@pytest.mark.parametrize("prefix", ["module.", ""])
@pytest.mark.parametrize("new_format", [True, False])
def test_every_tensor_of_a_file_is_read(model: S2S, tmp_path: Path, prefix: str, new_format: bool) -> None:
    path = tmp_path / "released.pth"
    save(in_authors_layout(model, prefix), path, _use_new_zipfile_serialization=new_format)
    assert_read(path, model)


@pytest.mark.parametrize(
    ("network", "name"),
    [
        ("generator", "encoder.bottleneck.5.conv2.weight"),
        ("generator", "decoder.attention.gamma"),
        ("discriminator", "conv3.weight_u"),
        ("retrieval", "street_encoder.layer3.0.bn1.running_var"),
        ("retrieval", "street_attention.b2"),
    ],
)
def test_a_missing_key_is_named(model: S2S, tmp_path: Path, network: str, name: str) -> None:
    tree = in_authors_layout(model)
    section, key = key_of(network, name, tree)
    del tree[section][key]
    path = save(tree, tmp_path / "released.pth")
    with pytest.raises(WeightsError) as error:
        read_released(path)
    assert [part for part in (str(path), section, name) if part not in str(error.value)] == []


@pytest.mark.parametrize(
    ("network", "name"), [("retrieval", "satellite_attention.w1"), ("generator", "encoder.stem.weight")]
)
def test_another_shape_is_named(model: S2S, tmp_path: Path, network: str, name: str) -> None:
    tree = in_authors_layout(model)
    section, key = key_of(network, name, tree)
    shape = tuple(tree[section][key].shape)
    tree[section][key] = torch.zeros(shape[0] + 1, *shape[1:])
    with pytest.raises(WeightsError) as error:
        read_released(save(tree, tmp_path / "released.pth"))
    message = str(error.value)
    assert [part for part in (section, name, str(shape), str((shape[0] + 1, *shape[1:]))) if part not in message] == []


def test_unknown_keys_of_the_generator_are_listed(model: S2S, tmp_path: Path) -> None:
    tree = in_authors_layout(model)
    extra = ["attention1.theta.weight_orig", "res7.in1.weight", "begin_conv.scale"]
    tree["generator_model_dict"] |= {f"module.{key}": torch.zeros(1) for key in extra}
    found, unused = read_released(save(tree, tmp_path / "released.pth"))
    assert sorted(unused) == sorted(f"generator_model_dict.{key}" for key in extra)
    weight = model.generator.encoder.stem.weight
    assert torch.equal(found.generator.encoder.stem.weight, weight)


@pytest.mark.parametrize(
    ("section", "key"),
    [
        ("retriebal_model_dict", "extract1.layers.0.weight"),
        ("retriebal_model_dict", "sa1.w3"),
        ("discriminator_model_dict", "model.11.weight"),
        ("discriminator_model_dict", "model.0.weight_u"),  # the paper's discriminator has one
    ],
)
def test_unknown_keys_of_other_networks_are_refused(model: S2S, tmp_path: Path, section: str, key: str) -> None:
    tree = in_authors_layout(model)
    tree[section][f"module.{key}"] = torch.zeros(1)
    with pytest.raises(WeightsError, match=section) as error:
        read_released(save(tree, tmp_path / "released.pth"))
    assert key in str(error.value)


@pytest.mark.parametrize("missing", [*SECTIONS, None])
def test_another_dictionary_is_refused(model: S2S, tmp_path: Path, missing: str | None) -> None:
    tree: Any = in_authors_layout(model)
    if missing is None:
        tree = [1, 2]
    else:
        del tree[missing]
    path = save(tree, tmp_path / "released.pth")
    with pytest.raises(WeightsError, match=missing or "generator_model_dict") as error:
        read_released(path)
    assert str(path) in str(error.value)


class RunsCode:
    """An object that pickles into a call that creates a directory."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("new_format", [True, False])
def test_a_pickle_that_runs_code_is_refused(model: S2S, tmp_path: Path, new_format: bool) -> None:
    tree = {**in_authors_layout(model), "args": RunsCode(tmp_path / "made")}
    path = save(tree, tmp_path / "released.pth", _use_new_zipfile_serialization=new_format)
    with pytest.raises(WeightsError) as error:
        read_released(path)
    assert str(path) in str(error.value)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    "content", [b"", b"not a checkpoint", b"PK\x03\x04 nor this", bytes(range(256)), b"\x80\x02}q\x00"]
)
def test_another_kind_of_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "released.pth"
    path.write_bytes(content)
    with pytest.raises(WeightsError) as error:
        read_released(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("new_format", [True, False])
def test_a_truncated_file_is_named(model: S2S, tmp_path: Path, new_format: bool) -> None:
    path = save(in_authors_layout(model), tmp_path / "whole.pth", _use_new_zipfile_serialization=new_format)
    torn = tmp_path / "torn.pth"
    torn.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(WeightsError) as error:
        read_released(torn)
    assert str(torn) in str(error.value)


@pytest.mark.parametrize("section", SECTIONS)
def test_sections_that_are_not_tensors_by_name_are_refused(model: S2S, tmp_path: Path, section: str) -> None:
    for wrong in ([1], {"module.a": 1.0}, {3: torch.zeros(1)}):
        tree = {**in_authors_layout(model), section: wrong}
        with pytest.raises(WeightsError, match=f"{section}: expected tensors by name"):
            read_released(save(tree, tmp_path / "released.pth"))
