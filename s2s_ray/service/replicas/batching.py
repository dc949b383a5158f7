"""Dynamic batching: while one batch is computed the next one gathers.

Serve's own `@serve.batch` (2.60) closes a batch as soon as its time to fill is over, also while the one before is still
running; requests that come one by one then wait in a row of batches of one. Here a batch is closed when it begins.
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
    """Calls `work` with what waits, at most `max_batch` at a time, one batch after the other, in order of arrival.

    Belongs to the event loop that it is first called on.
    """

    def __init__(self, work: Callable[[Sequence[A]], Awaitable[Sequence[B]]]) -> None:
        """`work` answers each of its arguments; what it raises, all of them get."""
        self.max_batch = 1
        self.wait_s = 0.0
        """How long the first of a batch waits for it to fill, where nothing is being computed."""
        self._work = work
        self._waiting: deque[tuple[A, asyncio.Future[B]]] = deque()
        self._filled = asyncio.Event()
        self._running: asyncio.Task[None] | None = None

    async def __call__(self, argument: A) -> B:
        """The answer to one argument. A caller that is cancelled before its batch begins is left out of it."""
        answer: asyncio.Future[B] = asyncio.get_running_loop().create_future()
        self._waiting.append((argument, answer))
        if len(self._waiting) >= self.max_batch:
            self._filled.set()
        if self._running is None:
            self._running = asyncio.create_task(self._run())
        return await answer

    async def _run(self) -> None:
        try:
            if self.wait_s and len(self._waiting) < self.max_batch:
                self._filled.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._filled.wait(), self.wait_s)
            while batch := self._take():
                await self._answer(batch)
        finally:
            self._running = None

    def _take(self) -> list[tuple[A, asyncio.Future[B]]]:
        batch: list[tuple[A, asyncio.Future[B]]] = []
        while self._waiting and len(batch) < self.max_batch:
            argument, answer = self._waiting.popleft()
            if not answer.done():
                batch.append((argument, answer))
        return batch

    async def _answer(self, batch: list[tuple[A, asyncio.Future[B]]]) -> None:
        try:
            found: Sequence[B] = await self._work([argument for argument, _ in batch])
        except Exception as error:
            for _, answer in batch:
                if not answer.done():
                    answer.set_exception(error)
            return
        for (_, answer), value in zip(batch, found, strict=True):
            if not answer.done():
                answer.set_result(value)
