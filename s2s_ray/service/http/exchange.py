"""One request on its way through the ingress, and what all requests of an ingress replica share."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from ray.exceptions import ObjectLostError, RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError

from s2s_ray.errors import ReleaseNotLoadedError, RequestError, S2SError
from s2s_ray.runtime.cluster import original_error
from s2s_ray.service.http.holding import Image
from s2s_ray.service.replicas.accelerator import is_full, is_lost
from s2s_ray.service.rollout.rollout import Rollout
from s2s_ray.service.rollout.served_release import ServedRelease
from s2s_ray.service.settings import ServeArgs
from s2s_ray.service.telemetry import Recorder

T = TypeVar("T")
log = logging.getLogger("s2s_ray.service")

_LOST = (DeploymentUnavailableError, ReplicaUnavailableError, RayActorError, ObjectLostError)
MAX_RETRIES = 6  # with growing pauses about 6 s, as long as Serve takes to replace the only replica
_FIRST_PAUSE_S = 0.1
PERHAPS_CHANGED = "The change may have been made; list the releases before you try again."


class Handle(Protocol):
    """The part of a deployment that the ingress calls; Serve's `DeploymentHandle` and its methods have it."""

    def remote(self, *args: Any) -> Awaitable[Any]: ...


@dataclass(slots=True)
class Service:
    """The state that all requests of one ingress replica share."""

    args: ServeArgs
    rollout: Rollout
    handles: dict[str, Any]
    """By name: street, satellite, synthesis, search."""
    decoders: ThreadPoolExecutor
    recorder: Recorder
    held_bytes: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    """Guards the counts of held bytes, which threads change as well."""

    @property
    def max_bytes(self) -> int:
        return round(self.args.max_upload_mb * 1e6)

    @property
    def max_pixels(self) -> int:
        return round(self.args.max_megapixels * 1e6)

    @property
    def retry_after(self) -> dict[str, str]:
        """The header of a 503 that says when to try again."""
        return {"Retry-After": str(math.ceil(self.args.retry_after_s))}

    def overloaded(self, sentence: str) -> RequestError:
        """Return the error to raise for a request that may succeed later."""
        return RequestError(503, sentence, self.retry_after)


@dataclass(slots=True)
class Exchange:
    """One request. All its work uses the release that it was stamped with."""

    service: Service
    stamp: ServedRelease | None
    id: str
    images: int = 0
    caller: str | None = None
    stages: dict[str, float] = field(default_factory=dict)
    uploads: list[Image] = field(default_factory=list)
    held_bytes: int = 0
    changing: bool = False
    """True once the request changes the current release, which goes on even if the request ends before it does."""
    _working: int = 0
    _ended: bool = False

    @property
    def release(self) -> ServedRelease:
        """The release of the request. Raises RequestError (503) until one is loaded."""
        if self.stamp is None:
            raise self.service.overloaded("No release is loaded yet; try again later.")
        return self.stamp

    def hold(self, count: int) -> None:
        """Account for bytes of the body.

        Raises:
            RequestError: 503 if all requests together hold too many; 413 if this one does alone.
        """
        limit = round(self.service.args.max_pending_mb * 1e6)
        with self.service.lock:
            self.held_bytes += count
            self.service.held_bytes += count
            full = self.service.held_bytes > limit
        if full and count > 0:
            if self.held_bytes > limit:
                raise RequestError(
                    413, f"The body takes more than the {limit:,} bytes that the service can hold; make it smaller."
                )
            raise self.service.overloaded("The service holds as many images as it can; try again later.")

    def close(self) -> None:
        """Drop the images. They count as held until the last thread that works on one has ended."""
        for image in self.uploads:
            image.content = b""
        with self.service.lock:
            self._ended = True
            self._let_go()

    def _let_go(self) -> None:
        if self._ended and not self._working:
            self.service.held_bytes -= self.held_bytes
            self.held_bytes = 0

    def spent(self, stage: str, seconds: float) -> None:
        """Record the seconds of one stage; of several images the slowest counts."""
        self.stages[stage] = max(seconds, self.stages.get(stage, 0.0))

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Run CPU work outside the event loop; the thread pool bounds the number of images that are open.

        A request that ends does not wait for its work: what has not started is dropped.
        """
        queued = time.perf_counter()
        started = queued

        def timed() -> T:
            nonlocal started
            with self.service.lock:
                if self._ended:
                    raise CancelledError  # while it waited for a thread
                self._working += 1
            try:
                started = time.perf_counter()
                return work()
            finally:
                with self.service.lock:
                    self._working -= 1
                    self._let_go()

        try:
            return await asyncio.get_running_loop().run_in_executor(self.service.decoders, timed)
        finally:
            self.spent("queue", started - queued)

    async def call(self, deployment: str, stage: str, *args: Any, method: str | None = None) -> Any:
        """Call a deployment with this request's release, and retry if a replica, or its accelerator, is lost.

        All calls are idempotent, so each may be retried.

        Raises:
            RequestError: 503 if the deployment is overloaded, cannot load the release, is out of memory, or stays lost.
            RuntimeError: the deployment failed on this request.
        """
        key, handle = self.release.key, self.service.handles[deployment]
        target: Handle = getattr(handle, method) if method else handle
        for attempt in range(MAX_RETRIES + 1):
            started = time.perf_counter()
            # Caught here and not by exception handlers of the application, which Serve replaces with its own.
            try:
                result, seconds = await target.remote(key, *args)
            except BackPressureError:
                raise self.service.overloaded("The service is overloaded; try again later.") from None
            except ReleaseNotLoadedError as error:
                log.error("%s", original_error(error))
                raise self.service.overloaded("A replica cannot load the release; try again later.") from None
            except Exception as error:
                if isinstance(error, _LOST) or is_lost(error):
                    if attempt == MAX_RETRIES:
                        raise self.service.overloaded("A replica was lost; try again later.") from None
                    self.service.recorder.retried(deployment)
                    await asyncio.sleep(_FIRST_PAUSE_S * 2**attempt)
                elif is_full(error):
                    log.error("%s is out of memory: %s", deployment, error)
                    raise self.service.overloaded("A replica is out of memory; try again later.") from None
                elif isinstance(error, S2SError):
                    # Whatever the class says, it is not the caller's mistake: the ingress has validated the request.
                    raise RuntimeError(f"{deployment} failed: {error}") from error
                else:
                    raise
            else:
                self.spent(stage, seconds)
                self.spent("queue", max(0.0, time.perf_counter() - started - seconds))
                return result
        raise AssertionError("unreachable")
