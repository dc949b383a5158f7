"""The authors' own numbers: forward passes and three training cycles from weights that anyone can make again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from s2s_ray import cli
from s2s_ray.config import LossConfig, TrainConfig
from s2s_ray.geo.polar import polar_transform
from s2s_ray.inference import Embedder
from s2s_ray.model.released import read_released
from s2s_ray.model.s2s import S2S
from s2s_ray.training.step import LOSS_NAMES, TrainingStep

# Three cycles at full size: a minute on two idle cores.
pytestmark = [pytest.mark.integration, pytest.mark.shared, pytest.mark.timeout(900)]

SALT = 1234
GRADIENT_NORMS = {"grad_norm_D": "discriminator", "grad_norm_R": "retrieval", "grad_norm_G": "generator"}
FORWARDS = ("fake", "features", "sat_embedding", "street_embedding", "d")


@pytest.fixture(scope="module")
def released(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file in the layout of the authors' checkpoints with seeded weights."""
    path = tmp_path_factory.mktemp("released") / "released.pth"
    script = shared / "conformance" / "released_checkpoint.py"
    subprocess.run([sys.executable, str(script), "make", str(SALT), str(path)], check=True)
    return path


@pytest.fixture(scope="module")
def model(released: Path) -> S2S:
    """The authors' networks with seeded weights, in evaluation mode; the cycles train it."""
    model, unused = read_released(released)
    assert unused == []
    return model


@pytest.fixture(scope="module")
def forwards(model: S2S) -> dict[str, Tensor]:
    """Outputs on the seeded pair of images, before any training."""
    random = np.random.RandomState(SALT + 7)
    satellite, street = (uniform(random, 2) for _ in range(2))
    with torch.inference_mode():
        return {
            "fake": model.synthesize(satellite),
            "features": model.generator.encoder(satellite).features,
            "sat_embedding": model.embed_satellite(satellite),
            "street_embedding": model.embed_street(street),
            "d": model.discriminator(torch.cat([satellite, street], 1)),
        }


@pytest.fixture(scope="module")
def cycles(model: S2S, forwards: dict[str, Tensor]) -> list[dict[str, float]]:
    """Losses and gradient norms of three cycles. After `forwards`, which the training would change."""
    return list(run_cycles(model))


def run_cycles(model: S2S) -> Iterator[dict[str, float]]:
    cycle = TrainingStep(model, LossConfig(), TrainConfig())
    random = np.random.RandomState(SALT + 11)
    for _ in range(3):
        satellite, street = (uniform(random, 4) for _ in range(2))
        losses = cycle(satellite, street)
        norms = {}
        for name, network in GRADIENT_NORMS.items():
            gradients = [
                p.grad.double().norm() for p in model.get_submodule(network).parameters() if p.grad is not None
            ]
            norms[name] = torch.stack(gradients).norm().item()
        yield {**losses, **norms}


def uniform(random: np.random.RandomState, pairs: int) -> Tensor:
    return torch.tensor(random.uniform(-1, 1, (pairs, 3, 112, 616)), dtype=torch.float32)


def gold(shared: Path, name: str) -> Any:
    return json.loads((shared / "conformance" / f"released_{name}_{SALT}.json").read_text())


@pytest.mark.parametrize("output", FORWARDS)
def test_forward_passes(shared: Path, forwards: dict[str, Tensor], output: str) -> None:
    expected = np.array(gold(shared, "golden")[output])
    values = forwards[output].reshape(-1).numpy()
    picked = values[np.random.RandomState(1).randint(0, values.size, len(expected))]
    assert len(expected) == 64
    assert np.abs(picked - expected).max() < 1e-4 * np.abs(expected).max()


def test_whole_outputs(shared: Path, forwards: dict[str, Tensor]) -> None:
    expected = gold(shared, "golden")
    assert forwards["fake"].std().item() == pytest.approx(expected["fake_std"], rel=1e-4)
    assert list(forwards["d"].shape) == expected["d_shape"]


@pytest.mark.parametrize("name", [*LOSS_NAMES, *GRADIENT_NORMS])
def test_the_first_cycle(shared: Path, cycles: list[dict[str, float]], name: str) -> None:
    """gan already sees the updated D, and ret_weighted the updated R: a wrong order shows."""
    assert cycles[0][name] == pytest.approx(gold(shared, "cycle")["cycles"][0][name], rel=1e-4)


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("name", [*LOSS_NAMES, *GRADIENT_NORMS])
def test_later_cycles(shared: Path, cycles: list[dict[str, float]], number: int, name: str) -> None:
    """Adam's first steps amplify rounding, so these are held to a percent."""
    assert cycles[number][name] == pytest.approx(gold(shared, "cycle")["cycles"][number][name], rel=0.01)


def test_every_recorded_number_is_compared(shared: Path) -> None:
    recorded = gold(shared, "cycle")
    assert [set(cycle) for cycle in recorded["cycles"]] == [{*LOSS_NAMES, *GRADIENT_NORMS}] * 3
    assert set(gold(shared, "golden")) == {"salt", "fake_std", "d_shape", *FORWARDS}


def test_the_polar_transform(shared: Path) -> None:
    expected = np.array(gold(shared, "cycle")["polar"]["values"])
    tile = np.random.RandomState(SALT + 13).randint(0, 256, (256, 256, 3)).astype(np.uint8)
    polar = polar_transform(torch.tensor(tile).permute(2, 0, 1).double(), 112, 616)
    values = polar.permute(1, 2, 0).reshape(-1).numpy()
    picked = values[np.random.RandomState(1).randint(0, values.size, len(expected))]
    assert np.abs(picked - expected).max() < 1e-6


@pytest.mark.parametrize(("prefix", "zipped"), [("module.", False), ("", True)])
def test_the_import_verb(
    shared: Path, released: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], prefix: str, zipped: bool
) -> None:
    """The authors' files are in the legacy serialisation, their keys begin with `module.`."""
    tree = torch.load(released, weights_only=True)
    for section in ("generator_model_dict", "discriminator_model_dict", "retriebal_model_dict"):
        tree[section] = {prefix + key.removeprefix("module."): tensor for key, tensor in tree[section].items()}
    tree["generator_model_dict"][f"{prefix}begin_conv.extra"] = torch.zeros(1)
    torch.save(tree, tmp_path / "file.pth", _use_new_zipfile_serialization=zipped)
    verb = ["checkpoint", "import", str(tmp_path / "file.pth"), "--out", str(tmp_path / "checkpoint")]
    with pytest.raises(SystemExit, match="2"):
        cli.main([*verb, "--strict"])
    assert "keys without a place: generator_model_dict.begin_conv.extra" in capsys.readouterr().err
    assert not (tmp_path / "checkpoint").exists()
    with pytest.raises(SystemExit, match="0"):
        cli.main([*verb, "--trained-on", "cvact"])
    assert "not used: generator_model_dict.begin_conv.extra" in capsys.readouterr().out
    script = shared / "conformance" / "released_checkpoint.py"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run(
        [sys.executable, str(script), "check", str(SALT), str(tmp_path / "checkpoint")], check=True, env=environment
    )
    embedder = Embedder.load(str(tmp_path / "checkpoint"))
    assert embedder.geometry.polar_contrast == "stretch"
    assert embedder.geometry.panorama_rows == (0.25, 0.75)
