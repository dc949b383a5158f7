"""The routes that run a model: embedding, synthesis and localisation."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import numpy as np
from fastapi import APIRouter, Depends, Request, Response
from torch import Tensor

from s2s_ray.errors import RequestError, UnreadableImageError, ViewError
from s2s_ray.geo.images import Pixels, decode
from s2s_ray.index import Descriptors
from s2s_ray.service.http import openapi, responses
from s2s_ray.service.http.exchange import Exchange
from s2s_ray.service.http.holding import Image
from s2s_ray.service.http.negotiation import accepted
from s2s_ray.service.http.parameters import (
    DEFAULT_K,
    Area,
    Heading,
    K,
    Rows,
    TileLayout,
    TruePosition,
    shown,
)
from s2s_ray.service.http.route import StrictRoute
from s2s_ray.service.http.security import Api, authorized
from s2s_ray.service.http.uploads import IMAGE_BODY, UploadedImages, Uploads
from s2s_ray.service.schemas import (
    ManyEmbeddings,
    ManyLocalizations,
    OneEmbedding,
    OneLocalization,
    Synthesis,
    TileCollection,
)

router = APIRouter(
    prefix="/v1",
    route_class=StrictRoute,
    tags=["inference"],
    dependencies=[Depends(authorized)],
    responses=openapi.errors(openapi.INVALID_REQUEST, openapi.UNAUTHORIZED, openapi.UNAVAILABLE),
)
_DESCRIPTORS = openapi.content(
    "Descriptors, by Accept as JSON or as a .npy file of float32, images x D", **{responses.NPY: openapi.BINARY}
)


@router.post(
    "/embed/street",
    response_model=OneEmbedding | ManyEmbeddings,
    openapi_extra=IMAGE_BODY,
    responses=_DESCRIPTORS,
)
async def embed_street(
    request: Request, api: Api, body: UploadedImages, rows: Rows, heading: Heading = 0.0
) -> Response:
    """Return the unit descriptors of 360-degree panoramas."""
    kind = accepted(request, responses.EMBEDDING_TYPES)
    descriptors = await _street_descriptors(api, body, heading, rows)
    return _encoded(api, lambda: responses.embeddings(api.release.id, body, np.stack(descriptors), kind))


@router.post(
    "/embed/satellite",
    response_model=OneEmbedding | ManyEmbeddings,
    openapi_extra=IMAGE_BODY,
    responses=_DESCRIPTORS,
)
async def embed_satellite(request: Request, api: Api, body: UploadedImages, layout: TileLayout = "auto") -> Response:
    """Return the unit descriptors of satellite images."""
    kind = accepted(request, responses.EMBEDDING_TYPES)
    views = await _views(api, body, lambda pixels: api.release.geometry.satellite(pixels, layout))
    descriptors = await asyncio.gather(*(api.call("satellite", "model", view) for view in views))
    return _encoded(api, lambda: responses.embeddings(api.release.id, body, np.stack(descriptors), kind))


@router.post(
    "/synthesize",
    response_model=Synthesis,
    openapi_extra=IMAGE_BODY,
    responses=openapi.content(
        "The street view, by Accept as PNG, JPEG or WebP; for several images, or with application/json, all views "
        "with their polar images",
        **dict.fromkeys(responses.ENCODINGS, openapi.BINARY),
    )
    | openapi.errors({409: "The release was trained without a generator"}),
)
async def synthesize(request: Request, api: Api, body: UploadedImages, layout: TileLayout = "auto") -> Response:
    """Synthesise the street views at the centres of satellite images, north in the middle column."""
    if not api.release.description.synthesizes:
        raise RequestError(409, f"Release {api.release.id} was trained without a generator: it synthesises no views.")
    kind = accepted(request, responses.SEVERAL_SYNTHESIS_TYPES if body.form else responses.SYNTHESIS_TYPES)
    polars = await _views(api, body, lambda pixels: api.release.geometry.satellite(pixels, layout))
    streets = await asyncio.gather(*(api.call("synthesis", "model", view) for view in polars))

    def encode() -> Response:
        if kind != responses.JSON:
            return responses.view(streets[0], kind)
        return responses.views(api.release.id, body, streets, [polar.transpose(1, 2, 0) for polar in polars])

    return await api.in_thread(lambda: _encoded(api, encode))


@router.post(
    "/localize",
    response_model=OneLocalization | ManyLocalizations,
    openapi_extra=IMAGE_BODY,
    responses=openapi.content(
        "The matches, by Accept as JSON or GeoJSON",
        **{responses.GEOJSON: {"schema": openapi.inlined(TileCollection)}},
    ),
)
async def localize(
    request: Request,
    api: Api,
    body: UploadedImages,
    rows: Rows,
    prior: Area,
    true_position: TruePosition,
    heading: Heading = 0.0,
    k: K = None,
) -> Response:
    """Find where 360-degree panoramas were taken: the nearest tiles of the release's index, best first."""
    kind = accepted(request, responses.LOCALIZATION_TYPES)
    count = api.release.description.index.count
    if k is not None and k > count:
        raise RequestError(400, f"k={k}: the index of this release has {count} tiles.")
    wanted = k or min(DEFAULT_K, count)
    descriptors = await _street_descriptors(api, body, heading, rows)
    found = await asyncio.gather(*(api.call("search", "search", one, wanted, prior) for one in descriptors))
    matches = [responses.matches(one, true_position) for one in found]
    return responses.localizations(api.release.id, body, matches, kind)


async def _street_descriptors(
    api: Exchange, body: Uploads, heading: float, rows: tuple[float, float] | None
) -> list[Descriptors]:
    views = await _views(api, body, lambda pixels: api.release.geometry.street(pixels, heading, rows))
    descriptors: list[Descriptors] = await asyncio.gather(*(api.call("street", "model", view) for view in views))
    return descriptors


async def _views(api: Exchange, body: Uploads, prepare: Callable[[Pixels], Tensor]) -> list[Pixels]:
    """Decode images and prepare them for the model: uint8 3 H W each."""
    several = len(body.images) > 1

    def decode_and_prepare(number: int, image: Image) -> Pixels:
        subject = f"Image {number} ({shown(image.name or '')})" if several else "The image"
        try:
            started = time.perf_counter()
            pixels = decode(image.content, api.service.max_pixels)
            decoded = time.perf_counter()
            view: Pixels = np.asarray(prepare(pixels))
        except UnreadableImageError as error:  # its message continues the sentence
            raise RequestError(error.http_status, f"{subject} {error}.") from None
        except ViewError as error:
            sentence = responses.sentence(error)
            raise RequestError(error.http_status, f"{subject}: {sentence}" if several else sentence) from None
        api.spent("decode", decoded - started)
        api.spent("transform", time.perf_counter() - decoded)
        return view

    assert api.release is not None, "checked before any work, so that its geometry is that of the response"
    jobs = [
        api.in_thread(lambda number=number, image=image: decode_and_prepare(number, image))  # type: ignore[misc]
        for number, image in enumerate(body.images, start=1)
    ]
    return await asyncio.gather(*jobs)


def _encoded(api: Exchange, encode: Callable[[], Response]) -> Response:
    started = time.perf_counter()
    try:
        return encode()
    finally:
        api.spent("encode", time.perf_counter() - started)
