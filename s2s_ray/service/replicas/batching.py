"""Dynamic batching: while one batch is computed, the next one fills.

Serve's own `@serve.batch` (2.60) closes a batch as soon as its time to fill is over, even while the previous one is
still running; requests that arrive one by one then wait in a queue of batches of one. Here a batch is closed when it
starts.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Generic, TypeVar

A = TypeVar("A")
B = TypeVar("B")


class Batcher(Generic[A, B]):
    """Calls a function with the waiting arguments, at most `max_batch` at a time, in order of arrival.

    Batches run one after the other. The batcher belongs to the event loop on which it is first called.

    Args:
        work: returns one result per argument; what it raises is raised to all callers of the batch, as is an
            error if the number of results is another one.
    """

    def __init__(self, work: Callable[[Sequence[A]], Awaitable[Sequence[B]]]) -> None:
        self.max_batch = 1
        self.wait_s = 0.0
        """Seconds that the first argument of a batch waits for it to fill when nothing is being computed."""
        self._work = work
        self._waiting: deque[tuple[A, asyncio.Future[B]]] = deque()
        self._filled = asyncio.Event()
        self._running: asyncio.Task[None] | None = None

    async def __call__(self, argument: A) -> B:
        """Return the result for one argument. A call that is cancelled before its batch starts is left out of it."""
        result: asyncio.Future[B] = asyncio.get_running_loop().create_future()
        self._waiting.append((argument, result))
        if len(self._waiting) >= self.max_batch:
            self._filled.set()
        if self._running is None:
            self._running = asyncio.create_task(self._run())
        return await result

    async def _run(self) -> None:
        try:
            if self.wait_s and len(self._waiting) < self.max_batch:
                self._filled.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._filled.wait(), self.wait_s)
            while batch := self._next_batch():
                await self._compute(batch)
        finally:
            self._running = None
            for _, result in self._waiting:  # none, unless this task was cancelled
                result.cancel()
            self._waiting.clear()

    def _next_batch(self) -> list[tuple[A, asyncio.Future[B]]]:
        batch: list[tuple[A, asyncio.Future[B]]] = []
        while self._waiting and len(batch) < self.max_batch:
            argument, result = self._waiting.popleft()
            if not result.done():
                batch.append((argument, result))
        return batch

    async def _compute(self, batch: list[tuple[A, asyncio.Future[B]]]) -> None:
        try:
            values: Sequence[B] = await self._work([argument for argument, _ in batch])
            if len(values) != len(batch):
                raise RuntimeError(f"the work returned {len(values)} results for {len(batch)} arguments")
        except BaseException as error:
            for _, result in batch:
                if not result.done():
                    result.set_exception(error) if isinstance(error, Exception) else result.cancel()
            if not isinstance(error, Exception):
                raise  # this task was cancelled: the event loop is ending
            return
        for (_, result), value in zip(batch, values, strict=True):
            if not result.done():
                result.set_result(value)
