"""The ASGI application: its routes, its middleware and its error responses (docs/service.md).

Errors are `{"error": "..."}`. Every response has the headers `S2S-Release` and `X-Request-ID`. What Serve's proxy
rejects before the ingress sees it (a full queue: 503 with `Retry-After`; its deadline: 408) is plain text.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from s2s_ray.errors import RequestError
from s2s_ray.secrets import masked
from s2s_ray.service.http import description, inference, page, probes, releases
from s2s_ray.service.http.exchange import Service
from s2s_ray.service.http.middleware import ExchangeMiddleware
from s2s_ray.service.http.openapi import remove_validation_errors
from s2s_ray.service.http.parameters import shown
from s2s_ray.version import code_version


def create_api(service: Service) -> FastAPI:
    """Create the application over the deployments of a service, real or fake."""

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
        docs_url=None,  # `s2s_ray.service.http.page` adds one that uses local files
        redoc_url=None,
    )
    api.state.service = service
    for routes in (inference, description, releases, probes):
        api.include_router(routes.router)
    page.add_to(api, service.args)
    remove_validation_errors(api)
    api.add_middleware(ExchangeMiddleware, service=service)
    if service.args.cors_origins:
        api.add_middleware(
            CORSMiddleware,
            allow_origins=service.args.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["S2S-Release", "X-Request-ID", "Retry-After"],
        )
    api.add_exception_handler(RequestError, _request_error)
    api.add_exception_handler(RequestValidationError, _invalid_parameters)
    api.add_exception_handler(HTTPException, _http_error)
    return api


def _error(status: int, sentence: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": masked(sentence)}, status, headers)


async def _request_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return _error(error.http_status, error.sentence, error.headers)


async def _invalid_parameters(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    faults = (f"{fault['loc'][-1]}={shown(str(fault.get('input')))}: {fault['msg']}" for fault in error.errors())
    return _error(400, f"{'; '.join(faults)}.")


async def _http_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _error(error.status_code, f"{error.detail}.", dict(error.headers or {}))
