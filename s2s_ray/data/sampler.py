"""The order of an epoch, and each rank's share of it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler


def epoch_order(shard_sizes: Sequence[int], seed: int, epoch: int, window: int) -> NDArray[np.int64]:
    """Return the order in which an epoch visits all pairs, a function of the four arguments alone.

    The shards are shuffled; then the pairs of each `window` consecutive shards are shuffled together, so a reader
    holds at most two windows of shards. Pairs are numbered shard after shard.
    """
    bits = np.random.PCG64(np.random.SeedSequence([seed, epoch]))
    sizes = np.asarray(shard_sizes, dtype=np.int64)
    starts = np.cumsum(sizes) - sizes
    shards = _permutation(bits, len(sizes))
    order = []
    for first in range(0, len(shards), window):
        members = [np.arange(starts[k], starts[k] + sizes[k]) for k in shards[first : first + window]]
        pairs = np.concatenate(members)
        order.append(pairs[_permutation(bits, len(pairs))])
    return np.concatenate(order) if order else np.empty(0, dtype=np.int64)


def share(batch: NDArray[np.int64], rank: int, world: int) -> NDArray[np.int64]:
    """Return a rank's contiguous part of a global batch; the first ranks take one pair more if it does not divide."""
    return np.array_split(batch, world)[rank]


class GlobalBatchSampler(Sampler[list[tuple[int, int]]]):
    """A rank's part of every global batch of one epoch, as lists of (epoch, index) for `PairDataset`.

    The ranks' lists, joined in the order of the ranks, are the same global batch for any number of ranks. The last,
    short batch is used; a rank's list is empty if there are fewer pairs than ranks, so that all ranks take the
    same number of steps. `start` moves to another epoch or to a step within one.

    Args:
        shard_sizes, seed, window: arguments of `epoch_order`.
        batch: pairs in a global batch.
        rank, world: number of this part, and number of parts.
        epoch, first_step: the epoch and step to start with; skipping steps does not change the later ones.
    """

    def __init__(
        self,
        shard_sizes: Sequence[int],
        *,
        seed: int,
        window: int,
        batch: int,
        rank: int = 0,
        world: int = 1,
        epoch: int = 0,
        first_step: int = 0,
    ) -> None:
        assert 0 <= rank < world, (rank, world)
        assert batch > 0, batch
        self.shard_sizes = list(shard_sizes)
        self.seed, self.window, self.batch = seed, window, batch
        self.rank, self.world = rank, world
        self.start(epoch, first_step)

    def start(self, epoch: int, first_step: int = 0) -> None:
        """Move to a step of an epoch; the next iteration begins with it."""
        assert 0 <= first_step <= self.steps, (first_step, self.steps)
        self.epoch, self.first_step = epoch, first_step

    @property
    def steps(self) -> int:
        """Steps of a whole epoch."""
        return math.ceil(sum(self.shard_sizes) / self.batch)

    def __len__(self) -> int:
        return self.steps - self.first_step

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, first_step = self.epoch, self.first_step
        order = epoch_order(self.shard_sizes, self.seed, epoch, self.window)
        for step in range(first_step, self.steps):
            part = share(order[step * self.batch : (step + 1) * self.batch], self.rank, self.world)
            yield [(epoch, index) for index in part.tolist()]


def _permutation(bits: np.random.PCG64, count: int) -> NDArray[np.int64]:
    """Return a random order of `count` items from the raw stream, which NumPy guarantees never to change."""
    return np.argsort(bits.random_raw(count), kind="stable")
