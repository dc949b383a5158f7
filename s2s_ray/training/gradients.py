"""The gradients of a network over the global batch, and networks that receive none."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from s2s_ray.runtime.collectives import start_sum


class Gradients:
    """The gradient of the global batch with respect to a network's trained weights, stored in their `grad`.

    It is accumulated from this worker's losses and summed over the workers while other gradients are computed, so it
    is complete only after `norm` has returned.
    """

    def __init__(self, network: nn.Module, losses: Iterable[Tensor]) -> None:
        parameters = trained_parameters(network)
        for parameter in parameters:
            parameter.grad = None  # frees the memory of the previous step
        sums: list[Tensor | None] = [None] * len(parameters)
        for loss in losses:
            for k, gradient in enumerate(torch.autograd.grad(loss, parameters, allow_unused=True)):
                if gradient is not None:
                    total = sums[k]
                    # a copy: autograd may return the same tensor twice
                    sums[k] = (
                        gradient.clone(memory_format=torch.contiguous_format) if total is None else total.add_(gradient)
                    )
        self._totals = [
            torch.zeros_like(parameter) if total is None else total
            for parameter, total in zip(parameters, sums, strict=True)
        ]
        for parameter, total in zip(parameters, self._totals, strict=True):
            parameter.grad = total
        self._wait = start_sum(*self._totals)

    def norm(self) -> Tensor:
        """Wait for the sum over the workers and return the L2 norm over all weights."""
        self._wait()
        return torch.nn.utils.get_total_norm(self._totals)


@contextmanager
def frozen(*networks: nn.Module) -> Iterator[None]:
    """Keep the parameters of the networks from receiving gradients inside the block."""
    parameters = [parameter for network in networks for parameter in trained_parameters(network)]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def trained_parameters(network: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that are trained; the bias of a convolution before an instance norm is not."""
    return [parameter for parameter in network.parameters() if parameter.requires_grad]
