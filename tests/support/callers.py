"""Callers of a served release, what they saw, and waiting for what they cause."""

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


class Answer(NamedTuple):
    """What one caller saw: status (0: no answer), release, best match and its distance, and how long it took."""

    status: int
    release: str | None
    best: tuple[str, float] | None
    seconds: float


@contextmanager
def load(ask: Callable[[], Answer]) -> Iterator[list[Answer]]:
    """Callers that ask one after the other, as long as the block lasts; their answers."""
    answers: list[Answer] = []
    ending = threading.Event()

    def call() -> None:
        while not ending.is_set():
            answers.append(ask())

    threads = [threading.Thread(target=call) for _ in range(CALLERS)]
    for thread in threads:
        thread.start()
    try:
        yield answers
    finally:
        ending.set()
        for thread in threads:
            thread.join()


def raw(running: Running) -> Callable[[], Answer]:
    """One request, not repeated."""

    def ask() -> Answer:
        started = time.monotonic()
        try:
            answer = running.http.post("/v1/localize?k=3", content=BODY, headers={"content-type": "image/png"})
        except httpx2.TransportError:
            return Answer(0, None, None, time.monotonic() - started)
        seconds = time.monotonic() - started
        if answer.status_code != 200:
            return Answer(answer.status_code, answer.headers.get("s2s-release"), None, seconds)
        tree = answer.json()
        assert answer.headers["s2s-release"] == tree["release"]
        first = tree["matches"][0]
        return Answer(200, tree["release"], (first["id"], first["descriptor_distance"]), seconds)

    return ask


def many_at_once(running: Running) -> Callable[[], Answer]:
    """One request with many panoramas: the street replica is what it waits for, not the ingress."""
    parts = [("image", (f"{place}.png", BODY, "image/png")) for place in range(MANY)]

    def ask() -> Answer:
        started = time.monotonic()
        status = running.http.post("/v1/embed/street", files=parts).status_code
        return Answer(status, None, None, time.monotonic() - started)

    return ask


def patient(running: Running) -> Callable[[], Answer]:
    """One question through the client, which asks again."""

    def ask() -> Answer:
        started = time.monotonic()
        with Client(running.url, timeout_s=PATIENT_S) as client:
            [[first, *_]] = client.localize([BODY], k=3)
        return Answer(200, client.release, (first.id, first.descriptor_distance), time.monotonic() - started)

    return ask


def expected(release: registry.Release) -> tuple[str, float]:
    """The best match of the panorama according to the plain classes."""
    assert release.index_uri is not None
    [[first, *_]] = Localizer.load(release.checkpoint_uri, release.index_uri).street([PANORAMA], k=3)
    return first.id, first.descriptor_distance


def until(condition: Callable[[], Any], seconds: float, what: str) -> float:
    """Seconds until the condition holds."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds, what
        time.sleep(0.2)
    return time.monotonic() - started


def summary(answers: list[Answer]) -> str:
    statuses = Counter(answer.status for answer in answers)
    slowest = max(answer.seconds for answer in answers)
    return f"{len(answers)} answers {dict(sorted(statuses.items()))}, slowest {slowest:.2f} s"


def kill_replicas(running: Running, deployment: str) -> None:
    """SIGKILL of all replicas of a deployment under load; every request is answered all the same."""
    with load(raw(running)) as answers:
        until(lambda: len(answers) > 10, 30, "no load")
        before = len(answers)
        for replica in replicas(running, deployment):
            replica.kill()
        until(lambda: len(answers) > before + 40, 90, "no answers any more")
    print(f"\n{deployment} killed: {summary(answers)}")
    assert {answer.status for answer in answers} == {200}, summary(answers)


def kill_ingress(running: Running) -> None:
    """SIGKILL under load; patient clients get an answer all the same."""
    [ingress] = replicas(running, "Ingress")
    with load(raw(running)) as blunt, load(patient(running)) as answers:
        until(lambda: len(answers) > 10 and len(blunt) > 10, 30, "no load")
        before = len(answers)
        ingress.kill()
        until(lambda: len(answers) > before + 30, 90, "no answers any more")
    print(f"\ningress killed: not repeated {summary(blunt)}; through the client {summary(answers)}")
    assert {answer.status for answer in answers} == {200}


def settled(read: Callable[[Running], T], running: Running) -> T:
    """Figures of the service once they no longer change."""
    before = read(running)
    for _ in range(20):
        time.sleep(2.5)
        after = read(running)
        if after == before:
            return after
        before = after
    raise AssertionError("the figures never rest")


def seconds_of_synthesis(running: Running) -> Counter[tuple[str, float]]:
    """The histograms of each ingress, from the arrival of a request to its answer: how many took at most so long."""
    found: Counter[tuple[str, float]] = Counter()
    for family in text_string_to_metric_families(running.http.get("/metrics").text):
        for sample in family.samples:
            labels = sample.labels
            if sample.name == "ray_s2s_request_seconds_bucket" and labels["endpoint"] == "/v1/synthesize":
                found[labels["replica"], float(labels["le"])] += int(sample.value)
    return found


class Flood(NamedTuple):
    """Answers to requests that come whether or not others were answered, and seconds of those that were accepted."""

    answers: list[Answer]
    accepted: NDArray[np.float64]
    alone: float
    inside: Counter[float]
    """Of those that reached the ingress, how many it answered (or refused) within so many seconds."""

    def within(self, share: float) -> float:
        """The least bound of the histogram that holds this share of them."""
        return min(bound for bound, count in self.inside.items() if count >= share * max(self.inside.values()))

    def __str__(self) -> str:
        return (
            f"open loop of {RATE} requests/s: {summary(self.answers)}; accepted: median {np.median(self.accepted):.2f} "
            f"s, at most {self.accepted.max():.2f} s; alone: {self.alone:.3f} s; the {max(self.inside.values())} that "
            f"reached the ingress: half within {self.within(0.5)} s of it, all within {self.within(1)} s"
        )


def flood(running: Running) -> Flood:
    """Synthesis, asked for one after the other and then all at once."""
    tile = encode(noise(48, 48, 1), "png")
    alone = []
    for _ in range(10):
        started = time.monotonic()
        assert running.http.post("/v1/synthesize", content=tile).status_code == 200
        alone.append(time.monotonic() - started)
    before = settled(seconds_of_synthesis, running)

    async def one(http: httpx2.AsyncClient, after: float) -> Answer:
        await asyncio.sleep(after)
        started = time.monotonic()
        answer = await http.post("/v1/synthesize", content=tile)
        if answer.status_code == 503:
            assert answer.headers["retry-after"] == "1"
        return Answer(answer.status_code, None, None, time.monotonic() - started)

    async def all_of_them() -> list[Answer]:
        async with httpx2.AsyncClient(
            base_url=running.url, timeout=60, limits=httpx2.Limits(max_connections=None), trust_env=False
        ) as http:
            return list(await asyncio.gather(*(one(http, place / RATE) for place in range(FLOOD))))

    answers = asyncio.run(all_of_them())
    accepted = np.array([answer.seconds for answer in answers if answer.status == 200])
    inside: Counter[float] = Counter()
    for (_, bound), count in (settled(seconds_of_synthesis, running) - before).items():
        inside[bound] += count
    return Flood(answers, accepted, float(np.median(alone)), inside)
