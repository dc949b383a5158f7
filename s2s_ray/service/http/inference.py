"""The routes that run a model: embedding, synthesis and localisation."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from fastapi import APIRouter, Depends, Request, Response

from s2s_ray.errors import RequestError
from s2s_ray.index import Descriptors
from s2s_ray.localization import Turned
from s2s_ray.localization.area import area
from s2s_ray.localization.turned import searched, turns
from s2s_ray.service import answers
from s2s_ray.service.http import openapi, responses
from s2s_ray.service.http.exchange import Exchange
from s2s_ray.service.http.negotiation import accepted
from s2s_ray.service.http.parameters import (
    DEFAULT_K,
    Area,
    K,
    Picture,
    TileLayout,
    Together,
    TruePosition,
    WithSurface,
    shown,
)
from s2s_ray.service.http.pictures import StreetView, satellite_views, street_views
from s2s_ray.service.http.route import StrictRoute
from s2s_ray.service.http.security import Api, authorized
from s2s_ray.service.http.uploads import IMAGE_BODY, UploadedImages, Uploads
from s2s_ray.service.localizations import ManyLocalizations, OneLocalization, PlaceLocalization, TileCollection
from s2s_ray.service.schemas import ManyEmbeddings, OneEmbedding, Synthesis

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
async def embed_street(request: Request, api: Api, body: UploadedImages, query: Picture) -> Response:
    """Return the unit descriptors of panoramas and photographs, each at one heading."""
    kind = accepted(request, responses.EMBEDDING_TYPES)
    pictures = await street_views(api, body, query)
    _require_headings(body, pictures)
    descriptors = await asyncio.gather(*(_descriptor(api, picture) for picture in pictures))
    _count(api, pictures)
    queries = [answers.query(picture.known) for picture in pictures]
    return _encoded(api, lambda: responses.embeddings(api.release.id, body, np.stack(descriptors), kind, queries))


@router.post(
    "/embed/satellite",
    response_model=OneEmbedding | ManyEmbeddings,
    openapi_extra=IMAGE_BODY,
    responses=_DESCRIPTORS,
)
async def embed_satellite(request: Request, api: Api, body: UploadedImages, layout: TileLayout = "auto") -> Response:
    """Return the unit descriptors of satellite images."""
    kind = accepted(request, responses.EMBEDDING_TYPES)
    views = await satellite_views(api, body, lambda pixels: api.release.geometry.satellite(pixels, layout))
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
    polars = await satellite_views(api, body, lambda pixels: api.release.geometry.satellite(pixels, layout))
    streets = await asyncio.gather(*(api.call("synthesis", "model", view) for view in polars))

    def encode() -> Response:
        if kind != responses.JSON:
            return responses.view(streets[0], kind)
        return responses.views(api.release.id, body, streets, [polar.transpose(1, 2, 0) for polar in polars])

    return await api.in_thread(lambda: _encoded(api, encode))


class Located(NamedTuple):
    """The pictures of one place as they were understood, and its public answer."""

    queries: list[dict[str, Any]]
    tree: dict[str, Any]


@router.post(
    "/localize",
    response_model=OneLocalization | ManyLocalizations | PlaceLocalization,
    openapi_extra=IMAGE_BODY,
    responses=openapi.content(
        "The fixes and the matches, by Accept as JSON or GeoJSON",
        **{responses.GEOJSON: {"schema": openapi.inlined(TileCollection)}},
    ),
)
async def localize(
    request: Request,
    api: Api,
    body: UploadedImages,
    query: Picture,
    prior: Area,
    true_position: TruePosition,
    k: K = None,
    together: Together = False,
    surface: WithSurface = False,
) -> Response:
    """Find where pictures were taken: a fix, and the nearest tiles of the release's index, best first."""
    kind = accepted(request, responses.LOCALIZATION_TYPES)
    count = api.release.description.index.count
    if k is not None and k > count:
        raise RequestError(400, f"k={k}: the index of this release has {count} tiles.")
    pictures = await street_views(api, body, query)
    turned = await asyncio.gather(*(_turned(api, picture) for picture in pictures))
    places = [range(len(pictures))] if together else [range(number, number + 1) for number in range(len(pictures))]

    async def locate(place: range) -> Located:
        taken = [pictures[number].known for number in place]
        within, position, warnings = area(prior, taken)
        wanted = k or min(DEFAULT_K, count)
        found = await api.call("search", "search", [turned[number] for number in place], wanted, within, surface)
        queries = [
            answers.query(known, warnings, estimated) for known, estimated in zip(taken, found["headings"], strict=True)
        ]
        return Located(queries, answers.localization(found, true_position or position))

    located = await asyncio.gather(*map(locate, places))
    _count(api, pictures)
    for one in located:
        api.service.recorder.located(one.tree["fix"])
    return _encoded(api, lambda: _localized(api, body, located, together, kind))


def _localized(api: Exchange, body: Uploads, located: Sequence[Located], together: bool, kind: str) -> Response:
    queries = [query for one in located for query in one.queries]
    trees = [one.tree for one in located]
    if kind == responses.GEOJSON:
        return responses.features(api.release.id, body, queries, trees, together)
    if together:
        return responses.place(api.release.id, body, queries, trees[0])
    return responses.localizations(api.release.id, body, queries, trees)


def _require_headings(body: Uploads, pictures: Sequence[StreetView]) -> None:
    for number, (image, picture) in enumerate(zip(body.images, pictures, strict=True), start=1):
        if picture.known.heading is None:
            subject = f"image {number} ({shown(image.name or '')})" if len(pictures) > 1 else "the image"
            raise RequestError(
                422,
                f"The heading of {subject} is unknown, and one descriptor has one heading: give heading=DEGREES, or "
                "use /v1/localize, which searches all headings.",
            )


async def _descriptor(api: Exchange, picture: StreetView) -> Descriptors:
    descriptor: Descriptors = await api.call("street", "model", picture.pixels, picture.seen, False)
    return descriptor


async def _turned(api: Exchange, picture: StreetView) -> Turned:
    """Return the descriptors of a picture, one for each heading that it may have."""
    if not turns(picture.known):
        return searched(picture.known, (await _descriptor(api, picture))[None])
    return searched(picture.known, *await api.call("street", "model", picture.pixels, picture.seen, True))


def _count(api: Exchange, pictures: Sequence[StreetView]) -> None:
    for picture in pictures:
        api.service.recorder.picture(picture.known.heading_origin)


def _encoded(api: Exchange, encode: Callable[[], Response]) -> Response:
    started = time.perf_counter()
    try:
        return encode()
    finally:
        api.spent("encode", time.perf_counter() - started)
