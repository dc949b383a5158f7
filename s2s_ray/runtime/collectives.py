"""Collective operations over the training workers; for one worker each of them is the identity.

The convention everywhere: the objective is the *sum over ranks* of the values that the ranks back-propagate. A rank's
share of a mean is its own sum divided by the global count. A quantity that every rank computes from the same gathered
values is divided by the number of ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Return the number of workers; 1 outside a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return this worker's number; 0 outside a process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


class _GatherRows(torch.autograd.Function):
    """All ranks' rows in rank order; the gradient of a rank's rows is the sum of their gradients on all ranks."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, rows: Tensor, counts: tuple[int, ...]) -> Tensor:
        ctx.counts = counts  # type: ignore[attr-defined]
        return _gather(rows, counts)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:
        counts: tuple[int, ...] = ctx.counts  # type: ignore[attr-defined]
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        first = sum(counts[: dist.get_rank()])
        return total[first : first + counts[dist.get_rank()]], None


def gather_rows(rows: Tensor, counts: Sequence[int]) -> Tensor:
    """Concatenate the rows of all ranks, differentiably.

    Args:
        rows: counts[rank] x ..., the rows of this rank.
        counts: number of rows of every rank; they may differ and may be 0.

    Returns:
        sum(counts) x ..., the same on every rank.
    """
    assert rows.shape[0] == counts[rank()], (rows.shape, counts)
    if len(counts) == 1:
        return rows
    gathered: Tensor = _GatherRows.apply(rows, tuple(counts))  # type: ignore[no-untyped-call]
    return gathered


def _gather(rows: Tensor, counts: tuple[int, ...]) -> Tensor:
    """Gather rows, padded to the largest share, because gloo and nccl gather equal shapes only."""
    largest = max(counts)
    padded = rows.new_zeros((largest, *rows.shape[1:]))
    padded[: rows.shape[0]] = rows.detach()
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def sum_over_ranks(*values: Tensor) -> None:
    """Sum tensors of one dtype over the ranks, in place, in one flat reduction of fixed order."""
    start_sum(*values)()


def start_sum(*values: Tensor) -> Callable[[], None]:
    """Start `sum_over_ranks`; the returned function waits for it and writes the sums to the tensors."""
    if world_size() == 1:
        return lambda: None
    flat = torch.cat([value.reshape(-1) for value in values])
    work = dist.all_reduce(flat, async_op=True)
    assert work is not None

    def finish() -> None:
        work.wait()
        first = 0
        for value in values:
            value.copy_(flat[first : first + value.numel()].view_as(value))
            first += value.numel()

    return finish
