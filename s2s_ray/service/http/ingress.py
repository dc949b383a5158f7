"""The HTTP interface: bytes in, answers out, and a sentence for everything that is refused (docs/service.md).

Errors are `{"error": "..."}`. Every answer has the headers `S2S-Release` and `X-Request-ID`. What Serve's proxy
refuses before the ingress sees it (a full queue: 503 with `Retry-After`; its deadline: 408) is plain text.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import torch
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse
from ray import serve
from starlette.exceptions import HTTPException

from s2s_ray.errors import RequestError
from s2s_ray.service.http import page, routes
from s2s_ray.service.http.exchange import Frame, Service
from s2s_ray.service.rollout.rollout import Rollout
from s2s_ray.service.rollout.served import ServedRelease
from s2s_ray.service.settings import ServeArgs
from s2s_ray.service.telemetry import IngressMetrics, log_in_json
from s2s_ray.version import code_version


def create_api(service: Service) -> FastAPI:
    """The ASGI application over some deployments, real or fake."""

    @asynccontextmanager
    async def lifespan(_api: FastAPI) -> AsyncIterator[None]:
        watching = asyncio.create_task(service.rollout.watch())
        yield
        watching.cancel()

    api = FastAPI(
        title="s2s-ray",
        summary="Satellite-to-street embedding, synthesis and localisation",
        version=code_version(),
        lifespan=lifespan,
        docs_url=None,  # with files of our own: s2s_ray.service.http.page
        redoc_url=None,
    )
    api.state.service = service
    for router in (routes.inference, routes.described, routes.administration, routes.service):
        api.include_router(router)
    page.add_to(api, service.args)
    _document_own_refusals(api)
    api.add_middleware(Frame, service=service)
    if service.args.cors_origins:
        api.add_middleware(
            CORSMiddleware,
            allow_origins=service.args.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["S2S-Release", "X-Request-ID", "Retry-After"],
        )
    api.add_exception_handler(RequestError, _refused)
    api.add_exception_handler(RequestValidationError, _bad_parameters)
    api.add_exception_handler(HTTPException, _http_error)
    return api


@serve.ingress()
class Ingress:
    """The deployment in front: decodes, prepares, asks the others."""

    def __init__(self, args: ServeArgs, street: Any, satellite: Any, synthesis: Any, search: Any) -> None:
        started = time.monotonic()
        torch.set_num_threads(1)
        log_in_json(args.access_log)
        metrics = IngressMetrics()
        plain = {"request_serialization": "pickle", "response_serialization": "pickle"}  # quicker than cloudpickle
        deployments = {"street": street, "satellite": satellite, "synthesis": synthesis, "search": search}
        handles = {name: handle.options(**plain) for name, handle in deployments.items()}

        def changed(_release: ServedRelease, before: str | None) -> None:
            if before is None:
                metrics.started(time.monotonic() - started)
            else:
                metrics.changed(before)

        def serving(release: ServedRelease) -> None:
            metrics.serving(release.id, release.description.index.count)

        decoders = ThreadPoolExecutor(args.decode_threads, thread_name_prefix="decode")
        self._service = Service(args, Rollout(args, handles, changed, serving), handles, decoders, metrics)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Serve calls this after the constructor."""
        return create_api(self._service)


def _document_own_refusals(api: FastAPI) -> None:
    """Leave out of the document the 422 that FastAPI adds for bad parameters: here they are answered 400."""
    document = api.openapi()
    for operations in document["paths"].values():
        for operation in operations.values():
            answers = operation["responses"]
            content = answers.get("422", {}).get("content", {})
            if content.get("application/json", {}).get("schema", {}).get("$ref", "").endswith("/HTTPValidationError"):
                del answers["422"]
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)


def _error(status: int, sentence: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": sentence}, status, headers)


async def _refused(_request: Request, fault: Exception) -> Response:
    assert isinstance(fault, RequestError)
    return _error(fault.http_status, fault.sentence, fault.headers)


async def _bad_parameters(_request: Request, fault: Exception) -> Response:
    assert isinstance(fault, RequestValidationError)
    faults = (f"{error['loc'][-1]}={error.get('input')!r}: {error['msg']}" for error in fault.errors())
    return _error(400, f"{'; '.join(faults)}.")


async def _http_error(_request: Request, fault: Exception) -> Response:
    assert isinstance(fault, HTTPException)
    return _error(fault.status_code, f"{fault.detail}.", dict(fault.headers or {}))
