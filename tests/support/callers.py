"""Concurrent callers of a served release, and their outcomes."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import httpx2
import numpy as np
from numpy.typing import NDArray
from prometheus_client.parser import text_string_to_metric_families

from s2s_ray import registry
from s2s_ray.client import Client
from s2s_ray.geo.images import encode
from s2s_ray.inference import Localizer
from tests.support.served import PATIENT_S, Running, noise, replicas

T = TypeVar("T")
PANORAMA = noise(60, 120, 3)
BODY = encode(PANORAMA, "png")
CALLERS = 4
MANY = 16
FLOOD, RATE = 500, 250


class Outcome(NamedTuple):
    """The outcome of one request: status (0: no response), release, best match and its distance, and duration."""

    status: int
    release: str | None
    best: tuple[str, float] | None
    seconds: float


@contextmanager
def load(send: Callable[[], Outcome]) -> Iterator[list[Outcome]]:
    """Run callers that each send one request after the other for the duration of the block; yield their outcomes."""
    outcomes: list[Outcome] = []
    ending = threading.Event()

    def call() -> None:
        while not ending.is_set():
            outcomes.append(send())

    threads = [threading.Thread(target=call) for _ in range(CALLERS)]
    for thread in threads:
        thread.start()
    try:
        yield outcomes
    finally:
        ending.set()
        for thread in threads:
            thread.join()


def raw(running: Running) -> Callable[[], Outcome]:
    """Return a function that sends one request without retries."""

    def send() -> Outcome:
        started = time.monotonic()
        try:
            response = running.http.post(
                "/v1/localize?k=3&heading=0", content=BODY, headers={"content-type": "image/png"}
            )
        except httpx2.TransportError:
            return Outcome(0, None, None, time.monotonic() - started)
        seconds = time.monotonic() - started
        if response.status_code != 200:
            return Outcome(response.status_code, response.headers.get("s2s-release"), None, seconds)
        tree = response.json()
        assert response.headers["s2s-release"] == tree["release"]
        first = tree["matches"][0]
        return Outcome(200, tree["release"], (first["id"], first["descriptor_distance"]), seconds)

    return send


def many_at_once(running: Running) -> Callable[[], Outcome]:
    """Return a function that sends many panoramas in one request, which keeps the street replica busy."""
    parts = [("image", (f"{number}.png", BODY, "image/png")) for number in range(MANY)]

    def send() -> Outcome:
        started = time.monotonic()
        status = running.http.post("/v1/embed/street?heading=0", files=parts).status_code
        return Outcome(status, None, None, time.monotonic() - started)

    return send


def patient(running: Running) -> Callable[[], Outcome]:
    """Return a function that sends one request through the client, which retries."""

    def send() -> Outcome:
        started = time.monotonic()
        with Client(running.url, timeout_s=PATIENT_S) as client:
            [[first, *_]] = client.localize([BODY], k=3, heading=0)
        return Outcome(200, client.release, (first.id, first.descriptor_distance), time.monotonic() - started)

    return send


def expected(release: registry.Release) -> tuple[str, float]:
    """Return the best match of the panorama according to the plain classes."""
    assert release.index_uri is not None
    [[first, *_]] = Localizer.load(release.checkpoint_uri, release.index_uri).street([PANORAMA], k=3)
    return first.id, first.descriptor_distance


def until(condition: Callable[[], Any], seconds: float, failure: str) -> float:
    """Wait for the condition and return the seconds that it took."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds, failure
        time.sleep(0.2)
    return time.monotonic() - started


def summary(outcomes: list[Outcome]) -> str:
    statuses = Counter(outcome.status for outcome in outcomes)
    slowest = max(outcome.seconds for outcome in outcomes)
    return f"{len(outcomes)} responses {dict(sorted(statuses.items()))}, slowest {slowest:.2f} s"


def kill_replicas(running: Running, deployment: str) -> None:
    """Kill all replicas of a deployment under load; every request still succeeds."""
    with load(raw(running)) as outcomes:
        until(lambda: len(outcomes) > 10, 30, "no load")
        before = len(outcomes)
        for replica in replicas(running, deployment):
            replica.kill()
        until(lambda: len(outcomes) > before + 40, 90, "no responses any more")
    print(f"\n{deployment} killed: {summary(outcomes)}")
    assert {outcome.status for outcome in outcomes} == {200}, summary(outcomes)


