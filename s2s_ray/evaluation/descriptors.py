"""Descriptors of a data set's pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from s2s_ray.data.dataset import Batch, PairDataset
from s2s_ray.evaluation.rows import Rows, StoredRows
from s2s_ray.model.s2s import S2S
from s2s_ray.runtime.progress import progress

IN_MEMORY_BYTES = 250_000_000
"""Descriptors of a view up to this size stay in memory; those of CVACT_test are 760 MB."""


@dataclass(frozen=True, slots=True)
class Descriptors:
    """Unit descriptors of pairs in both views, N D float32 each, on the device that computed them."""

    street: Tensor
    satellite: Tensor

    @classmethod
    def empty(cls, model: S2S, count: int, device: torch.device | str) -> Descriptors:
        """Room for `count` pairs."""
        shape = (count, model.config.descriptor_size)
        return cls(torch.empty(shape, device=device), torch.empty(shape, device=device))


def room(model: S2S, count: int, device: torch.device | str) -> Rows:
    """Room for the descriptors of `count` pairs in one view: in a file where they are many and would fill the memory of
    this machine rather than a GPU's."""
    shape = (count, model.config.descriptor_size)
    if torch.device(device).type != "cpu" or 4 * shape[0] * shape[1] <= IN_MEMORY_BYTES:
        return torch.empty(shape, device=device)
    return StoredRows(*shape)


def embed_dataset(
    model: S2S, dataset: PairDataset, batch: int, device: torch.device | str, *, loader_workers: int = 0
) -> Descriptors:
    """Descriptors of all pairs, in the data set's order, with progress."""
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
    """Descriptors of some pairs, in the order of `indices`; a worker gives its share of them, maybe none.

    The model is on `device`, computes in evaluation mode and is left in the modes it came in. Only the encoder of
    the generator runs.

    Args:
        indices: places in the split, without augmentation.
        batch: pairs at a time; changes no result but for rounding.
        loader_workers: decoding processes.
        advance: called with the number of pairs done after each batch.
    """
    found, done = Descriptors.empty(model, len(indices), device), 0
    with evaluating(model), torch.inference_mode():
        for pairs in batches(dataset, indices, batch, device, loader_workers):
            rows = slice(done, done + len(pairs))
            found.street[rows] = model.embed_street(pairs.street)
            found.satellite[rows] = model.embed_satellite(pairs.polar)
            done += len(pairs)
            advance(len(pairs))
    return found


def batches(
    dataset: PairDataset, indices: Sequence[int], batch: int, device: torch.device | str, loader_workers: int = 0
) -> Iterator[Batch]:
    """Pairs without augmentation, in the order of `indices`, on `device`."""
    loader: DataLoader[Batch] = DataLoader(
        dataset,  # type: ignore[arg-type]  # the loader's type is the sample's, what it yields is the batch
        batch_size=batch,
        sampler=indices,
        collate_fn=dataset.collate,
        num_workers=loader_workers,
        pin_memory=torch.device(device).type == "cuda",
    )
    return (pairs.to(device) for pairs in loader)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; afterwards every module is in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
