"""PSNR, SSIM and L1 against closed forms and a pixel-by-pixel numpy version of their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from s2s_ray.errors import DivergedError, InputError
from s2s_ray.evaluation.image_quality import ImageQuality, measure


def ssim_by_definition(x: np.ndarray, y: np.ndarray) -> float:
    """Wang et al. 2004 on one image C H W in [0, 1]: every window in turn, the image reflected at its border."""
    rows, columns = x.shape[1:]
    x, y = (np.pad(image, ((0, 0), (5, 5), (5, 5)), mode="reflect") for image in (x, y))
    axis = np.arange(11) - 5
    kernel = np.exp(-(axis[:, None] ** 2 + axis[None] ** 2) / (2 * 1.5**2))
    kernel /= kernel.sum()
    values = []
    for channel in range(x.shape[0]):
        for i in range(rows):
            for j in range(columns):
                a, b = x[channel, i : i + 11, j : j + 11], y[channel, i : i + 11, j : j + 11]
                ma, mb = (kernel * a).sum(), (kernel * b).sum()
                va, vb = (kernel * (a - ma) ** 2).sum(), (kernel * (b - mb) ** 2).sum()
                cov = (kernel * (a - ma) * (b - mb)).sum()
                luminance = (2 * ma * mb + 0.01**2) / (ma**2 + mb**2 + 0.01**2)
                values.append(luminance * (2 * cov + 0.03**2) / (va + vb + 0.03**2))
    return float(np.mean(values))


@pytest.fixture
def pair() -> tuple[Tensor, Tensor]:
    """Three pairs of 14 x 23 images in [-1, 1], from alike to unlike."""
    generator = torch.Generator().manual_seed(0)
    real = torch.rand(3, 3, 14, 23, generator=generator) * 2 - 1
    noise = torch.randn(3, 3, 14, 23, generator=generator) * torch.tensor([0.05, 0.3, 1.0])[:, None, None, None]
    return (real + noise).clamp(-1, 1), real


def test_each_image_equals_the_definitions(pair: tuple[Tensor, Tensor]) -> None:
    synthesised, real = pair
    values = measure(synthesised, real)
    for index, (fake, true) in enumerate(zip(synthesised.double().numpy(), real.double().numpy(), strict=True)):
        squares = [(a - b) ** 2 for a, b in zip(fake.flat, true.flat, strict=True)]
        psnr = 10 * math.log10(2.0**2 / (math.fsum(squares) / len(squares)))
        assert values["psnr"][index].item() == pytest.approx(psnr, abs=1e-4)
        assert values["l1"][index].item() == pytest.approx(np.abs(fake - true).mean(), abs=1e-6)
        ssim = ssim_by_definition((fake + 1) / 2, (true + 1) / 2)
        assert values["ssim"][index].item() == pytest.approx(ssim, abs=1e-6)
        apart = []
        for c in range(3):
            for i in range(1, 14):
                for j in range(1, 23):
                    steps = [
                        abs(image[c, i, j] - image[c, i - 1, j]) + abs(image[c, i, j] - image[c, i, j - 1])
                        for image in ((fake + 1) / 2, (true + 1) / 2)
                    ]
                    apart.append(abs(steps[0] - steps[1]))
        assert values["sharpness"][index].item() == pytest.approx(-10 * math.log10(np.mean(apart)), abs=1e-4)


def test_constant_images_have_closed_forms() -> None:
    """Two grey images 0.25 and 0.75 of [0, 1]: the error is 0.5, and only SSIM's luminance term is left."""
    dark, bright = torch.full((1, 3, 12, 16), -0.5), torch.full((1, 3, 12, 16), 0.5)
    values = {name: value.item() for name, value in measure(dark, bright).items()}
    assert values["l1"] == pytest.approx(1.0)
    assert values["psnr"] == pytest.approx(10 * math.log10(1 / 0.25), abs=1e-5)
    assert values["ssim"] == pytest.approx((2 * 0.25 * 0.75 + 1e-4) / (0.25**2 + 0.75**2 + 1e-4), abs=1e-9)


def test_an_exact_copy_is_finite(pair: tuple[Tensor, Tensor]) -> None:
    values = measure(pair[1], pair[1])
    assert values["l1"].tolist() == [0.0] * 3
    assert values["psnr"].tolist() == values["sharpness"].tolist() == [100.0] * 3
    assert values["ssim"].tolist() == pytest.approx([1.0] * 3)


def test_means_are_per_image_whatever_the_batches(pair: tuple[Tensor, Tensor]) -> None:
    synthesised, real = pair
    quality = ImageQuality()
    quality.update(synthesised[:1], real[:1])
    quality.update(synthesised[1:], real[1:])
    mean = quality.mean()
    assert mean.images == 3
    for name, values in measure(synthesised, real).items():
        assert mean.as_dict()[name] == pytest.approx(values.mean().item(), rel=1e-6)


def test_nothing_measured_and_nan_are_refused(pair: tuple[Tensor, Tensor]) -> None:
    quality = ImageQuality()
    with pytest.raises(InputError, match="the split is empty"):
        quality.mean()
    quality.update(pair[0] * math.nan, pair[1])
    with pytest.raises(DivergedError, match="the generator has diverged"):
        quality.mean()


class TestPartsThatAreSeen:
    def test_what_is_not_seen_has_no_influence(self, pair: tuple[Tensor, Tensor]) -> None:
        synthesised, real = pair
        seen = torch.zeros(3, 14, 23, dtype=torch.bool)
        seen[:, 3:11, 4:16] = True
        expected = measure(synthesised, real, seen)
        mask = seen[:, None].expand_as(real)
        for other in (-1.0, 0.7):
            found = measure(torch.where(mask, synthesised, other), torch.where(mask, real, -other), seen)
            for name, values in expected.items():
                torch.testing.assert_close(found[name], values)
        exact = measure(torch.where(mask, real, 0.9), torch.where(mask, real, -1.0), seen)
        assert exact["l1"].tolist() == [0.0] * 3
        assert exact["psnr"].tolist() == [100.0] * 3
        assert exact["ssim"].tolist() == pytest.approx([1.0] * 3)
        assert exact["sharpness"].tolist() == [100.0] * 3

    def test_each_image_equals_the_definitions(self, pair: tuple[Tensor, Tensor]) -> None:
        synthesised, real = pair
        seen = torch.zeros(3, 14, 23, dtype=torch.bool)
        seen[:, 3:11, 4:16] = True
        cut = (..., slice(3, 11), slice(4, 16))
        found, alone = measure(synthesised, real, seen), measure(synthesised[cut], real[cut])
        for name in ("l1", "psnr", "sharpness"):
            torch.testing.assert_close(found[name], alone[name], rtol=1e-4, atol=1e-5)

    def test_all_seen_is_the_whole_image(self, pair: tuple[Tensor, Tensor]) -> None:
        whole = measure(*pair)
        for name, values in measure(*pair, torch.ones(3, 14, 23, dtype=torch.bool)).items():
            torch.testing.assert_close(values, whole[name].to(values.dtype), rtol=1e-5, atol=1e-6)

    def test_nothing_seen_is_finite(self, pair: tuple[Tensor, Tensor]) -> None:
        for values in measure(*pair, torch.zeros(3, 14, 23, dtype=torch.bool)).values():
            assert values.isfinite().all()
