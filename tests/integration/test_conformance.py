"""The authors' own numbers (`tests/conformance`): forward passes and three training cycles from seeded weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from s2s_ray import cli
from s2s_ray.config import LossConfig, TrainConfig
from s2s_ray.inference import Embedder
from s2s_ray.model.checkpoint import load_checkpoint
from s2s_ray.model.released import read_released
from s2s_ray.model.s2s import S2S
from s2s_ray.training.step import LOSS_NAMES, TrainingStep
from tests.conformance.seeded_checkpoint import SEED, expected, picked, write_checkpoint

# Three cycles at full size: a minute on two idle cores.
pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

GRADIENT_NORMS = {"grad_norm_D": "discriminator", "grad_norm_R": "retrieval", "grad_norm_G": "generator"}
FORWARDS = ("fake", "features", "sat_embedding", "street_embedding", "d")


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file in the layout of the authors' checkpoints with seeded weights."""
    path = tmp_path_factory.mktemp("released") / "released.pth"
    write_checkpoint(path)
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
    return outputs(model)


def outputs(model: S2S) -> dict[str, Tensor]:
    random = np.random.RandomState(SEED + 7)
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
    random = np.random.RandomState(SEED + 11)
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


@pytest.mark.parametrize("output", FORWARDS)
def test_forward_passes(forwards: dict[str, Tensor], output: str) -> None:
    assert_as_recorded(forwards, output)


def assert_as_recorded(found: dict[str, Tensor], output: str) -> None:
    recorded = np.array(expected("outputs")[output])
    assert len(recorded) == 64
    assert np.abs(picked(found[output], 64) - recorded).max() < 1e-4 * np.abs(recorded).max()


def test_whole_outputs(forwards: dict[str, Tensor]) -> None:
    recorded = expected("outputs")
    assert forwards["fake"].std().item() == pytest.approx(recorded["fake_std"], rel=1e-4)
    assert list(forwards["d"].shape) == recorded["d_shape"]


@pytest.mark.parametrize("name", [*LOSS_NAMES, *GRADIENT_NORMS])
def test_the_first_cycle(cycles: list[dict[str, float]], name: str) -> None:
    """gan already sees the updated D, and ret_weighted the updated R: a wrong order shows."""
    assert cycles[0][name] == pytest.approx(expected("cycles")["cycles"][0][name], rel=1e-4)


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("name", [*LOSS_NAMES, *GRADIENT_NORMS])
def test_later_cycles(cycles: list[dict[str, float]], number: int, name: str) -> None:
    """Adam's first steps amplify rounding, so these are held to a percent."""
    assert cycles[number][name] == pytest.approx(expected("cycles")["cycles"][number][name], rel=0.01)


def test_every_recorded_number_is_compared() -> None:
    recorded = expected("cycles")
    assert [set(cycle) for cycle in recorded["cycles"]] == [{*LOSS_NAMES, *GRADIENT_NORMS}] * 3
    assert set(expected("outputs")) == {"salt", "fake_std", "d_shape", *FORWARDS}


@pytest.mark.parametrize(("prefix", "zipped"), [("module.", False), ("", True)])
def test_the_import_verb(
    released: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], prefix: str, zipped: bool
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
    assert "keys that the model does not use: generator_model_dict.begin_conv.extra" in capsys.readouterr().err
    assert not (tmp_path / "checkpoint").exists()
    with pytest.raises(SystemExit, match="0"):
        cli.main([*verb, "--trained-on", "cvact"])
    assert "unused keys: generator_model_dict.begin_conv.extra" in capsys.readouterr().out
    found = outputs(load_checkpoint(tmp_path / "checkpoint"))
    for output in FORWARDS:
        assert_as_recorded(found, output)
    embedder = Embedder.load(str(tmp_path / "checkpoint"))
    assert embedder.geometry.polar_contrast == "stretch"
    assert embedder.geometry.panorama_rows == (0.25, 0.75)
