"""The discriminator D (supplement, table 2): a PatchGAN on satellite and street view together."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from s2s_ray.config import ModelConfig
from s2s_ray.model.attention import NonLocalBlock
from s2s_ray.model.blocks import SpectralConv2d, conv_class


class Discriminator(nn.Module):
    """A PatchGAN that returns patch logits without a sigmoid; 2,788,290 parameters at full width.

    The `paper` variant pads the two stride-1 convolutions by one more row below, which gives the shapes of table 2
    (14 x 75 logits at 112 x 616), and normalises every convolution but the last. `released` is the variant of the
    authors' code: a padding of one on all sides (12 x 75), and no spectral norm on the first convolution.

    With `circular` the patches wrap around the horizon too, one logit for each column of local features (14 x 77): a
    view whose ends do not meet is then as visible as any other edge, which a border of zeros would hide. Real and
    synthesised views are treated alike in either case.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        c, wraps = config.discriminator_channels, config.circular
        self.extra_row = config.discriminator_variant == "paper"
        first = _plain_conv if config.discriminator_variant == "released" else _conv
        self.conv1 = first(6, c, stride=2, circular=wraps)
        self.conv2 = _conv(c, 2 * c, stride=2, circular=wraps)
        self.attention = NonLocalBlock(2 * c)
        self.conv3 = _conv(2 * c, 4 * c, stride=2, circular=wraps)
        self.conv4 = _conv(4 * c, 8 * c, stride=1, circular=wraps)
        self.conv5 = _plain_conv(8 * c, 1, stride=1, circular=wraps)

    def forward(self, pair: Tensor) -> Tensor:
        """Return the patch logits B 1 h w of B 6 H W, satellite and street views stacked, in [-1, 1]."""
        x = _activate(self.conv1(pair))
        x = self.attention(_activate(self.conv2(x)))
        x = _activate(self.conv3(x))
        x = _activate(self.conv4(self._pad(x)))
        logits: Tensor = self.conv5(self._pad(x))
        return logits

    def _pad(self, x: Tensor) -> Tensor:
        return F.pad(x, (0, 0, 0, 1)) if self.extra_row else x


def _conv(in_channels: int, out_channels: int, *, stride: int, circular: bool) -> nn.Conv2d:
    return SpectralConv2d(
        in_channels, out_channels, 4, stride=stride, padding=1, padding_mode="zeros", circular=circular
    )


def _plain_conv(in_channels: int, out_channels: int, *, stride: int, circular: bool) -> nn.Conv2d:
    conv = conv_class(circular)(in_channels, out_channels, 4, stride, padding=1)
    nn.init.normal_(conv.weight, 0.0, 0.02)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return conv


def _activate(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.1, inplace=True)
