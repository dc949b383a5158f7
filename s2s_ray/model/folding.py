"""Networks for inference: what every pass would compute from the weights alone is computed once."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from s2s_ray.model.batchnorm import GlobalBatchNorm2d
from s2s_ray.model.blocks import SpectralConv2d

_NORMALISED = (("conv1", "bn1"), ("conv2", "bn2"), ("0", "1"))
"""A convolution and the batch norm of its output, by the names a residual network gives them."""


@torch.no_grad()
def fold(network: nn.Module) -> None:
    """Divide spectrally normalised weights for good, and fold batch norms into the convolutions before them.

    The function stays what it is in evaluation mode, to rounding. The weights do not: a folded network can be neither
    trained nor saved as a checkpoint.
    """
    assert not network.training, "batch norms would fold statistics that training does not use"
    for module in network.modules():
        if isinstance(module, SpectralConv2d):
            module.fold()
        for convolution, norm in _NORMALISED:
            if isinstance(getattr(module, norm, None), GlobalBatchNorm2d):
                fused = fuse_conv_bn_eval(getattr(module, convolution), getattr(module, norm))
                setattr(module, convolution, fused)
                setattr(module, norm, nn.Identity())
