"""The retrieval branch R: a street encoder, and for each view what pools its local features to a descriptor.

A street view may show a part of what the model's view covers (`seen`). Unseen pixels are zero, which is what the
convolutions pad with, and local features count by the share of their 8 x 8 pixels that was seen: what is unseen
contributes nothing. Near the edge of the seen part the first convolution sees a picture that ends there; deeper ones
see what zeros become after batch norm, a constant of the model, and not the zeros that they pad with.

Batch norm knows no masks. With `street_batchnorm=live` its statistics include the unseen parts, whose activations are
constant: the more of a batch is unseen, the smaller the variance. In evaluation the running statistics hold for every
view alike, so a model that is asked with partial views should be trained with the same mixture of them. Spectral norms
depend on the weights alone, and instance norms occur only where all of an image is seen.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from s2s_ray.config import ModelConfig
from s2s_ray.model.attention import AzimuthPooling, SpatialAttention
from s2s_ray.model.batchnorm import GlobalBatchNorm2d
from s2s_ray.model.blocks import conv_class
from s2s_ray.model.generator import Encoder


class StreetEncoder(nn.Module):
    """A ResNet without its max-pool, cut after layer3: B 3 H W -> B 8c H/8 W/8.

    Its parts have the names of torchvision's ResNet, so that a ResNet34 state dict fits (without layer4 and fc).
    `street_blocks` 3, 4, 6 with 32 channels is ResNet34.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = 2 * config.channels
        self.conv1 = conv_class(config.circular)(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = GlobalBatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        first, second, third = config.street_blocks
        self.layer1 = _stage(width, width, first, stride=1, circular=config.circular)
        self.layer2 = _stage(width, 2 * width, second, stride=2, circular=config.circular)
        self.layer3 = _stage(2 * width, 4 * width, third, stride=2, circular=config.circular)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, GlobalBatchNorm2d):
                module.frozen = config.street_batchnorm == "frozen"

    def forward(self, street: Tensor) -> Tensor:
        """Return the local features B 8c H/8 W/8 of B 3 H W in [-1, 1]."""
        stem = self.relu(self.bn1(self.conv1(street)))
        features: Tensor = self.layer3(self.layer2(self.layer1(stem)))
        return features


class BasicBlock(nn.Module):
    """A residual block of two 3x3 convolutions: B in h w -> B out h/stride w/stride. Source: He et al. 2016.

    It is written out because importing torchvision would add seconds to the start-up of every serving replica; a test
    checks that the encoder equals torchvision's ResNet34.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, *, circular: bool = False) -> None:
        super().__init__()
        conv = conv_class(circular)
        self.conv1 = conv(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = GlobalBatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = conv(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = GlobalBatchNorm2d(out_channels)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                _Projection(in_channels, out_channels, 1, stride, bias=False), GlobalBatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        skip = x if self.downsample is None else self.downsample(x)
        main: Tensor = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        result: Tensor = self.relu(main + skip)
        return result


class _Projection(nn.Conv2d):
    """A 1x1 convolution with a stride.

    On CPUs it is computed without a stride on the pixels that it keeps: PyTorch 2.12's weight gradient of a strided one
    writes out of bounds for channels-last images with few channels (8 or less) and several threads.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not x.is_cpu:
            return super().forward(x)
        rows, columns = self.stride
        return nn.functional.conv2d(x[:, :, ::rows, ::columns], self.weight, self.bias)


def _stage(in_channels: int, out_channels: int, blocks: int, stride: int, *, circular: bool) -> nn.Sequential:
    rest = (BasicBlock(out_channels, out_channels, circular=circular) for _ in range(blocks - 1))
    return nn.Sequential(BasicBlock(in_channels, out_channels, stride, circular=circular), *rest)


def visible(images: Tensor, seen: Tensor | None) -> Tensor:
    """Return images B 3 H W with zeros where they were not seen (`seen`: bool B H W; None: all seen)."""
    return images if seen is None else torch.where(seen[:, None], images, 0.0)  # keeps the memory order


def seen_share(seen: Tensor | None) -> Tensor | None:
    """Return the share of the pixels of each local feature that was seen, float32 B 1 H/8 W/8."""
    return None if seen is None else nn.functional.avg_pool2d(seen[:, None].float(), 8)


def _pooling(config: ModelConfig, *, even_columns: bool) -> SpatialAttention | AzimuthPooling:
    height, width = config.height // 8, config.width // 8
    if config.pooling == "attention":
        return SpatialAttention(height, width, config.masks)
    channels = config.feature_channels
    return AzimuthPooling(channels, height, width, config.azimuth_channels, even_columns=even_columns)


class Retrieval(nn.Module):
    """The network from the local features of both views to unit descriptors B x (8c*k); 26,789,520 parameters.

    With `model.pooling=azimuth` the two attentions are poolings that keep the azimuth, and descriptors B x (k*W/8).
    `satellite_encoder` is None except in ablations whose R does not use the features of the generator.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.street_encoder = StreetEncoder(config)
        self.satellite_attention = _pooling(config, even_columns=True)
        self.street_attention = _pooling(config, even_columns=False)
        # last, so that a seed gives the other weights the same values with and without it
        self.satellite_encoder = Encoder(config) if config.separate_encoder else None

    def embed_satellite(self, features: Tensor) -> Tensor:
        """Embed local satellite features B 8c H/8 W/8 (of the generator or `satellite_encoder`) as B D."""
        descriptor: Tensor = self.satellite_attention(features)
        return descriptor

    def embed_street(self, street: Tensor, seen: Tensor | None = None) -> Tensor:
        """Embed street views B 3 H W in [-1, 1], of which `seen` (bool B H W; None: all) was seen, as B D."""
        return self.pool_street(self.street_encoder(visible(street, seen)), seen)

    def pool_street(self, features: Tensor, seen: Tensor | None = None) -> Tensor:
        """Embed local street features B 8c H/8 W/8, made from `visible` images, as B D."""
        descriptor: Tensor = self.street_attention(features, seen_share(seen))
        return descriptor

    @property
    def turn(self) -> Callable[[Tensor], Tensor] | None:
        """What turns street descriptors, B D, to every heading, B T D; None if they do not keep the azimuth."""
        pooling = self.street_attention
        return pooling.turn if isinstance(pooling, AzimuthPooling) else None

    def embed_street_turned(self, street: Tensor, seen: Tensor | None = None) -> Tensor:
        """Embed street views for every heading at steps of a feature column, B T D, T = W/8; see `S2S`."""
        return self.street_attention.turned(self.street_encoder(visible(street, seen)), seen_share(seen))