def kill_ingress(running: Running) -> None:
    """Kill the ingress under load; requests of clients that retry still succeed."""
    [ingress] = replicas(running, "Ingress")
    with load(raw(running)) as unretried, load(patient(running)) as outcomes:
        until(lambda: len(outcomes) > 10 and len(unretried) > 10, 30, "no load")
        before = len(outcomes)
        ingress.kill()
        until(lambda: len(outcomes) > before + 30, 90, "no responses any more")
    print(f"\ningress killed: without retries {summary(unretried)}; through the client {summary(outcomes)}")
    assert {outcome.status for outcome in outcomes} == {200}


def settled(read: Callable[[Running], T], running: Running) -> T:
    """Return a reading of the metrics once it no longer changes."""
    before = read(running)
    for _ in range(20):
        time.sleep(2.5)
        after = read(running)
        if after == before:
            return after
        before = after
    raise AssertionError("the metrics keep changing")


def seconds_of_synthesis(running: Running) -> Counter[tuple[str, float]]:
    """Return the histogram of request durations of each ingress: the count for each upper bound in seconds."""
    found: Counter[tuple[str, float]] = Counter()
    for family in text_string_to_metric_families(running.http.get("/metrics").text):
        for sample in family.samples:
            labels = sample.labels
            if sample.name == "ray_s2s_request_seconds_bucket" and labels["endpoint"] == "/v1/synthesize":
                found[labels["replica"], float(labels["le"])] += int(sample.value)
    return found


class Flood(NamedTuple):
    """The outcomes of requests at a constant rate, whether or not earlier ones were completed."""

    outcomes: list[Outcome]
    accepted: NDArray[np.float64]
    """Seconds of each accepted request."""
    alone: float
    """Median seconds of a request without any other."""
    inside: Counter[float]
    """The number of requests that the ingress completed or rejected within each bound in seconds."""

    def within(self, share: float) -> float:
        """Return the smallest bound of the histogram that contains this share of the requests."""
        return min(bound for bound, count in self.inside.items() if count >= share * max(self.inside.values()))

    def __str__(self) -> str:
        return (
            f"open loop of {RATE} requests/s: {summary(self.outcomes)}; accepted: median "
            f"{np.median(self.accepted):.2f} s, at most {self.accepted.max():.2f} s; alone: {self.alone:.3f} s; the "
            f"{max(self.inside.values())} that reached the ingress: half within {self.within(0.5)} s, all within "
            f"{self.within(1)} s"
        )


def flood(running: Running) -> Flood:
    """Request synthesis one by one, and then at a constant rate."""
    tile = encode(noise(48, 48, 1), "png")
    alone = []
    for _ in range(10):
        started = time.monotonic()
        assert running.http.post("/v1/synthesize", content=tile).status_code == 200
        alone.append(time.monotonic() - started)
    before = settled(seconds_of_synthesis, running)

    async def one(http: httpx2.AsyncClient, after: float) -> Outcome:
        await asyncio.sleep(after)
        started = time.monotonic()
        response = await http.post("/v1/synthesize", content=tile)
        if response.status_code == 503:
            assert response.headers["retry-after"] == "1"
        return Outcome(response.status_code, None, None, time.monotonic() - started)

    async def all_of_them() -> list[Outcome]:
        async with httpx2.AsyncClient(
            base_url=running.url, timeout=60, limits=httpx2.Limits(max_connections=None), trust_env=False
        ) as http:
            return list(await asyncio.gather(*(one(http, number / RATE) for number in range(FLOOD))))

    outcomes = asyncio.run(all_of_them())
    accepted = np.array([outcome.seconds for outcome in outcomes if outcome.status == 200])
    inside: Counter[float] = Counter()
    for (_, bound), count in (settled(seconds_of_synthesis, running) - before).items():
        inside[bound] += count
    return Flood(outcomes, accepted, float(np.median(alone)), inside)
