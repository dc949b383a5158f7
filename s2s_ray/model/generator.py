"""The generator G (supplement, table 1): polar satellite image -> street panorama.

The output of its encoder, that of the sixth residual block, is the satellite's local feature map for retrieval.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from s2s_ray.config import ModelConfig
from s2s_ray.model.attention import NonLocalBlock
from s2s_ray.model.blocks import DownBlock, ResidualBlock, SpectralConv2d, UpBlock, conv_class, instance_norm


class Encoded(NamedTuple):
    """The outputs of the encoder, each after its instance norm (c: `channels`)."""

    features: Tensor  # B 8c H/8 W/8, the bottleneck
    enc1: Tensor  # B 2c H/2 W/2
    enc2: Tensor  # B 4c H/4 W/4
    enc3: Tensor  # B 8c H/8 W/8


class Encoder(nn.Module):
    """Stem, three downsampling blocks and the bottleneck's residual blocks."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        c, wraps = config.channels, config.circular
        self.stem = SpectralConv2d(3, c, 7, padding=3, idle_bias=True, circular=wraps)
        self.stem_norm = instance_norm(c)
        self.down1, self.down1_norm = DownBlock(c, 2 * c, circular=wraps), instance_norm(2 * c)
        self.down2, self.down2_norm = DownBlock(2 * c, 4 * c, circular=wraps), instance_norm(4 * c)
        self.down3, self.down3_norm = DownBlock(4 * c, 8 * c, circular=wraps), instance_norm(8 * c)
        blocks = (ResidualBlock(8 * c, circular=wraps) for _ in range(config.residual_blocks))
        self.bottleneck = nn.Sequential(*blocks)

    def forward(self, satellite: Tensor) -> Encoded:
        """Return the local features and the three skip connections of B 3 H W in [-1, 1]."""
        enc1 = self.down1_norm(self.down1(self.stem_norm(self.stem(satellite))))
        enc2 = self.down2_norm(self.down2(enc1))
        enc3 = self.down3_norm(self.down3(enc2))
        return Encoded(self.bottleneck(enc3), enc1, enc2, enc3)


class Decoder(nn.Module):
    """Three upsampling blocks with skip connections, self-attention after the first, and the head."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        c, wraps = config.channels, config.circular
        self.up3, self.up3_norm = UpBlock(16 * c, 4 * c, circular=wraps), instance_norm(4 * c)
        self.attention = NonLocalBlock(8 * c)
        self.up2, self.up2_norm = UpBlock(8 * c, 2 * c, circular=wraps), instance_norm(2 * c)
        # Both paths from here reach an instance norm before anything nonlinear, so the bias has no effect either.
        self.up2_norm.bias.requires_grad_(False)
        self.up1, self.up1_norm = UpBlock(4 * c, 2 * c, circular=wraps), instance_norm(2 * c)
        self.head = conv_class(wraps)(2 * c, 3, 3, padding=1)
        nn.init.normal_(self.head.weight, 0.0, 0.02)
        assert self.head.bias is not None
        nn.init.zeros_(self.head.bias)

    def forward(self, encoded: Encoded) -> Tensor:
        """Return the synthesised street view, B 3 H W in [-1, 1]."""
        x = self.up3_norm(self.up3(torch.cat([encoded.features, encoded.enc3], 1)))
        x = self.attention(torch.cat([x, encoded.enc2], 1))
        x = self.up2_norm(self.up2(x))
        x = self.up1_norm(self.up1(torch.cat([x, encoded.enc1], 1)))
        return torch.tanh(self.head(x))


class Generator(nn.Module):
    """Encoder and decoder; 9,507,908 parameters at full width."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    def forward(self, satellite: Tensor) -> tuple[Tensor, Tensor]:
        """Return the synthesised street view B 3 H W and the local features B 8c H/8 W/8 of B 3 H W."""
        encoded = self.encoder(satellite)
        return self.decoder(encoded), encoded.features
