"""What every deployment of a model or an index is: a replica that holds releases.

Calls carry the release they are meant for, and are answered from it and no other. Answers come with the seconds
that the model or the index itself took; what the caller waited beyond that was queueing and transport.
"""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

from s2s_ray.errors import ReleaseNotLoadedError, S2SError
from s2s_ray.service.rollout.releases import (
    ReleaseKey,
    candidates,
    locate,
)
from s2s_ray.service.settings import ServeArgs

log = logging.getLogger("s2s_ray.service")

T = TypeVar("T")
MOST_HELD = 2  # the current release and the next, or the one before
IDLE_RELEASE_S = 120.0  # the release before stays this long, for requests that still carry its stamp


@dataclass(slots=True)
class _Slot(Generic[T]):
    loading: asyncio.Future[T]
    used: float


class ReleaseSlots(Generic[T]):
    """What one replica holds: at most two releases, each loaded once, beside the event loop."""

    def __init__(self, load: Callable[[ReleaseKey], T]) -> None:
        self._load = load
        self._slots: dict[ReleaseKey, _Slot[T]] = {}

    async def start(self, args: ServeArgs) -> None:
        """Load the first of the candidates that can be loaded. Raises what loading the last one raises."""
        choices = candidates(args)
        for place, release in enumerate(choices):
            try:
                await self.get((await asyncio.to_thread(locate, args, release)).key)
                return
            except S2SError as error:
                if place == len(choices) - 1:
                    raise
                log.error("release %s cannot be served (%s); trying the one before", release, error)

    async def get(self, key: ReleaseKey) -> T:
        """The loaded release; loads it where it is not held yet. Raises ReleaseNotLoadedError."""
        slot = self._slots.get(key)
        if slot is None:
            slot = self._slots[key] = _Slot(asyncio.ensure_future(asyncio.to_thread(self._load, key)), time.monotonic())
            self._make_room()
        slot.used = time.monotonic()
        if slot.loading.done() and not slot.loading.exception():
            return slot.loading.result()
        try:
            return await asyncio.shield(slot.loading)
        except Exception as error:  # whatever loading raised, the replica lives on
            if self._slots.get(key) is slot:
                del self._slots[key]
            raise ReleaseNotLoadedError(f"release {key.id} cannot be loaded: {error}") from None

    def held(self) -> list[str]:
        """Ids of the releases that are loaded."""
        return [key.id for key, slot in self._slots.items() if slot.loading.done() and not slot.loading.exception()]

    def release_idle(self, idle_s: float) -> None:
        """Let go of releases that nobody has asked for in a while, but of the one asked for last never."""
        newest = max(self._slots.values(), key=lambda slot: slot.used, default=None)
        for key, slot in list(self._slots.items()):
            if slot is not newest and slot.loading.done() and time.monotonic() - slot.used > idle_s:
                del self._slots[key]

    def _make_room(self) -> None:
        while len(self._slots) > MOST_HELD:
            oldest = min(self._slots, key=lambda key: self._slots[key].used)
            del self._slots[oldest]


class Timed(NamedTuple):
    """An answer, and the seconds of work in it."""

    answer: Any
    seconds: float


class Replica(ABC, Generic[T]):
    """Holds releases; loads them before they are asked for."""

    def __init__(self) -> None:
        self._slots: ReleaseSlots[T] = ReleaseSlots(self._load)

    @abstractmethod
    def _load(self, key: ReleaseKey) -> T:
        """Make a release ready; in a thread."""

    async def prepare(self, key: ReleaseKey) -> None:
        """Load a release, for requests to come. Raises ReleaseNotLoadedError."""
        await self._slots.get(key)

    async def held(self) -> list[str]:
        """Ids of the releases that are loaded."""
        return self._slots.held()

    def check_health(self) -> None:
        """Serve calls this every few seconds, and replaces a replica for which it raises."""
        self._slots.release_idle(IDLE_RELEASE_S)
