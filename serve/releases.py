"""Releases as the service holds them: resolved once, loaded once, changed together.

Every request is stamped with one release when it comes in, and every call it makes carries that stamp. A replica
that does not hold the release yet loads it before it answers, so that no answer is ever mixed; the rollout sees to
it that requests are stamped with a release only when all replicas have loaded it, so that nobody waits.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from s2s_ray import registry, storage
from s2s_ray.checkpoint import model_config, read_meta
from s2s_ray.data.views import ViewGeometry
from s2s_ray.index import read_info
from serve.schemas import IndexDescription, ModelInfo, finite
from serve.settings import ServeArgs

log = logging.getLogger("s2s_ray.serve")

T = TypeVar("T")
MOST_HELD = 2  # the current release and the next, or the one before


class ReleaseKey(NamedTuple):
    """What a call carries: enough for a replica to load the release."""

    id: str
    checkpoint_uri: str
    index_uri: str


@dataclass(frozen=True, slots=True)
class ServedRelease:
    """A release as the ingress needs it."""

    key: ReleaseKey
    geometry: ViewGeometry
    description: ModelInfo

    @property
    def id(self) -> str:
        return self.key.id


class ReleaseNotLoadedError(RuntimeError):
    """A release that a replica could not load; the message says why."""


def resolve(args: ServeArgs, release: str | None = None) -> ServedRelease:
    """What the arguments ask for, or another release of the same name.

    Raises:
        RegistryError, StorageError, CheckpointError, ReferenceIndexError: what is to be served is not there, or
            the index is of another checkpoint.
    """
    if args.registry is not None and args.name is not None:
        found = registry.resolve(storage.absolute(args.registry), args.name, release or args.release)
        if found.index_uri is None:
            raise registry.RegistryError(
                f"registry {args.registry}: release {found.id!r} of {args.name!r} has no index; attach one first"
            )
        key, mark = ReleaseKey(found.id, found.checkpoint_uri, found.index_uri), found.fingerprint
    else:
        assert args.checkpoint is not None
        assert args.index is not None, "ServeArgs has one or the other"
        checkpoint, index = storage.absolute(args.checkpoint), storage.absolute(args.index)
        mark = registry.fingerprint(checkpoint)
        key = ReleaseKey(registry.release_id(read_meta(checkpoint), mark), checkpoint, index)
    meta, info = read_meta(key.checkpoint_uri), read_info(key.index_uri)
    config = model_config(meta, key.checkpoint_uri)
    info.require(config.descriptor_size, mark)
    geometry = ViewGeometry.of_checkpoint(config, meta)
    description = ModelInfo(
        release=key.id,
        run=meta.get("run"),
        step=meta.get("step"),
        epoch=meta.get("epoch"),
        metrics=finite(meta.get("metrics") or {}),
        height=config.height,
        width=config.width,
        descriptor_size=config.descriptor_size,
        synthesizes=config.synthesizes,
        panorama_rows=geometry.panorama_rows,
        index=IndexDescription(kind=info.kind, count=info.count, dataset=info.dataset, split=info.split),
    )
    return ServedRelease(key, geometry, description)


def candidates(args: ServeArgs) -> list[str | None]:
    """Releases to start with, the best first: a damaged one must not keep the service down. None: as given."""
    if not args.follows:
        return [None]
    assert args.registry is not None
    assert args.name is not None
    return list(registry.lineage(storage.absolute(args.registry), args.name)) or [None]


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
                await self.get((await asyncio.to_thread(resolve, args, release)).key)
                return
            except (ValueError, ReleaseNotLoadedError) as error:
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
