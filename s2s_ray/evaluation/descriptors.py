"""The descriptors of a data set's pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from s2s_ray.data.batch import Batch
from s2s_ray.data.dataset import PairDataset
from s2s_ray.evaluation.rows import Rows, StoredRows
from s2s_ray.model.s2s import S2S
from s2s_ray.runtime.progress import progress

IN_MEMORY_BYTES = 250_000_000
"""Largest size of a view's descriptors that stay in memory; those of CVACT_test take 760 MB."""


@dataclass(frozen=True, slots=True)
class Descriptors:
    """Unit descriptors of pairs in both views, N D float32 each, on the device that computed them."""

    street: Tensor
    satellite: Tensor

    @classmethod
    def empty(cls, model: S2S, count: int, device: torch.device | str) -> Descriptors:
        """Return uninitialised descriptors of `count` pairs."""
        shape = (count, model.config.descriptor_size)
        return cls(torch.empty(shape, device=device), torch.empty(shape, device=device))


def allocate(model: S2S, count: int, device: torch.device | str) -> Rows:
    """Return uninitialised rows for the descriptors of `count` pairs in one view.

    They are in a file if they are on the CPU and take more than `IN_MEMORY_BYTES`.
    """
    shape = (count, model.config.descriptor_size)
    if torch.device(device).type != "cpu" or 4 * shape[0] * shape[1] <= IN_MEMORY_BYTES:
        return torch.empty(shape, device=device)
    return StoredRows(*shape)


def embed_dataset(
    model: S2S, dataset: PairDataset, batch: int, device: torch.device | str, *, loader_workers: int = 0
) -> Descriptors:
    """Embed all pairs, in the order of the data set, showing progress."""
    with progress(len(dataset), "embed", "pairs") as advance:
        everything = range(len(dataset))
        return embed_indices(model, dataset, everything, batch, device, loader_workers=loader_workers, advance=advance)


def embed_indices(
    model: S2S,
    dataset: PairDataset,
    indices: Sequence[int],
    batch: int,
    device: torch.device | str,
    *,
    loader_workers: int = 0,
    advance: Callable[[int], None] = lambda count: None,
) -> Descriptors:
    """Embed some pairs, in the order of `indices`, which may be empty; without augmentation.

    The model computes in evaluation mode, and the modes of its modules are restored. Only the encoder of the generator
    runs.

    Args:
        model: on `device`.
        dataset: the split.
        indices: indices of pairs in the split.
        batch: pairs per batch; it affects results only by rounding.
        device: device of the model and the result.
        loader_workers: number of processes that decode images.
        advance: called with the number of pairs after each batch.
    """
    found, done = Descriptors.empty(model, len(indices), device), 0
    with evaluating(model), torch.inference_mode():
        for pairs in batches(dataset, indices, batch, device, loader_workers):
            rows = slice(done, done + len(pairs))
            found.street[rows] = model.embed_street(pairs.street, pairs.seen)
            found.satellite[rows] = model.embed_satellite(pairs.polar)
            done += len(pairs)
            advance(len(pairs))
    return found


def batches(
    dataset: PairDataset, indices: Sequence[int], batch: int, device: torch.device | str, loader_workers: int = 0
) -> Iterator[Batch]:
    """Yield batches of pairs without augmentation, in the order of `indices`, on `device`."""
    loader: DataLoader[Batch] = DataLoader(
        dataset,  # type: ignore[arg-type]  # the type of the loader names the sample, but it yields batches
        batch_size=batch,
        sampler=indices,
        collate_fn=dataset.collate,
        num_workers=loader_workers,
        pin_memory=torch.device(device).type == "cuda",
    )
    return (pairs.to(device) for pairs in loader)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Set evaluation mode inside the block and restore the mode of every module afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
