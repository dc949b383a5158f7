"""One request on its way through the ingress: its stamp, its deadline, what it holds, and what is told about it."""

from __future__ import annotations

import asyncio
import logging
import math
import re
import time
import uuid
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from fastapi.responses import JSONResponse
from ray.exceptions import ObjectLostError, RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from s2s_ray.errors import ReleaseNotLoadedError, RequestError
from s2s_ray.service.rollout.rollout import Rollout
from s2s_ray.service.rollout.served import ServedRelease
from s2s_ray.service.settings import ServeArgs
from s2s_ray.service.telemetry import Recorder

T = TypeVar("T")
access = logging.getLogger("s2s_ray.service.access")
log = logging.getLogger("s2s_ray.service")

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_LOST = (DeploymentUnavailableError, ReplicaUnavailableError, RayActorError, ObjectLostError)
RETRIES = 6  # with growing pauses some 6 s: what Serve takes to replace a replica that was alone
_FIRST_PAUSE_S = 0.1


class Handle(Protocol):
    """What the ingress needs of a deployment; Serve's `DeploymentHandle` and its methods are such."""

    def remote(self, *args: Any) -> Awaitable[Any]: ...


@dataclass(slots=True)
class Service:
    """What all requests of one ingress replica share."""

    args: ServeArgs
    rollout: Rollout
    handles: dict[str, Any]
    """By name: street, satellite, synthesis, search."""
    decoders: ThreadPoolExecutor
    recorder: Recorder
    held_bytes: int = 0

    @property
    def max_bytes(self) -> int:
        return round(self.args.max_upload_mb * 1e6)

    @property
    def max_pixels(self) -> int:
        return round(self.args.max_megapixels * 1e6)

    def overloaded(self, sentence: str) -> RequestError:
        return RequestError(503, sentence, {"Retry-After": str(math.ceil(self.args.retry_after_s))})


@dataclass(slots=True)
class Exchange:
    """One request: everything it does, it does as of the release it was stamped with."""

    service: Service
    stamp: ServedRelease | None
    id: str
    images: int = 0
    caller: str | None = None
    stages: dict[str, float] = field(default_factory=dict)
    held_bytes: int = 0

    @property
    def release(self) -> ServedRelease:
        """Raises RequestError (503) until a release is loaded."""
        if self.stamp is None:
            raise self.service.overloaded("No release is loaded yet; try again later.")
        return self.stamp

    def hold(self, count: int) -> None:
        """Account for bytes of the body. Raises RequestError (503) where all requests hold too many."""
        self.held_bytes += count
        self.service.held_bytes += count
        if self.service.held_bytes > self.service.args.max_pending_mb * 1e6:
            raise self.service.overloaded("The service holds as many images as it can; try again later.")

    def spent(self, stage: str, seconds: float) -> None:
        """Seconds of one stage; the longest of several images' counts."""
        self.stages[stage] = max(seconds, self.stages.get(stage, 0.0))

    async def off_loop(self, work: Callable[[], T]) -> T:
        """Run work of the CPU beside the event loop; the pool bounds how many images are open at a time."""
        asked = time.perf_counter()
        begun = asked

        def timed() -> T:
            nonlocal begun
            begun = time.perf_counter()
            return work()

        try:
            return await asyncio.get_running_loop().run_in_executor(self.service.decoders, timed)
        finally:
            self.spent("queue", begun - asked)

    async def ask(self, deployment: str, stage: str, *args: Any, method: str | None = None) -> Any:
        """An answer of a deployment from this request's release; again from another replica where one is lost.

        Every call may be repeated: none changes anything. Raises RequestError (503).
        """
        key, handle = self.release.key, self.service.handles[deployment]
        target: Handle = getattr(handle, method) if method else handle
        for attempt in range(RETRIES + 1):
            asked = time.perf_counter()
            # Caught here and not by exception handlers of the application, which Serve replaces with its own.
            try:
                answer, seconds = await target.remote(key, *args)
            except BackPressureError:
                raise self.service.overloaded("The service has more work than it can take; try again later.") from None
            except ReleaseNotLoadedError as error:
                log.error("%s", error)
                raise self.service.overloaded("A replica cannot load the release; try again later.") from None
            except _LOST:
                if attempt == RETRIES:
                    raise self.service.overloaded("A replica was lost; try again later.") from None
                self.service.recorder.retried(deployment)
                await asyncio.sleep(_FIRST_PAUSE_S * 2**attempt)
            else:
                self.spent(stage, seconds)
                self.spent("queue", max(0.0, time.perf_counter() - asked - seconds))
                return answer
        raise AssertionError("unreachable")


class Frame:
    """Around every request: the stamp, the deadline, the headers of the answer, the figures and the log line."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        exchange = Exchange(self._service, self._service.rollout.current, _request_id(headers))
        scope.setdefault("state", {})["exchange"] = exchange
        started, status = time.perf_counter(), 0

        async def stamped(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                answer = MutableHeaders(scope=message)
                answer["X-Request-ID"] = exchange.id
                if exchange.stamp is not None:
                    answer["S2S-Release"] = exchange.stamp.id
            await send(message)

        seconds = _timeout(headers, self._service.args.timeout_s)
        try:
            async with asyncio.timeout(seconds):
                await self._app(scope, receive, stamped)
        except TimeoutError:
            if not status:
                sentence = f"There was no answer within {seconds:g} s; what had not begun was dropped."
                await JSONResponse({"error": sentence}, 504)(scope, receive, stamped)
        except Exception:
            log.exception("request %s failed", exchange.id)
            if not status:
                sentence = f"The service failed on this request; its log says why, under {exchange.id}."
                await JSONResponse({"error": sentence}, 500)(scope, receive, stamped)
        except asyncio.CancelledError:
            status = status or 499  # the caller has gone; the figure is what reverse proxies call it
            raise
        finally:
            self._service.held_bytes -= exchange.held_bytes
            self._tell(scope, exchange, status, time.perf_counter() - started)

    def _tell(self, scope: Scope, exchange: Exchange, status: int, seconds: float) -> None:
        route = scope.get("route")
        endpoint = getattr(route, "path", "other")
        recorder = self._service.recorder
        recorder.request(endpoint, status, seconds, exchange.images)
        for stage, taken in exchange.stages.items():
            recorder.stage(stage, taken)
        fields = {
            "request_id": exchange.id,
            "method": scope["method"],
            "path": scope["path"],
            "status": status,
            "seconds": round(seconds, 4),
            "release": None if exchange.stamp is None else exchange.stamp.id,
            "images": exchange.images,
            "caller": exchange.caller,
            "stages": {stage: round(taken, 4) for stage, taken in exchange.stages.items()},
        }
        access.info("%s %s %d", scope["method"], scope["path"], status, extra={"fields": fields})


def _request_id(headers: Headers) -> str:
    """The caller's own id, where it is one that may stand in a log, or a new one."""
    given = headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def _timeout(headers: Headers, most: float) -> float:
    try:
        asked = float(headers.get("s2s-timeout", most))
    except ValueError:
        return most  # the routes answer 400
    return min(asked, most) if asked > 0 else most
