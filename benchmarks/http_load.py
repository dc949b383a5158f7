"""Load for `serve.py`: a closed loop of callers, and an open loop at a constant rate."""

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


class RequestKind(NamedTuple):
    """One kind of request, and the bodies to send in turn."""

    path: str
    bodies: list[bytes]
    headers: dict[str, str]


class Load(NamedTuple):
    """A measurement: responses per second, seconds of each completed request, and the number of rejected ones."""

    rate: float
    seconds: list[float]
    rejected: int

    def milliseconds(self, percentile: float) -> float:
        return float(np.percentile(self.seconds, percentile)) * 1e3


class Caller:
    """One persistent connection."""

    def __init__(self, url: str, kind: RequestKind) -> None:
        self._connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=120)
        self._kind = kind

    def send(self, turn: int) -> int:
        """Send the request and return the status. Raises RuntimeError if it is neither 200 nor 503."""
        path, bodies, headers = self._kind
        self._connection.request("POST", path, bodies[turn % len(bodies)], headers)
        response = self._connection.getresponse()
        content = response.read()
        if response.status not in (200, 503):
            raise RuntimeError(f"{path} responded with {response.status}: {content[:200]!r}")
        return response.status

    def close(self) -> None:
        self._connection.close()


@contextmanager
def _threads(count: int, work) -> Iterator[None]:
    """Run `work(number)` in threads for the duration of the block, wait for them, and raise what they raised."""
    errors: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for thread in threads:
            thread.join()
    if errors:
        raise errors[0]


def closed(url: str, kind: RequestKind, callers: int, seconds: float) -> Load:
    """Measure a closed loop: each caller sends a request as soon as its previous one is complete.

    Counting starts once every caller has had a response. Responses arrive in batches: the rate is that between the
    last response before the window and the last one in it.
    """
    completed: list[tuple[float, float]] = []
    rejected = [0] * callers
    waited_for = callers
    window, first = threading.Event(), threading.Lock()
    end = float("inf")

    def call(number: int) -> None:
        nonlocal end
        try:
            send_repeatedly(number)
        except BaseException:
            end = 0.0  # ends all callers
            window.set()
            raise

    def send_repeatedly(number: int) -> None:
        nonlocal end, waited_for
        caller, turn = Caller(url, kind), number
        while (started := time.perf_counter()) < end:
            status = caller.send(turn)
            now = time.perf_counter()
            if turn == number:
                with first:
                    waited_for -= 1
                    if not waited_for:
                        end = now + seconds
                        window.set()
            turn += 1
            if status == 503:
                rejected[number] += 1
            else:
                completed.append((now, now - started))
        caller.close()

    with _threads(callers, call):
        window.wait()
    begin = end - seconds
    counted = [seconds_taken for now, seconds_taken in completed if begin < now <= end]
    if not counted:
        raise RuntimeError(f"no response of {kind.path} within {seconds} s: measure for longer")
    last = max(now for now, _ in completed if now <= end)
    return Load(len(counted) / (last - begin), counted, sum(rejected))


def opened(url: str, kind: RequestKind, rate: float, seconds: float, callers: int = 64) -> Load:
    """Measure an open loop at a constant rate; the time of a request includes its wait for a free caller."""
    due: queue.SimpleQueue[tuple[int, float] | None] = queue.SimpleQueue()
    taken: list[float] = []
    rejected = [0] * callers

    def call(number: int) -> None:
        caller = Caller(url, kind)
        while (job := due.get()) is not None:
            turn, when = job
            if caller.send(turn) == 503:
                rejected[number] += 1
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
    return Load(len(taken) / (time.perf_counter() - begin), taken, sum(rejected))
