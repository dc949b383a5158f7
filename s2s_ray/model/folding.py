"""Networks for inference: results that depend on the weights alone are computed once."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from s2s_ray.model.batchnorm import GlobalBatchNorm2d
from s2s_ray.model.blocks import SpectralConv2d

_NORMALISED = (("conv1", "bn1"), ("conv2", "bn2"), ("0", "1"))
"""Pairs of a convolution and the batch norm of its output, by their names in a residual network."""


@torch.no_grad()
def fold(network: nn.Module) -> None:
    """Divide spectrally normalised weights once, and fold batch norms into the convolutions before them.

    The network computes the same as in evaluation mode up to rounding. Its weights differ: a folded network can be
    neither trained nor saved as a checkpoint.
    """
    assert not network.training, "a network in training mode does not use the statistics that would be folded"
    for module in network.modules():
        if isinstance(module, SpectralConv2d):
            module.fold()
        for convolution, norm in _NORMALISED:
            if isinstance(getattr(module, norm, None), GlobalBatchNorm2d):
                fused = fuse_conv_bn_eval(getattr(module, convolution), getattr(module, norm))
                setattr(module, convolution, fused)
                setattr(module, norm, nn.Identity())
