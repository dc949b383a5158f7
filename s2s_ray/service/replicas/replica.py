"""The base of the deployments of a model or an index: a replica that holds releases.

Each call carries its release, and its result comes from that release and no other. Results come with the seconds that
the model or the index took; the rest of the caller's wait was queueing and transport.
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
from s2s_ray.service.replicas.accelerator import is_lost
from s2s_ray.service.rollout.releases import ReleaseKey, candidates, locate
from s2s_ray.service.settings import ServeArgs

log = logging.getLogger("s2s_ray.service")

T = TypeVar("T")
MAX_HELD = 2  # the current release and the next or the previous one
IDLE_RELEASE_S = 120.0  # how long the previous release is kept, for requests that still carry its stamp


@dataclass(slots=True)
class _Slot(Generic[T]):
    loading: asyncio.Future[T]
    used: float


class ReleaseSlots(Generic[T]):
    """The releases that one replica holds: at most two, each loaded once, outside the event loop.

    Args:
        load: loads a release.
        part: the part of a key that `load` depends on; keys with the same part share what was loaded.
    """

    def __init__(self, load: Callable[[ReleaseKey], T], part: Callable[[ReleaseKey], ReleaseKey]) -> None:
        self._load = load
        self._part = part
        self._slots: dict[ReleaseKey, _Slot[T]] = {}

    async def start(self, args: ServeArgs) -> None:
        """Load the first candidate that can be loaded.

        Raises:
            S2SError: none can be loaded; the error is that of the last one.
        """
        choices = candidates(args)
        for number, release in enumerate(choices):
            try:
                await self.get((await asyncio.to_thread(locate, args, release)).key)
                return
            except S2SError as error:
                if number == len(choices) - 1:
                    raise
                log.error("release %s cannot be served (%s); trying the previous one", release, error)

    async def get(self, key: ReleaseKey) -> T:
        """Return the loaded release, loading it first if necessary.

        Raises:
            ReleaseNotLoadedError: it cannot be loaded.
            RuntimeError: the accelerator of this process has failed.
        """
        key = self._part(key)
        slot = self._slots.get(key)
        if slot is None:
            slot = self._slots[key] = _Slot(asyncio.ensure_future(asyncio.to_thread(self._load, key)), time.monotonic())
            self._drop_oldest()
        slot.used = time.monotonic()
        if slot.loading.done() and not slot.loading.exception():
            return slot.loading.result()
        try:
            return await asyncio.shield(slot.loading)
        except Exception as error:  # whatever loading raised, the replica stays alive
            if self._slots.get(key) is slot:
                del self._slots[key]
            if is_lost(error):
                raise  # the release may be sound: another replica can load it
            raise ReleaseNotLoadedError(f"release {key.id} cannot be loaded: {error}") from None

    def held(self) -> list[str]:
        """Return the ids of the releases that are loaded."""
        return [key.id for key, slot in self._slots.items() if slot.loading.done() and not slot.loading.exception()]

    def release_idle(self, idle_s: float) -> None:
        """Drop the releases that have not been used for a while, except the most recently used one."""
        newest = max(self._slots.values(), key=lambda slot: slot.used, default=None)
        for key, slot in list(self._slots.items()):
            if slot is not newest and slot.loading.done() and time.monotonic() - slot.used > idle_s:
                del self._slots[key]

    def _drop_oldest(self) -> None:
        while len(self._slots) > MAX_HELD:
            oldest = min(self._slots, key=lambda key: self._slots[key].used)
            del self._slots[oldest]


class Timed(NamedTuple):
    """A result, and the seconds of work that it took."""

    result: Any
    seconds: float


class Replica(ABC, Generic[T]):
    """A deployment that holds releases and can load them ahead of requests."""

    def __init__(self) -> None:
        self._slots: ReleaseSlots[T] = ReleaseSlots(self._load, ReleaseKey.uncalibrated)

    @abstractmethod
    def _load(self, key: ReleaseKey) -> T:
        """Load what the replica needs of a release besides its calibration; called in a thread."""

    async def prepare(self, key: ReleaseKey) -> None:
        """Load a release ahead of requests. Raises ReleaseNotLoadedError."""
        await self._slots.get(key)

    async def held(self) -> list[str]:
        """Return the ids of the releases that are loaded."""
        return self._slots.held()

    def check_health(self) -> None:
        """Drop idle releases. Serve calls this every few seconds, and replaces a replica for which it raises."""
        self._slots.release_idle(IDLE_RELEASE_S)
