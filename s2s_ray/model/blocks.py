"""Building blocks of the generator: spectrally normalised convolutions and residual blocks.

Sources: the supplement's figures 1 to 3, Miyato et al. 2018 (spectral normalisation).
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SpectralConv2d(nn.Conv2d):
    """A convolution whose weight is divided by an estimate of its largest singular value.

    The estimate is u . W v with the stored vectors. They move only when `power_iterate` is called, never in
    forward: the training cycle decides when. A bias whose effect the following instance norm removes
    (`idle_bias`) is kept for published checkpoints but not trained: its gradient is rounding noise, which Adam
    would turn into full steps.
    """

    EPS = 1e-12
    weight_u: Tensor
    weight_v: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        padding: int = 0,
        padding_mode: Literal["reflect", "zeros"] = "reflect",
        bias: bool = True,
        idle_bias: bool = False,
    ) -> None:
        mode: Literal["reflect", "zeros"] = padding_mode if padding else "zeros"
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, bias=bias, padding_mode=mode)
        if self.bias is not None and idle_bias:
            self.bias.requires_grad_(False)
        matrix = self.weight.flatten(1)
        self.register_buffer("weight_u", F.normalize(torch.randn(matrix.shape[0]), dim=0, eps=self.EPS))
        self.register_buffer("weight_v", F.normalize(torch.randn(matrix.shape[1]), dim=0, eps=self.EPS))
        for _ in range(15):
            self.power_iterate()

    @torch.no_grad()
    def power_iterate(self) -> None:
        """One step of the power iteration on the stored singular vectors."""
        matrix = self.weight.flatten(1)
        self.weight_v.copy_(F.normalize(matrix.T @ self.weight_u, dim=0, eps=self.EPS))
        self.weight_u.copy_(F.normalize(matrix @ self.weight_v, dim=0, eps=self.EPS))

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            # The vectors are cloned so that a later power iteration does not change what backward reads.
            sigma = self.weight_u.clone() @ (self.weight.flatten(1) @ self.weight_v.clone())
            weight = self.weight / sigma
        result: Tensor = self._conv_forward(x, weight, self.bias)
        return result


def power_iterate(network: nn.Module) -> None:
    """One power iteration of every spectrally normalised convolution of a network in training mode."""
    for module in network.modules():
        if isinstance(module, SpectralConv2d) and module.training:
            module.power_iterate()


class InstanceNorm2d(nn.InstanceNorm2d):
    """PyTorch's, also for no images at all: a worker's share of a short batch may be empty."""

    def forward(self, input: Tensor) -> Tensor:
        if input.shape[0] == 0:
            return input * self.weight[:, None, None] + self.bias[:, None, None]
        return super().forward(input)


def instance_norm(channels: int) -> nn.InstanceNorm2d:
    """The model's instance norm: affine, eps 1e-5, no running statistics."""
    return InstanceNorm2d(channels, eps=1e-5, affine=True, track_running_stats=False)


class DownBlock(nn.Module):
    """Residual downsampling block (figure 1): B in h w -> B out h/2 w/2, before its instance norm."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = SpectralConv2d(in_channels, out_channels, 3, padding=1)
        self.conv2 = SpectralConv2d(out_channels, out_channels, 3, padding=1, idle_bias=True)
        self.skip = SpectralConv2d(in_channels, out_channels, 1, idle_bias=True)

    def forward(self, x: Tensor) -> Tensor:
        main = F.avg_pool2d(self.conv2(F.relu(self.conv1(F.relu(x)))), 2)
        skip: Tensor = self.skip(F.avg_pool2d(x, 2))  # a 1x1 convolution commutes with pooling
        return main + skip


class ResidualBlock(nn.Module):
    """Residual block of the bottleneck (figure 2): B C h w -> B C h w."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = SpectralConv2d(channels, channels, 3, padding=1, idle_bias=True)
        self.norm1 = instance_norm(channels)
        self.conv2 = SpectralConv2d(channels, channels, 3, padding=1, idle_bias=True)
        self.norm2 = instance_norm(channels)

    def forward(self, x: Tensor) -> Tensor:
        main: Tensor = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return x + main


class UpBlock(nn.Module):
    """Residual upsampling block (figure 3): B in h w -> B out 2h 2w, before its instance norm."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = instance_norm(in_channels)
        self.conv1 = SpectralConv2d(in_channels, out_channels, 3, padding=1, idle_bias=True)
        self.norm2 = instance_norm(out_channels)
        self.conv2 = SpectralConv2d(out_channels, out_channels, 3, padding=1, idle_bias=True)
        self.skip = SpectralConv2d(in_channels, out_channels, 1, idle_bias=True)

    def forward(self, x: Tensor) -> Tensor:
        main: Tensor = self.conv1(_upsample(F.relu(self.norm1(x))))
        main = self.conv2(F.relu(self.norm2(main)))
        return main + _upsample(self.skip(x))  # a 1x1 convolution commutes with nearest upsampling


def _upsample(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="nearest")
