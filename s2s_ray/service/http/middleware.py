"""The middleware around every request: its release, its deadline, its headers, its metrics and its log line."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from s2s_ray.service.http.exchange import PERHAPS_CHANGED, Exchange, Service

access_log = logging.getLogger("s2s_ray.service.access")
log = logging.getLogger("s2s_ray.service")

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class ExchangeMiddleware:
    """Creates the `Exchange` of each request (`request.state.exchange`), and reports it when it ends.

    It also limits the time of a request (504) and turns every other exception into a response (500).
    """

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

        async def send_stamped(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                added = MutableHeaders(scope=message)
                added["X-Request-ID"] = exchange.id
                if exchange.stamp is not None:
                    added["S2S-Release"] = exchange.stamp.id
            await send(message)

        seconds = _timeout(headers, self._service.args.timeout_s)
        limit = asyncio.timeout(seconds)
        try:
            async with limit:
                await self._app(scope, receive, send_stamped)
        except Exception as error:
            if isinstance(error, TimeoutError) and limit.expired():
                outcome = f". {PERHAPS_CHANGED}" if exchange.changing else "; work that had not started was dropped."
                sentence = f"The request was not completed within {seconds:g} s{outcome}"
                response = JSONResponse({"error": sentence}, 504)
            else:  # also the time-out of a library, which says nothing about the caller's deadline
                log.exception("request %s failed", exchange.id)
                sentence = f"The service failed on this request; its log has the reason, under {exchange.id}."
                if exchange.changing:
                    sentence += f" {PERHAPS_CHANGED}"
                response = JSONResponse({"error": sentence}, 500)
            if not status:
                await response(scope, receive, send_stamped)
        except asyncio.CancelledError:
            status = status or 499  # the caller has disconnected; reverse proxies use this status, too
            raise
        finally:
            exchange.close()
            self._report(scope, exchange, status, time.perf_counter() - started)

    def _report(self, scope: Scope, exchange: Exchange, status: int, seconds: float) -> None:
        route = scope.get("route")
        endpoint = getattr(route, "path", "other")
        recorder = self._service.recorder
        recorder.request(endpoint, status, seconds, exchange.images)
        for stage, spent in exchange.stages.items():
            recorder.stage(stage, spent)
        fields = {
            "request_id": exchange.id,
            "method": scope["method"],
            "path": scope["path"],
            "status": status,
            "seconds": round(seconds, 4),
            "release": None if exchange.stamp is None else exchange.stamp.id,
            "images": exchange.images,
            "caller": exchange.caller,
            "stages": {stage: round(spent, 4) for stage, spent in exchange.stages.items()},
        }
        access_log.info("%s %s %d", scope["method"], scope["path"], status, extra={"fields": fields})


def _request_id(headers: Headers) -> str:
    """Return the caller's own id if it is safe to log, or a new one."""
    given = headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def _timeout(headers: Headers, limit: float) -> float:
    try:
        requested = float(headers.get("s2s-timeout", limit))
    except ValueError:
        return limit  # the routes respond with 400
    return min(requested, limit) if requested > 0 else limit
