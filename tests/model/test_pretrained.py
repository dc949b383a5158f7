"""Starting weights of the street encoder: supported files and refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from s2s_ray.config import ModelConfig
from s2s_ray.errors import NotFoundError, WeightsError
from s2s_ray.model.pretrained import initialise_street_encoder
from s2s_ray.model.retrieval import StreetEncoder

SMALL = ModelConfig(height=32, width=40, channels=4, street_blocks=(1, 1, 1))


def encoder(seed: int) -> StreetEncoder:
    torch.manual_seed(seed)
    return StreetEncoder(SMALL)


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth"])
def test_a_state_dict_fills_the_encoder(tmp_path: Path, name: str) -> None:
    state = {**encoder(1).state_dict(), "fc.weight": torch.zeros(2)}
    save: Any = save_file if name.endswith("safetensors") else torch.save
    save(state, tmp_path / name)
    filled = encoder(2)
    initialise_street_encoder(filled, str(tmp_path / name))
    for key, tensor in filled.state_dict().items():
        assert torch.equal(tensor, state[key]), key


def test_random_weights_stay() -> None:
    kept = encoder(1)
    initialise_street_encoder(kept, "random")
    assert torch.equal(kept.conv1.weight, encoder(1).conv1.weight)


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth"])
@pytest.mark.parametrize("content", [b"", b"not weights", bytes(range(256))])
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match="is not a state dict of plain tensors"):
        initialise_street_encoder(encoder(1), str(tmp_path / name))


@pytest.mark.parametrize("tree", [[1, 2], torch.zeros(3), {"conv1.weight": 1.0}])
def test_other_content_is_refused(tmp_path: Path, tree: object) -> None:
    torch.save(tree, tmp_path / "weights.pth")
    with pytest.raises(WeightsError, match="is not a state dict of plain tensors"):
        initialise_street_encoder(encoder(1), str(tmp_path / "weights.pth"))


def test_a_state_dict_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    uri = str(tmp_path / "weights.pth")
    state = dict(encoder(1).state_dict())
    torch.save({**state, "conv1.weight": torch.zeros(1, 2)}, uri)
    with pytest.raises(WeightsError, match=r"conv1\.weight is \[1, 2\], expected \[8, 3, 7, 7\]"):
        initialise_street_encoder(encoder(1), uri)
    del state["layer2.0.conv1.weight"]
    torch.save(state, uri)
    with pytest.raises(WeightsError, match=r"is not a ResNet34: it lacks layer2\.0\.conv1\.weight"):
        initialise_street_encoder(encoder(1), uri)
    with pytest.raises(NotFoundError):
        initialise_street_encoder(encoder(1), str(tmp_path / "nothing"))
