"""Batch normalisation over the global batch, on CPUs and GPUs (PyTorch's SyncBatchNorm refuses CPU tensors)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s2s_ray.model.precision import at_least_float32
from s2s_ray.runtime.collectives import gather_rows, sum_over_ranks, world_size


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """An nn.BatchNorm2d whose training statistics are those of the images of all workers.

    In training mode it normalises with batch statistics. The running statistics are updated only while `tracking` is
    set (`track_statistics`), so that repeated forward passes of one cycle count once. With `frozen` it always uses the
    running statistics and never updates them. State dict and affine parameters are those of nn.BatchNorm2d.
    """

    tracking = False
    frozen = False
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def forward(self, input: Tensor) -> Tensor:
        """Normalise B C h w. B may be 0 on some workers if others have images."""
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
        normalised, count, mean, variance = _GlobalBatchNorm.apply(  # type: ignore[no-untyped-call]
            at_least_float32(x), self.weight, self.bias, self.eps
        )
        if self.tracking:
            momentum = self.momentum or 0.0
            self.running_mean.lerp_(mean.to(self.running_mean), momentum)
            self.running_var.lerp_((variance * (count / (count - 1))).to(self.running_var), momentum)
        result: Tensor = normalised.to(x.dtype)
        return result


class _GlobalBatchNorm(torch.autograd.Function):
    """Batch normalisation with the moments of all ranks, forward and backward, using PyTorch's fused kernels.

    With given moments the kernels normalise an image in one pass and sum the gradients of weight and bias in another.
    The gradient of the input is that of Ioffe and Szegedy 2015, section 3, with sums over all ranks.
    """

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, float, Tensor, Tensor]:
        count, mean, variance = _global_moments(x)
        ctx.save_for_backward(x, weight, mean, variance)
        ctx.mark_non_differentiable(
            mean, variance
        )  # or the running statistics would keep the graph of every step alive
        ctx.count, ctx.eps = count, eps  # type: ignore[attr-defined]
        return _normalise(x, mean, variance, weight, bias, eps), count, mean, variance

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, gradient: Tensor, *_moments: None
    ) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight, mean, variance = ctx.saved_tensors  # type: ignore[attr-defined]
        count, eps = ctx.count, ctx.eps  # type: ignore[attr-defined]
        at_weight, at_bias = torch.zeros_like(weight), torch.zeros_like(weight)
        if x.numel():
            _, at_weight, at_bias = torch.ops.aten.native_batch_norm_backward(
                gradient, x, weight, mean, variance, None, None, False, eps, [False, True, True]
            )
        totals = torch.stack([at_weight, at_bias])  # the returned ones are summed over ranks with the other gradients
        sum_over_ranks(totals)
        scale = weight * torch.rsqrt(variance + eps)
        total_weight, total_bias = -scale / count * totals
        at_input = _normalise(x, mean, variance, total_weight, total_bias, eps)
        at_input.addcmul_(gradient, scale[:, None, None])
        return at_input, at_weight, at_bias, None


def _normalise(x: Tensor, mean: Tensor, variance: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps) if x.numel() else torch.empty_like(x)


def _global_moments(x: Tensor) -> tuple[float, Tensor, Tensor]:
    """Return the count, mean and biased variance of each channel over all ranks.

    The moments of the ranks are merged around the common mean (Chan et al. 1983); sums of squares would cancel.
    """
    count = x.numel() // x.shape[1]
    own_mean = own_variance = x.new_zeros(x.shape[1])
    if count:
        own_mean, own_variance = torch.batch_norm_update_stats(x, None, None, 0.0)
    row = torch.stack([torch.full_like(own_mean, float(count)), own_mean, own_variance])
    rows = gather_rows(row[None], [1] * world_size())
    counts, means, variances = rows[:, 0], rows[:, 1], rows[:, 2]
    share = counts / counts.sum(0)
    mean = (share * means).sum(0)
    variance = (share * (variances + (means - mean) ** 2)).sum(0)
    return float(counts[:, 0].sum()), mean, variance


@contextmanager
def track_statistics(network: nn.Module) -> Iterator[None]:
    """Let forward passes inside the block update the running statistics of a network's batch norms."""
    norms = [module for module in network.modules() if isinstance(module, GlobalBatchNorm2d)]
    for norm in norms:
        norm.tracking = True
    try:
        yield
    finally:
        for norm in norms:
            norm.tracking = False
