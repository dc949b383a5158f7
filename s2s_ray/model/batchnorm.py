"""Batch normalisation over the global batch, on CPUs and GPUs alike (PyTorch's own raises on CPU tensors)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s2s_ray.collectives import gather_rows, world_size
from s2s_ray.model.precision import at_least_float32


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """nn.BatchNorm2d whose training statistics are those of all workers' images together.

    In training mode it normalises with batch statistics; the running statistics move only while `tracking` is
    set (`track_statistics`), so that repeated forwards of one cycle count once. With `frozen` it always uses the
    running statistics and never moves them. State dict and affine parameters are nn.BatchNorm2d's.
    """

    tracking = False
    frozen = False
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def forward(self, input: Tensor) -> Tensor:
        """B C h w -> B C h w. B may be 0 on some workers, if others have images."""
        self._check_input_dim(input)
        if not self.training or self.frozen:
            return F.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        if self.tracking:
            self.num_batches_tracked.add_(1)
        if world_size() == 1:
            mean, variance = (self.running_mean, self.running_var) if self.tracking else (None, None)
            return F.batch_norm(input, mean, variance, self.weight, self.bias, True, self.momentum or 0.0, self.eps)
        return self._normalise_globally(input)

    def _normalise_globally(self, x: Tensor) -> Tensor:
        exact = at_least_float32(x)
        count, mean, variance = _global_moments(exact)
        if self.tracking:
            momentum = self.momentum or 0.0
            unbiased = variance.detach() * (count / (count - 1))
            self.running_mean.lerp_(mean.detach().to(self.running_mean), momentum)
            self.running_var.lerp_(unbiased.to(self.running_var), momentum)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        shift = self.bias - mean * scale
        return (exact * scale[:, None, None] + shift[:, None, None]).to(x.dtype)


def _global_moments(x: Tensor) -> tuple[float, Tensor, Tensor]:
    """Count, mean and biased variance of each channel over all ranks.

    The ranks' moments are merged around the common mean (Chan et al. 1983): summing squares would cancel.
    """
    count = x.numel() // x.shape[1]
    if count:
        own_variance, own_mean = torch.var_mean(x, dim=(0, 2, 3), correction=0)
    else:
        own_mean = own_variance = x.sum(dim=(0, 2, 3))  # zeros that stay in the graph
    row = torch.stack([torch.full_like(own_mean, float(count)), own_mean, own_variance])
    rows = gather_rows(row[None], [1] * world_size())
    counts, means, variances = rows[:, 0].detach(), rows[:, 1], rows[:, 2]
    share = counts / counts.sum(0)
    mean = (share * means).sum(0)
    variance = (share * (variances + (means - mean) ** 2)).sum(0)
    return float(counts[:, 0].sum()), mean, variance


@contextmanager
def track_statistics(network: nn.Module) -> Iterator[None]:
    """Let the running statistics of a network's batch norms follow the forwards inside the block."""
    norms = [module for module in network.modules() if isinstance(module, GlobalBatchNorm2d)]
    for norm in norms:
        norm.tracking = True
    try:
        yield
    finally:
        for norm in norms:
            norm.tracking = False
