"""The order of an epoch, and its division over ranks and steps."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from s2s_ray.data.sampler import GlobalBatchSampler, epoch_order, share

sizes = st.lists(st.integers(0, 9), min_size=1, max_size=12)
seeds = st.integers(0, 2**40)


@given(sizes, seeds, st.integers(0, 1000), st.integers(1, 5))
def test_every_pair_once(shard_sizes: list[int], seed: int, epoch: int, window: int) -> None:
    order = epoch_order(shard_sizes, seed, epoch, window)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(sum(shard_sizes)))


@given(sizes, seeds, st.integers(1, 5))
def test_a_shard_is_in_one_window_only(shard_sizes: list[int], seed: int, window: int) -> None:
    """Divided at the ends of the windows, each part holds whole shards, and no more of them than a window has."""
    shard_of = np.repeat(np.arange(len(shard_sizes)), shard_sizes)
    visits = shard_of[epoch_order(shard_sizes, seed, 0, window)].tolist()
    parts: list[set[int]] = []
    start = 0
    while start < len(visits):
        open_shards, end = {visits[start]}, start + 1
        while True:  # the shortest part that holds all visits of its shards
            last = max(len(visits) - 1 - visits[::-1].index(shard) for shard in open_shards) + 1
            if last == end:
                break
            open_shards |= set(visits[end:last])
            end = last
        parts.append(open_shards)
        start = end
    assert all(len(part) <= window for part in parts)


def test_the_order_is_a_function_of_seed_epoch_and_window() -> None:
    shard_sizes = [7, 5, 9, 1, 8]
    orders = {
        arguments: epoch_order(shard_sizes, *arguments).tolist()
        for arguments in itertools.product((0, 1), (0, 1), (1, 2))
    }
    assert all(epoch_order(shard_sizes, *arguments).tolist() == order for arguments, order in orders.items())
    assert len({tuple(order) for order in orders.values()}) == 8


def test_the_order_never_changes() -> None:
    """A run started with an older version continues with the same pairs."""
    assert epoch_order([3, 4, 2, 3], seed=5, epoch=2, window=2).tolist() == PINNED


def test_orders_are_uniform() -> None:
    """Each of three shards comes first in a third of the epochs, each pair of a window in each of its positions."""
    shards = np.array([epoch_order([1, 1, 1], 0, epoch, 1)[0] for epoch in range(3000)])
    assert np.abs(np.bincount(shards) - 1000).max() < 4 * np.sqrt(3000 * (1 / 3) * (2 / 3))
    places = np.array([epoch_order([2, 3], 0, epoch, 2).tolist().index(4) for epoch in range(3000)])
    assert np.abs(np.bincount(places) - 600).max() < 4 * np.sqrt(3000 * 0.2 * 0.8)


def test_shares_of_a_batch() -> None:
    batch = np.arange(10, 20)
    assert [share(batch, rank, 3).tolist() for rank in range(3)] == [[10, 11, 12, 13], [14, 15, 16], [17, 18, 19]]
    assert [share(batch[:2], rank, 3).tolist() for rank in range(3)] == [[10], [11], []]


@given(sizes, seeds, st.integers(1, 7), st.integers(1, 9))
def test_the_ranks_make_the_same_batches_at_any_number(
    shard_sizes: list[int], seed: int, batch: int, world: int
) -> None:
    def lists(rank: int, world: int) -> list[list[tuple[int, int]]]:
        return list(GlobalBatchSampler(shard_sizes, seed=seed, window=2, batch=batch, rank=rank, world=world, epoch=3))

    ranks = [lists(rank, world) for rank in range(world)]
    joined = [list(itertools.chain.from_iterable(parts)) for parts in zip(*ranks, strict=True)]
    assert joined == lists(0, 1)
    order = epoch_order(shard_sizes, seed, 3, 2).tolist()
    assert joined == [[(3, index) for index in order[k : k + batch]] for k in range(0, len(order), batch)]
    for parts in zip(*ranks, strict=True):
        lengths = [len(part) for part in parts]
        assert lengths == sorted(lengths, reverse=True)
        assert max(lengths) - min(lengths) <= 1


@given(sizes, seeds, st.integers(1, 4), st.data())
def test_an_epoch_resumes_at_any_step(shard_sizes: list[int], seed: int, world: int, data: st.DataObject) -> None:
    rank = data.draw(st.integers(0, world - 1))
    whole = GlobalBatchSampler(shard_sizes, seed=seed, window=2, batch=4, rank=rank, world=world, epoch=1)
    step = data.draw(st.integers(0, whole.steps))
    rest = GlobalBatchSampler(
        shard_sizes, seed=seed, window=2, batch=4, rank=rank, world=world, epoch=1, first_step=step
    )
    assert list(rest) == list(whole)[step:]
    assert len(rest) == whole.steps - step == len(list(rest))


def test_start_moves_to_another_epoch() -> None:
    sampler = GlobalBatchSampler([5, 6, 7], seed=0, window=2, batch=4)
    first = list(sampler)
    sampler.start(1)
    second = list(sampler)
    assert first != second
    assert {epoch for batch in second for epoch, _ in batch} == {1}
    sampler.start(0, 3)
    assert list(sampler) == first[3:]


def test_steps_that_do_not_exist_are_refused() -> None:
    with pytest.raises(AssertionError):
        GlobalBatchSampler([5], seed=0, window=1, batch=4, first_step=3)


PINNED = [0, 3, 5, 2, 4, 1, 6, 8, 11, 7, 9, 10]
