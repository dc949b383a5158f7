"""Batches gather while the one before is computed; nobody waits who need not, and faults reach their callers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import pytest

from s2s_ray.service.replicas.batching import Batcher


class Slow:
    """Work that says what it was called with, and goes on when it is told to."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.go_on = asyncio.Semaphore(0)

    async def __call__(self, arguments: Sequence[int]) -> list[int]:
        self.calls.append(list(arguments))
        await self.go_on.acquire()
        if -1 in arguments:
            raise ValueError("minus one")
        return [2 * one for one in arguments]


def run(scenario: Callable[[Slow, Batcher[int, int]], Awaitable[None]], max_batch: int = 3, wait_s: float = 0) -> Slow:
    async def whole() -> Slow:
        work = Slow()
        batcher: Batcher[int, int] = Batcher(work)
        batcher.max_batch, batcher.wait_s = max_batch, wait_s
        await scenario(work, batcher)
        return work

    return asyncio.run(whole())


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def test_what_comes_while_a_batch_is_computed_makes_up_the_next_one() -> None:
    async def scenario(work: Slow, batcher: Batcher[int, int]) -> None:
        tasks = []
        for one in range(6):
            tasks.append(asyncio.create_task(batcher(one)))
            await settle()  # one by one, as requests come
        for _ in range(3):
            work.go_on.release()
        assert await asyncio.gather(*tasks) == [0, 2, 4, 6, 8, 10]

    assert run(scenario).calls == [[0], [1, 2, 3], [4, 5]]


def test_a_batch_waits_to_fill_if_it_is_told_to_and_no_longer() -> None:
    async def scenario(work: Slow, batcher: Batcher[int, int]) -> None:
        work.go_on = asyncio.Semaphore(10)
        started = asyncio.get_running_loop().time()
        assert await asyncio.gather(batcher(1), batcher(2), batcher(3)) == [2, 4, 6]
        assert asyncio.get_running_loop().time() - started < 0.2, "a full batch begins at once"
        assert await asyncio.gather(batcher(4), batcher(5)) == [8, 10]
        assert asyncio.get_running_loop().time() - started >= 0.2

    assert run(scenario, wait_s=0.2).calls == [[1, 2, 3], [4, 5]]


def test_the_cancelled_are_left_out_of_batches_that_have_not_begun() -> None:
    async def scenario(work: Slow, batcher: Batcher[int, int]) -> None:
        tasks = [asyncio.create_task(batcher(one)) for one in range(4)]
        await settle()
        tasks[0].cancel()  # its batch has begun
        tasks[3].cancel()
        await settle()
        work.go_on.release()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(answer) for answer in answers] == [asyncio.CancelledError, int, int, asyncio.CancelledError]
        work.go_on.release()
        assert await batcher(7) == 14

    assert run(scenario).calls == [[0, 1, 2], [7]]


def test_a_fault_reaches_all_of_its_batch_and_nobody_else() -> None:
    async def scenario(work: Slow, batcher: Batcher[int, int]) -> None:
        tasks = [asyncio.create_task(batcher(one)) for one in (1, -1, 2, 3)]
        for _ in range(2):
            work.go_on.release()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert [str(answer) for answer in answers] == ["minus one"] * 3 + ["6"]

    assert run(scenario).calls == [[1, -1, 2], [3]]


@pytest.mark.parametrize("max_batch", [1, 4])
def test_every_answer_goes_to_its_own_caller(max_batch: int) -> None:
    async def scenario(work: Slow, batcher: Batcher[int, int]) -> None:
        work.go_on = asyncio.Semaphore(100)
        assert await asyncio.gather(*map(batcher, range(50))) == [2 * one for one in range(50)]

    assert all(len(call) <= max_batch for call in run(scenario, max_batch).calls)
