"""The HTTP interface: bytes in, answers out, and a sentence for everything that is refused.

| status | when |
|---|---|
| 400 | empty or undecodable image, too many pixels, a query parameter that is not allowed |
| 404, 405 | no such path, another method |
| 406 | `Accept` of `/v1/synthesize` without PNG, JPEG or WebP |
| 413 | more bytes than are taken |
| 415 | `Content-Type` that is neither `image/*` nor `application/octet-stream` |
| 422 | a readable image of the wrong shape |
| 503 | overload, a replica lost or a release not loaded, with `Retry-After` |

Errors are `{"error": "..."}`. Every answer has the header `S2S-Release`. What Serve's proxy refuses before the
ingress sees it (a full queue: 503 with `Retry-After`; a deadline: 408) is plain text.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated, Any, Protocol, TypeVar

import numpy as np
import torch
from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from torch import Tensor

from s2s_ray.data.images import decode, encode
from s2s_ray.data.schema import Pixels, UnreadableImage
from s2s_ray.data.views import Layout, ViewError
from serve.requests import ENCODINGS, IMAGE_BODY, Body, Heading, LayoutOf, RequestError, Rows, negotiate
from serve.schemas import (
    DEFAULT_K,
    LARGEST_K,
    Embedding,
    Error,
    Health,
    Limits,
    Localization,
    ModelInfo,
    ReleaseNotLoadedError,
    ServedRelease,
)

T = TypeVar("T")


class Handle(Protocol):
    """What the ingress needs of a deployment; Serve's `DeploymentHandle` is one."""

    def remote(self, *args: Any) -> Awaitable[Any]: ...


@dataclass(frozen=True, slots=True)
class Service:
    """What the routes work with."""

    release: ServedRelease
    limits: Limits
    street: Handle
    satellite: Handle
    synthesis: Handle
    search: Handle
    decoders: ThreadPoolExecutor

    async def off_loop(self, work: Callable[[], T]) -> T:
        """Run work of the CPU beside the event loop; the pool bounds how many images are open at a time."""
        return await asyncio.get_running_loop().run_in_executor(self.decoders, work)

    async def ask(self, deployment: Handle, *args: Any) -> Any:
        """An answer of a deployment for the release this ingress serves. Raises RequestError (503)."""
        # Caught here and not by exception handlers of the application, which Serve replaces with its own.
        try:
            return await deployment.remote(self.release.id, *args)
        except BackPressureError:
            sentence = "The service has more work than it can take; try again later."
        except (DeploymentUnavailableError, ReplicaUnavailableError, ReleaseNotLoadedError, RayActorError):
            sentence = "The release is not ready on every replica; try again later."
        raise RequestError(503, sentence, {"Retry-After": str(math.ceil(self.limits.retry_after_s))})


def create_api(service: Service) -> FastAPI:
    """The ASGI application over some deployments, real or fake."""
    api = FastAPI(title="s2s-ray", summary="Satellite-to-street embedding, synthesis and localisation")
    api.state.service = service
    api.include_router(router)
    api.add_middleware(ReleaseHeader, release=service.release.id)
    api.add_exception_handler(RequestError, _refused)
    api.add_exception_handler(RequestValidationError, _bad_parameters)
    api.add_exception_handler(HTTPException, _http_error)
    return api


