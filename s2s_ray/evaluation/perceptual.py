"""LPIPS, FID and KID of synthesised street views, with pretrained backbones through torchmetrics.

All compare whole views at the model's resolution: nothing is cropped, and a backbone resizes its input itself (FID and
KID: bilinear, to 299 x 299 for inception and to 224 x 224 for the ResNets).
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s2s_ray import storage
from s2s_ray.config import EvaluationConfig
from s2s_ray.errors import NotFoundError, WeightsError
from s2s_ray.geo.views import to_pixels

_LPIPS_FILES = {
    "alex": "alexnet-owt-7be5be79.pth",
    "vgg": "vgg16-397923af.pth",
    "squeeze": "squeezenet1_1-b8a52dc0.pth",
}
_FID_FILES = {
    "inception": "weights-inception-2015-12-05-6726825d.pth",
    "resnet18": "resnet18-f37072fd.pth",
    "resnet34": "resnet34-b627a593.pth",
    "resnet50": "resnet50-0676ba61.pth",
}
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, on which the ResNets were trained
_KID_SUBSET = 1000
_UNREACHABLE = (URLError, OSError, RuntimeError)


class Perceptual:
    """The configured metrics among LPIPS, FID and KID, over batches of image pairs; by default none, at no cost.

    Results are keyed by metric and backbone: `lpips_alex`, `fid_inception`, `kid_inception`.

    Raises:
        WeightsError: weights that are neither stored locally nor can be downloaded, or a package that is not installed.
    """

    def __init__(self, config: EvaluationConfig, images: int, device: torch.device | str) -> None:
        self._metrics: dict[str, Any] = {}
        if config.lpips is not None:
            self._metrics[f"lpips_{config.lpips}"] = _lpips(config.lpips, config.weights).to(device)
        if config.fid is not None:
            backbone = _backbone(config.fid, config.weights)
            subset = min(_KID_SUBSET, images)
            for name, metric in _distances(backbone, subset).items():
                self._metrics[f"{name}_{config.fid}"] = metric.to(device)

    def update(self, synthesised: Tensor, real: Tensor) -> None:
        """Add a batch: both B 3 H W in [-1, 1]."""
        for name, metric in self._metrics.items():
            if name.startswith("lpips"):
                metric.update(synthesised.float().clamp(-1, 1), real.float())
            else:
                metric.update(to_pixels(real), real=True)
                metric.update(to_pixels(synthesised), real=False)

    def result(self) -> dict[str, float]:
        """Return the metrics over all images; KID is the mean of 100 subsets of at most 1000 from a fixed seed."""
        found = {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            for name, metric in self._metrics.items():
                value = metric.compute()
                found[name] = float(value[0] if isinstance(value, tuple) else value)
        return found


class _Features(nn.Module):
    """The pooled features of a torchvision ResNet: uint8 B 3 h w -> B D."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.eval()
        self.mean = nn.Buffer(torch.tensor(_MEAN)[:, None, None])
        self.deviation = nn.Buffer(torch.tensor(_DEVIATION)[:, None, None])
        self.num_features = int(network.get_submodule("fc").in_features)  # type: ignore[arg-type]
        network.fc = nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        resized = F.interpolate(images.float() / 255, (224, 224), mode="bilinear", antialias=True)
        features: Tensor = self.network((resized - self.mean) / self.deviation)
        return features


def _lpips(backbone: str, weights: str | None) -> Any:
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    file = _LPIPS_FILES[backbone]
    _provide(file, weights)
    try:
        return LearnedPerceptualImagePatchSimilarity(net_type=backbone)  # type: ignore[arg-type]
    except _UNREACHABLE as error:
        raise WeightsError(_absent("lpips", backbone, file, error)) from None


def _backbone(name: str, weights: str | None) -> Any:
    file = _FID_FILES[name]
    _provide(file, weights)
    if name == "inception":
        try:
            from torchmetrics.image.fid import NoTrainInceptionV3

            return NoTrainInceptionV3(name="inception-v3-compat", features_list=["2048"])
        except ModuleNotFoundError:
            raise WeightsError(
                "evaluation.fid='inception' needs torch-fidelity, which is not installed: pip install 's2s-ray[fid]', "
                "or choose resnet18, resnet34 or resnet50"
            ) from None
        except _UNREACHABLE as error:
            raise WeightsError(_absent("fid", name, file, error)) from None
    import torchvision.models as zoo

    try:
        return _Features(zoo.get_model(name, weights="IMAGENET1K_V1"))
    except _UNREACHABLE as error:
        raise WeightsError(_absent("fid", name, file, error)) from None


def _distances(backbone: Any, subset: int) -> dict[str, Any]:
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    with warnings.catch_warnings():
        # the features of an image are 2048 numbers
        warnings.filterwarnings("ignore", message=".*save all extracted features in buffer")
        kid = KernelInceptionDistance(feature=backbone, subset_size=subset)
    return {"fid": FrechetInceptionDistance(feature=backbone).set_dtype(torch.float64), "kid": kid}


def _provide(file: str, weights: str | None) -> None:
    """Copy a weight file from `evaluation.weights` to PyTorch's cache, unless it is there already."""
    cached = Path(torch.hub.get_dir()) / "checkpoints" / file
    if weights is not None and not cached.exists():
        try:
            storage.download(storage.join(weights, file), cached)
        except NotFoundError:
            raise WeightsError(f"evaluation.weights={weights!r} does not contain {file}") from None


def _absent(key: str, backbone: str, file: str, error: Exception) -> str:
    place = Path(torch.hub.get_dir()) / "checkpoints"
    return (
        f"evaluation.{key}={backbone!r}: the weights {file} are not in {place} and cannot be downloaded ({error}); "
        "copy them there, set evaluation.weights to a folder or an object-store prefix that has them, or leave "
        f"evaluation.{key} unset"
    )
