"""Dynamic batching: a batch fills while another is computed, nothing waits needlessly, errors reach their callers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import pytest

from s2s_ray.service.replicas.batching import Batcher


class Slow:
    """Work that records its arguments and finishes when it is released."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.released = asyncio.Semaphore(0)

    async def __call__(self, arguments: Sequence[int]) -> list[int]:
        self.calls.append(list(arguments))
        await self.released.acquire()
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


def test_arrivals_during_a_batch_form_the_next_one() -> None:
    async def scenario(work: Slow, batcher: Batcher[int, int]) -> None:
        tasks = []
        for one in range(6):
            tasks.append(asyncio.create_task(batcher(one)))
            await settle()  # one by one, as requests arrive
        for _ in range(3):
            work.released.release()
        assert await asyncio.gather(*tasks) == [0, 2, 4, 6, 8, 10]

    assert run(scenario).calls == [[0], [1, 2, 3], [4, 5]]


def test_a_batch_waits_to_fill_for_the_configured_time_only() -> None:
    async def scenario(work: Slow, batcher: Batcher[int, int]) -> None:
        work.released = asyncio.Semaphore(10)
        started = asyncio.get_running_loop().time()
        assert await asyncio.gather(batcher(1), batcher(2), batcher(3)) == [2, 4, 6]
        assert asyncio.get_running_loop().time() - started < 0.2, "a full batch starts at once"
        assert await asyncio.gather(batcher(4), batcher(5)) == [8, 10]
        assert asyncio.get_running_loop().time() - started >= 0.2

    assert run(scenario, wait_s=0.2).calls == [[1, 2, 3], [4, 5]]


def test_cancelled_calls_are_left_out_of_batches_that_have_not_started() -> None:
    async def scenario(work: Slow, batcher: Batcher[int, int]) -> None:
        tasks = [asyncio.create_task(batcher(one)) for one in range(4)]
        await settle()
        tasks[0].cancel()  # its batch has started
        tasks[3].cancel()
        await settle()
        work.released.release()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(result) for result in results] == [asyncio.CancelledError, int, int, asyncio.CancelledError]
        work.released.release()
        assert await batcher(7) == 14

    assert run(scenario).calls == [[0, 1, 2], [7]]


def test_an_error_reaches_its_whole_batch_and_no_other() -> None:
    async def scenario(work: Slow, batcher: Batcher[int, int]) -> None:
        tasks = [asyncio.create_task(batcher(one)) for one in (1, -1, 2, 3)]
        for _ in range(2):
            work.released.release()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [str(result) for result in results] == ["minus one"] * 3 + ["6"]

    assert run(scenario).calls == [[1, -1, 2], [3]]


@pytest.mark.parametrize("max_batch", [1, 4])
def test_every_result_reaches_its_caller(max_batch: int) -> None:
    async def scenario(work: Slow, batcher: Batcher[int, int]) -> None:
        work.released = asyncio.Semaphore(100)
        assert await asyncio.gather(*map(batcher, range(50))) == [2 * one for one in range(50)]

    assert all(len(call) <= max_batch for call in run(scenario, max_batch).calls)


@pytest.mark.parametrize("results", [[], [1], [1, 2, 3, 4], None])
def test_a_wrong_number_of_results_fails_that_batch_alone(results: list[int] | None) -> None:
    async def scenario() -> None:
        wrong = [True]

        async def work(arguments: Sequence[int]) -> Sequence[int]:
            return results if wrong.pop() else list(arguments)  # type: ignore[return-value]

        batcher: Batcher[int, int] = Batcher(work)
        batcher.max_batch = 3
        async with asyncio.timeout(5):
            failed = await asyncio.gather(*map(batcher, range(3)), return_exceptions=True)
            assert all(isinstance(one, RuntimeError | TypeError) for one in failed), failed
            wrong[:] = [False, False]
            assert await asyncio.gather(*map(batcher, range(6))) == list(range(6))

    asyncio.run(scenario())


def test_a_runner_that_is_cancelled_leaves_nobody_waiting() -> None:
    async def scenario(work: Slow, batcher: Batcher[int, int]) -> None:
        tasks = [asyncio.create_task(batcher(one)) for one in range(5)]
        await settle()
        assert batcher._running is not None
        batcher._running.cancel()
        async with asyncio.timeout(5):
            results = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(result) for result in results} == {asyncio.CancelledError}
        work.released.release()
        assert await batcher(7) == 14

    run(scenario)
