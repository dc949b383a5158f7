"""LPIPS, FID and KID with backbones of random weights, against their definitions; and without weights."""

from __future__ import annotations

from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from torch import Tensor

from s2s_ray.config import EvaluationConfig
from s2s_ray.errors import WeightsError
from s2s_ray.evaluation import perceptual
from s2s_ray.evaluation.perceptual import (
    Perceptual,
)
from s2s_ray.geo.views import to_pixels

pytestmark = pytest.mark.slow  # torchvision and torchmetrics take seconds to import


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with random weights of the smallest backbones; PyTorch's cache is empty."""
    import torchvision.models as zoo

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    torch.manual_seed(0)
    folder = tmp_path / "weights"
    folder.mkdir()
    torch.save(zoo.resnet18().state_dict(), folder / "resnet18-f37072fd.pth")
    torch.save(zoo.squeezenet1_1().state_dict(), folder / "squeezenet1_1-b8a52dc0.pth")
    return folder


def images(seed: int, count: int = 12) -> Tensor:
    coarse = torch.rand(count, 3, 5, 9, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return torch.nn.functional.interpolate(coarse, (32, 72), mode="bilinear")


def test_fid_and_kid_are_those_of_the_definition(weights: Path) -> None:
    metric = Perceptual(EvaluationConfig(fid="resnet18", weights=str(weights)), 12, "cpu")
    fake, real = images(1), images(2) * 0.7
    for rows in (slice(0, 5), slice(5, 12)):
        metric.update(fake[rows], real[rows])
    found = metric.result()
    backbone = perceptual._backbone("resnet18", str(weights))
    with torch.no_grad():
        a, b = (backbone(to_pixels(view)).double().numpy() for view in (fake, real))
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    values, vectors = np.linalg.eigh(cov_a)
    half = vectors * np.sqrt(values.clip(0)) @ vectors.T
    root = np.sqrt(np.linalg.eigvalsh(half @ cov_b @ half).clip(0)).sum()
    fid = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a + cov_b) - 2 * root
    assert found["fid_resnet18"] == pytest.approx(fid, rel=1e-3)

    def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return (x @ y.T / x.shape[1] + 1) ** 3

    n = len(a)  # the subsets are everything here
    inner = sum((kernel(x, x).sum() - np.trace(kernel(x, x))) / (n * (n - 1)) for x in (a, b))
    assert found["kid_resnet18"] == pytest.approx(inner - 2 * kernel(a, b).mean(), rel=1e-3, abs=1e-6)


def test_lpips_of_copies_is_zero(weights: Path) -> None:
    metric = Perceptual(EvaluationConfig(lpips="squeeze", weights=str(weights)), 4, "cpu")
    metric.update(images(1, 4), images(1, 4))
    assert metric.result() == {"lpips_squeeze": 0.0}
    other = Perceptual(EvaluationConfig(lpips="squeeze"), 4, "cpu")  # the weights are in PyTorch's cache by now
    other.update(images(1, 4), images(2, 4))
    assert other.result()["lpips_squeeze"] > 0.01


def test_nothing_is_measured_by_default() -> None:
    metric = Perceptual(EvaluationConfig(), 4, "cpu")
    metric.update(images(1, 4), images(2, 4))
    assert metric.result() == {}


@pytest.mark.parametrize(("key", "backbone"), [("fid", "resnet34"), ("lpips", "alex")])
def test_unavailable_weights_are_named(weights: Path, monkeypatch: pytest.MonkeyPatch, key: str, backbone: str) -> None:
    with pytest.raises(WeightsError, match=r"evaluation.weights='.*' does not contain (resnet34|alexnet)-"):
        Perceptual(EvaluationConfig.model_validate({key: backbone, "weights": str(weights)}), 4, "cpu")

    def offline(*arguments: object, **options: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(WeightsError, match=rf"evaluation.{key}='{backbone}': the weights .* are not in .*cache"):
        Perceptual(EvaluationConfig.model_validate({key: backbone}), 4, "cpu")


def test_inception_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchmetrics.image.fid._TORCH_FIDELITY_AVAILABLE", False)
    with pytest.raises(WeightsError, match=r"needs torch-fidelity, which is not installed: pip install"):
        Perceptual(EvaluationConfig(fid="inception"), 4, "cpu")
