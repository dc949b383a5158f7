"""The quality of synthesised street views: L1, PSNR, SSIM and sharpness against the real ones, averaged over images."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from s2s_ray.errors import DivergedError, InputError
from s2s_ray.model.retrieval import visible

PSNR_CEILING = 100.0
"""Decibels of an exact copy, whose ratio would be infinite."""


@dataclass(frozen=True, slots=True)
class Quality:
    """Means over images: `l1` on the [-1, 1] scale of the loss, `psnr` and `sharpness` difference in dB, and `ssim`."""

    l1: float
    psnr: float
    ssim: float
    sharpness: float
    images: int

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


class ImageQuality:
    """A running mean over batches of image pairs, which need not be in memory together."""

    def __init__(self) -> None:
        self._images = 0
        self._totals: dict[str, float] = {}

    def update(self, synthesised: Tensor, real: Tensor, seen: Tensor | None = None) -> dict[str, Tensor]:
        """Add a batch: both B 3 H W in [-1, 1], more than 5 x 5 pixels (half the window of SSIM); seen as in `measure`.

        Returns: the values of each image, see `measure`.
        """
        measured = measure(synthesised, real, seen)
        for name, values in measured.items():
            self._totals[name] = self._totals.get(name, 0.0) + float(values.double().sum())
        self._images += len(real)
        return measured

    def mean(self) -> Quality:
        """Return the means over all images so far.

        Raises:
            InputError: no images.
            DivergedError: values that are not finite.
        """
        if not self._images:
            raise InputError("no images were measured: the split is empty")
        means = {name: total / self._images for name, total in self._totals.items()}
        if not all(torch.tensor(list(means.values())).isfinite()):
            raise DivergedError(f"synthesised images hold NaN or infinity ({means}): the generator has diverged")
        return Quality(images=self._images, **means)


@torch.inference_mode()
def measure(synthesised: Tensor, real: Tensor, seen: Tensor | None = None) -> dict[str, Tensor]:
    """Return the quality of each image, B numbers by name.

    - `l1` is the mean absolute difference on the [-1, 1] scale, the term of the loss.
    - `psnr`, at most `PSNR_CEILING`, is the same on either scale.
    - `ssim` is computed on [0, 1], as is usual, because it depends on the value of black. Its window is Gaussian,
      11 x 11 with sigma 1.5, on each colour channel; images are reflected at the border.
    - `sharpness` is the sharpness difference of Mathieu et al. (ICLR 2016) on [0, 1], in dB and at most `PSNR_CEILING`:
      10 log10 of one over the mean absolute difference between the two images' sums of absolute steps down and to the
      right.

    Args:
        synthesised, real: B 3 H W in [-1, 1].
        seen: what the real views show, bool B H W, the only pixels that count; both are alike elsewhere. None: all.
    """
    if seen is not None:
        return _measure_seen(visible(synthesised.float(), seen), visible(real.float(), seen), seen)
    from torchmetrics.functional.image import peak_signal_noise_ratio  # takes seconds, and training may not need it

    fake, true = synthesised.float(), real.float()
    ssim = [_ssim(*pair) for pair in zip(torch.split(fake, 8), torch.split(true, 8), strict=True)]
    psnr = peak_signal_noise_ratio(fake, true, data_range=2.0, reduction="none", dim=(1, 2, 3))
    return {
        "l1": (fake - true).abs().mean(dim=(1, 2, 3)),
        "psnr": psnr.clamp(max=PSNR_CEILING),
        "ssim": torch.cat(ssim),
        "sharpness": (-10 * _steps_apart(fake, true).log10()).clamp(max=PSNR_CEILING),
    }


def _measure_seen(fake: Tensor, true: Tensor, seen: Tensor) -> dict[str, Tensor]:
    """Return `measure` over the pixels that are seen, of images that are alike elsewhere."""
    square = _mean((fake - true).square(), seen)
    ssim = [_ssim_of_each_pixel(*pair) for pair in zip(torch.split(fake, 8), torch.split(true, 8), strict=True)]
    with_steps = torch.zeros_like(seen)
    with_steps[..., 1:, 1:] = seen[..., 1:, 1:] & seen[..., :-1, 1:] & seen[..., 1:, :-1]
    return {
        "l1": _mean((fake - true).abs(), seen),
        "psnr": (10 * (4 / square).log10()).clamp(max=PSNR_CEILING),
        "ssim": _mean(torch.cat(ssim), seen),
        "sharpness": (-10 * _mean(_steps(fake, true), with_steps[..., 1:, 1:]).log10()).clamp(max=PSNR_CEILING),
    }


def _mean(values: Tensor, seen: Tensor) -> Tensor:
    """Return the mean of B 3 H W over the pixels that are seen, B; 0 without any."""
    total = torch.where(seen[:, None], values, 0.0).sum(dim=(1, 2, 3))
    return total / (values.shape[1] * seen.sum(dim=(1, 2))).clamp(min=1)


def _steps_apart(fake: Tensor, true: Tensor) -> Tensor:
    """Return the mean absolute difference of the images' steps from pixel to pixel, on [0, 1]; B."""
    return _steps(fake, true).mean(dim=(1, 2, 3))


def _steps(fake: Tensor, true: Tensor) -> Tensor:
    """Return the absolute differences of the images' steps, on [0, 1], B 3 H-1 W-1."""
    sums = []
    for image in ((fake + 1) / 2, (true + 1) / 2):
        down = (image[..., 1:, 1:] - image[..., :-1, 1:]).abs()
        right = (image[..., 1:, 1:] - image[..., 1:, :-1]).abs()
        sums.append(down + right)
    return (sums[0] - sums[1]).abs()


def _ssim_of_each_pixel(fake: Tensor, true: Tensor) -> Tensor:
    from torchmetrics.functional.image import structural_similarity_index_measure

    found = structural_similarity_index_measure(
        (fake.double() + 1) / 2, (true.double() + 1) / 2, data_range=1.0, reduction="none", return_full_image=True
    )
    assert isinstance(found, tuple)
    return found[1]


def _ssim(fake: Tensor, true: Tensor) -> Tensor:
    from torchmetrics.functional.image import structural_similarity_index_measure

    # float64, because variances are differences of means: the error of float32 is 3e-4 on flat images
    unit_fake, unit_true = (fake.double() + 1) / 2, (true.double() + 1) / 2
    ssim = structural_similarity_index_measure(unit_fake, unit_true, data_range=1.0, reduction="none")
    assert isinstance(ssim, Tensor)
    return ssim.reshape(len(true))