@serve.ingress()
class Ingress:
    """The deployment in front: decodes, prepares, asks the others."""

    def __init__(
        self,
        release: ServedRelease,
        limits: Limits,
        decode_threads: int,
        street: Handle,
        satellite: Handle,
        synthesis: Handle,
        search: Handle,
    ) -> None:
        torch.set_num_threads(1)
        decoders = ThreadPoolExecutor(decode_threads, thread_name_prefix="decode")
        self._service = Service(release, limits, street, satellite, synthesis, search, decoders)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Serve calls this after the constructor."""
        return create_api(self._service)


class ReleaseHeader:
    """Puts `S2S-Release` on every answer."""

    def __init__(self, app: ASGIApp, release: str) -> None:
        self._app = app
        self._header = (b"s2s-release", release.encode("ascii"))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def stamped(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", []), self._header]}
            await send(message)

        await self._app(scope, receive, stamped)


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


Api = Annotated[Service, Depends(_service)]

router = APIRouter(
    responses={
        status: {"model": Error, "description": what}
        for status, what in {
            400: "Undecodable image or parameter out of range",
            413: "More bytes than are taken",
            415: "Content-Type that is no image",
            422: "Image of the wrong shape",
            503: "Overloaded or not ready; see Retry-After",
        }.items()
    }
)


@router.post("/v1/embed/street", response_model=Embedding, openapi_extra=IMAGE_BODY)
async def embed_street(api: Api, body: Body, rows: Rows, heading: Heading = 0.0) -> Response:
    """The unit descriptor of a 360-degree panorama."""
    descriptor = await _embed_street(api, body, heading, rows)
    return JSONResponse({"release": api.release.id, "descriptor": descriptor.tolist()})


@router.post("/v1/embed/satellite", response_model=Embedding, openapi_extra=IMAGE_BODY)
async def embed_satellite(api: Api, body: Body, layout: LayoutOf = "auto") -> Response:
    """The unit descriptor of a satellite tile."""
    view = await _satellite_view(api, body, layout)
    descriptor = await api.ask(api.satellite, view)
    return JSONResponse({"release": api.release.id, "descriptor": descriptor.tolist()})


@router.post(
    "/v1/synthesize",
    response_class=Response,
    openapi_extra=IMAGE_BODY,
    responses={
        200: {"content": {kind: {} for kind in ENCODINGS}, "description": "The street view, by Accept"},
        406: {"model": Error, "description": "Accept without PNG, JPEG or WebP"},
    },
)
async def synthesize(api: Api, request: Request, body: Body, layout: LayoutOf = "auto") -> Response:
    """The street view that the model expects at the middle of a satellite tile, north in the middle column."""
    kind = negotiate(request.headers.get("accept", "*/*"))
    if kind is None:
        raise RequestError(406, f"Accept names none of {', '.join(ENCODINGS)}.")
    view = await _satellite_view(api, body, layout)
    street: Pixels = await api.ask(api.synthesis, view)
    return Response(await api.off_loop(lambda: encode(street, ENCODINGS[kind])), media_type=kind)


@router.post("/v1/localize", response_model=Localization, openapi_extra=IMAGE_BODY)
async def localize(
    api: Api,
    body: Body,
    rows: Rows,
    heading: Heading = 0.0,
    k: Annotated[
        int | None, Query(ge=1, le=LARGEST_K, description="Tiles to return; default 10, or all of fewer.")
    ] = None,
) -> Response:
    """Where a 360-degree panorama was taken: the nearest tiles of the release's index, best first."""
    count = api.release.index_count
    if k is not None and k > count:
        raise RequestError(400, f"k={k}: the index of this release has {count} tiles.")
    descriptor = await _embed_street(api, body, heading, rows)
    matches = await api.ask(api.search, descriptor, k or min(DEFAULT_K, count))
    answer = Localization.model_validate({"release": api.release.id, "matches": matches})
    return JSONResponse(answer.model_dump())


@router.get("/v1/model", response_model=ModelInfo)
async def model(api: Api) -> ModelInfo:
    """What is served."""
    return api.release.description


@router.get("/healthz", response_model=Health)
async def healthz(api: Api) -> Health:
    """Whether the ingress is alive."""
    return Health(status="ok", release=api.release.id)


async def _embed_street(
    api: Service, body: bytes, heading: float, rows: tuple[float, float] | None
) -> np.ndarray[Any, np.dtype[np.float32]]:
    view = await _view(api, body, lambda pixels: api.release.geometry.street(pixels, heading, rows))
    descriptor: np.ndarray[Any, np.dtype[np.float32]] = await api.ask(api.street, view)
    return descriptor


async def _satellite_view(api: Service, body: bytes, layout: Layout) -> Pixels:
    return await _view(api, body, lambda pixels: api.release.geometry.satellite(pixels, layout))


async def _view(api: Service, body: bytes, prepare: Callable[[Pixels], Tensor]) -> Pixels:
    """Bytes of an image -> uint8 3 H W."""

    def work() -> Pixels:
        try:
            return np.asarray(prepare(decode(body, api.limits.max_pixels)))
        except UnreadableImage as error:
            raise RequestError(400, f"The image {error}.") from None
        except ViewError as error:
            raise RequestError(422, f"{str(error)[0].upper()}{str(error)[1:]}.") from None

    return await api.off_loop(work)


def _error(status: int, sentence: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": sentence}, status, headers)


async def _refused(_request: Request, fault: Exception) -> Response:
    assert isinstance(fault, RequestError)
    return _error(fault.status, fault.sentence, fault.headers)


async def _bad_parameters(_request: Request, fault: Exception) -> Response:
    assert isinstance(fault, RequestValidationError)
    faults = (f"{error['loc'][-1]}={error.get('input')!r}: {error['msg']}" for error in fault.errors())
    return _error(400, f"{'; '.join(faults)}.")


async def _http_error(_request: Request, fault: Exception) -> Response:
    assert isinstance(fault, HTTPException)
    return _error(fault.status_code, f"{fault.detail}.", dict(fault.headers or {}))
