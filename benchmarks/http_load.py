"""Load for `serve.py`: callers that take turns with one service, and callers that come at a rate, answered or not."""

from __future__ import annotations

import http.client
import queue
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple
from urllib.parse import urlsplit

import numpy as np


class Question(NamedTuple):
    """One kind of request and the bodies it is sent with in turn."""

    path: str
    bodies: list[bytes]
    headers: dict[str, str]


class Told(NamedTuple):
    """What the callers saw: answers a second, seconds of each answered request, and how many were refused."""

    rate: float
    seconds: list[float]
    refused: int

    def milliseconds(self, percentile: float) -> float:
        return float(np.percentile(self.seconds, percentile)) * 1e3


class Caller:
    """One connection that stays open."""

    def __init__(self, url: str, question: Question) -> None:
        self._connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=120)
        self._question = question

    def ask(self, turn: int) -> int:
        """Send the request; gives the status. Raises RuntimeError for what is neither 200 nor 503."""
        path, bodies, headers = self._question
        self._connection.request("POST", path, bodies[turn % len(bodies)], headers)
        answer = self._connection.getresponse()
        content = answer.read()
        if answer.status not in (200, 503):
            raise RuntimeError(f"{path} answered {answer.status}: {content[:200]!r}")
        return answer.status

    def close(self) -> None:
        self._connection.close()


@contextmanager
def _threads(count: int, work) -> Iterator[None]:
    """`work(number)` in that many threads until the block has ended and all have returned; raises what they raised."""
    faults: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            work(number)
        except BaseException as fault:
            faults.append(fault)

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for thread in threads:
            thread.join()
    if faults:
        raise faults[0]


def closed(url: str, question: Question, callers: int, seconds: float) -> Told:
    """Each caller asks as soon as it is answered. Counting starts when all have been answered once.

    Answers come in batches: the rate is that between the last answer before the window and the last one in it.
    """
    told: list[tuple[float, float]] = []
    refused = [0] * callers
    waited_for = callers
    window, first = threading.Event(), threading.Lock()
    end = float("inf")

    def call(number: int) -> None:
        nonlocal end
        try:
            keep_asking(number)
        except BaseException:
            end = 0.0  # for all of them
            window.set()
            raise

    def keep_asking(number: int) -> None:
        nonlocal end, waited_for
        caller, turn = Caller(url, question), number
        while (asked := time.perf_counter()) < end:
            status = caller.ask(turn)
            now = time.perf_counter()
            if turn == number:
                with first:
                    waited_for -= 1
                    if not waited_for:
                        end = now + seconds
                        window.set()
            turn += 1
            if status == 503:
                refused[number] += 1
            else:
                told.append((now, now - asked))
        caller.close()

    with _threads(callers, call):
        window.wait()
    begin = end - seconds
    counted = [taken for now, taken in told if begin < now <= end]
    if not counted:
        raise RuntimeError(f"no answer of {question.path} within {seconds} s: measure for longer")
    last = max(now for now, _ in told if now <= end)
    return Told(len(counted) / (last - begin), counted, sum(refused))


def opened(url: str, question: Question, rate: float, seconds: float, callers: int = 64) -> Told:
    """Requests at a constant rate; the time of each runs from when it was due, also where it waited for a caller."""
    due: queue.SimpleQueue[tuple[int, float] | None] = queue.SimpleQueue()
    taken: list[float] = []
    refused = [0] * callers

    def call(number: int) -> None:
        caller = Caller(url, question)
        while (one := due.get()) is not None:
            turn, when = one
            if caller.ask(turn) == 503:
                refused[number] += 1
            else:
                taken.append(time.perf_counter() - when)
        caller.close()

    begin = time.perf_counter()
    with _threads(callers, call):
        for turn in range(max(1, round(rate * seconds))):
            when = begin + turn / rate
            time.sleep(max(0.0, when - time.perf_counter()))
            due.put((turn, when))
        for _ in range(callers):
            due.put(None)
    return Told(len(taken) / (time.perf_counter() - begin), taken, sum(refused))
