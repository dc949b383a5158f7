"""The change of the served release while the service runs."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any, Protocol

from ray.exceptions import RayActorError
from ray.serve.exceptions import DeploymentUnavailableError

from s2s_ray import registry, storage
from s2s_ray.errors import S2SError
from s2s_ray.runtime.cluster import original_error
from s2s_ray.secrets import masked
from s2s_ray.service.replicas.accelerator import is_lost
from s2s_ray.service.rollout.releases import ReleaseKey, calibrated_since, candidates
from s2s_ray.service.rollout.served_release import ServedRelease, resolve
from s2s_ray.service.settings import ServeArgs

log = logging.getLogger("s2s_ray.service")

PREPARE_S = 600.0  # longest wait for all replicas to load a release
RETRY_FAULTY_S = 30.0  # pause before a release that could not be loaded is tried again
_NOT_YET = (RayActorError, DeploymentUnavailableError, TimeoutError)
FRESH_S = 2.0  # maximum age of the counts of replicas


class Replicas(Protocol):
    """All replicas of a deployment; Serve's `DeploymentHandle` is one."""

    def broadcast(self, method_name: str, *args: Any) -> Any: ...


class Rollout:
    """Follows the registry: has the next release loaded everywhere, then stamps all new requests with it.

    Each ingress replica does this independently; a replica loads a release once, however often it is requested.

    Args:
        args: the settings of the service.
        deployments: all deployments that hold releases, by name.
        on_change: called with each release that becomes the served one, and the id of the previous one.
        on_poll: called with the served release after every check of the registry.
    """

    def __init__(
        self,
        args: ServeArgs,
        deployments: dict[str, Replicas],
        on_change: Callable[[ServedRelease, str | None], None],
        on_poll: Callable[[ServedRelease], None] = lambda _release: None,
    ) -> None:
        self.current: ServedRelease | None = None
        self.next: str | None = None
        self.fault: str | None = None
        self._args = args
        self._deployments = deployments
        self._required = {name for name in deployments if getattr(args, name).min_replicas > 0}
        self._on_change = on_change
        self._on_poll = on_poll
        self._faulty: dict[str | None, float] = {}
        self._logged: set[str | None] = set()  # releases whose loading was reported
        self._held: tuple[float, dict[str, int]] = (-FRESH_S, {})
        self._counting = asyncio.Lock()

    async def watch(self) -> None:
        """Follow the registry until cancelled."""
        while True:
            try:
                await self.step()
            except Exception as error:  # the registry may be unreachable for a while; the served release stays
                self.fault = "The registry cannot be read."
                log.error("could not follow the registry: %s", error, exc_info=not isinstance(error, S2SError))
            if self.current is not None:
                self._on_poll(self.current)
            first = self.current is None
            await asyncio.sleep(min(0.2, self._args.poll_s) if first else self._args.poll_s)

    async def step(self) -> None:
        """Switch to the release that the registry names, if it is another one and can be loaded.

        The served release is loaded again, under the same id, once it has got a calibration.
        """
        if self.current is None:
            for release in await asyncio.to_thread(candidates, self._args):
                if await self._switch_to(release):
                    return
            return
        wanted = await asyncio.to_thread(self._wanted) if self._args.follows else None
        if wanted is None or wanted == self.current.id:
            if await asyncio.to_thread(calibrated_since, self._args, self.current.key):
                await self._switch_to(self.current.id)
            else:
                self.next = self.fault = None
        else:
            await self._switch_to(wanted)

    async def replicas(self) -> dict[str, int]:
        """Return the number of replicas of each deployment that hold the current release, at most two seconds old."""
        async with self._counting:
            counted, held = self._held
            if time.monotonic() - counted > FRESH_S:
                counts = await asyncio.gather(*map(self._count, self._deployments))
                held = dict(zip(self._deployments, counts, strict=True))
                self._held = time.monotonic(), held
            return held

    async def ready(self) -> bool:
        """Return true if a release is loaded on every deployment that may not scale to zero."""
        if self.current is None:
            return False
        held = await self.replicas()
        return all(held[name] for name in self._required)

    def _wanted(self) -> str | None:
        assert self._args.registry is not None
        assert self._args.name is not None
        root = storage.absolute(self._args.registry)
        if self._args.follow == "best":
            return registry.promote_best(root, self._args.name, self._args.best_metric)
        return registry.current(root, self._args.name)

    async def _switch_to(self, wanted: str | None) -> bool:
        if time.monotonic() - self._faulty.get(wanted, -RETRY_FAULTY_S) < RETRY_FAULTY_S:
            return False
        self.next = wanted
        try:
            release = await asyncio.to_thread(resolve, self._args, wanted)
            await asyncio.gather(*(self._prepare(name, release.key) for name in self._deployments))
        except Exception as error:  # whatever is wrong with the next release, the served one stays
            if isinstance(error, _NOT_YET) or is_lost(error):
                if wanted not in self._logged:  # retried several times a second, logged once
                    log.warning("release %s is not loaded everywhere yet: %s", wanted, error)
                self._logged.add(wanted)
                self.fault = "It is not loaded on all replicas yet."
                return False
            original = original_error(error)  # that of a replica comes with the traceback of its call
            unexpected = not isinstance(original, S2SError)
            log.error("release %s cannot be served: %s", wanted, original, exc_info=unexpected)
            self._faulty[wanted] = time.monotonic()
            self.fault = f"It cannot be read ({type(original).__name__})." if unexpected else masked(str(original))
            return False
        self._logged.clear()
        previous, self.current = self.current, release
        self.next = self.fault = None
        self._held = (-FRESH_S, {})
        if previous is not None and previous.id == release.id:
            log.info("release %s has a calibration now", release.id)
        else:
            self._on_change(release, None if previous is None else previous.id)
            log.info("release %s replaces %s", release.id, previous and previous.id)
        return True

    async def _prepare(self, name: str, key: ReleaseKey) -> None:
        try:
            await self._deployments[name].broadcast("prepare", key).results_async(timeout_s=PREPARE_S)
        except DeploymentUnavailableError:
            if name in self._required:
                raise

    async def _count(self, name: str) -> int:
        assert self.current is not None
        try:
            held = await self._deployments[name].broadcast("held").results_async(timeout_s=5, return_exceptions=True)
        except (DeploymentUnavailableError, TimeoutError):
            return 0
        return sum(isinstance(one, list) and self.current.id in one for one in held)
