"""The paths of the interface."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, Path, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from torch import Tensor

from s2s_ray import registry, storage
from s2s_ray.errors import RegistryError, RequestError, TooManyPixelsError, UnreadableImageError, ViewError
from s2s_ray.geo.images import (
    Pixels,
    decode,
)
from s2s_ray.index import Descriptors
from s2s_ray.service.http import responses as answers
from s2s_ray.service.http.exchange import Exchange
from s2s_ray.service.http.metrics import scrape
from s2s_ray.service.http.requests import (
    DEFAULT_K,
    IMAGE_BODY,
    Area,
    Heading,
    Image,
    Images,
    K,
    LayoutOf,
    Rows,
    Truth,
    Uploads,
    accepted,
    deadline,
)
from s2s_ray.service.http.schemas import (
    Error,
    Examples,
    Health,
    ManyEmbeddings,
    ManyLocalizations,
    ModelInfo,
    OneEmbedding,
    OneLocalization,
    Promotion,
    Readiness,
    Releases,
    Synthesis,
    TileCollection,
)
from s2s_ray.service.http.security import administrator, authorized

_REFUSALS = {
    400: "Undecodable image, or a parameter that is not allowed",
    406: "Accept names no type that there is",
    408: "Not answered within the proxy's limit",
    413: "More bytes, pixels or images than are taken",
    415: "Content-Type that is no image",
    422: "Image of the wrong shape",
}
_TOKENS = {401: "No token, or one that is not known, where the service is configured with tokens"}
_FAULTS = {
    503: "Overloaded, or no release loaded; see Retry-After",
    504: "Not answered within S2S-Timeout",
}


def _errors(*tables: dict[int, str]) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": Error, "description": what} for table in tables for status, what in table.items()}


async def _exchange(request: Request) -> Exchange:
    exchange: Exchange = request.state.exchange
    return exchange


Api = Annotated[Exchange, Depends(_exchange)]

inference = APIRouter(
    prefix="/v1",
    tags=["inference"],
    dependencies=[Depends(authorized), Depends(deadline)],
    responses=_errors(_REFUSALS, _TOKENS, _FAULTS),
)
service = APIRouter(tags=["service"])
described = APIRouter(
    prefix="/v1", tags=["service"], dependencies=[Depends(authorized)], responses=_errors(_TOKENS, _FAULTS)
)
administration = APIRouter(prefix="/v1", tags=["administration"], dependencies=[Depends(administrator)])


def _inlined(model: type[BaseModel]) -> dict[str, Any]:
    """A schema without references, for a media type that FastAPI does not know the model of."""
    schema = model.model_json_schema()
    definitions = schema.pop("$defs", {})

    def resolved(tree: Any) -> Any:
        if isinstance(tree, dict):
            if "$ref" in tree:
                return resolved(definitions[tree["$ref"].rpartition("/")[2]])
            return {key: resolved(value) for key, value in tree.items()}
        return [resolved(value) for value in tree] if isinstance(tree, list) else tree

    inlined: dict[str, Any] = resolved(schema)
    return inlined


def _content(description: str, **kinds: Any) -> dict[int | str, dict[str, Any]]:
    return {200: {"description": description, "content": kinds}}


_BINARY = {"schema": {"type": "string", "format": "binary"}}
_DESCRIPTORS = "Descriptors, by Accept as JSON or as a .npy file of float32, images x D"


@inference.post(
    "/embed/street",
    response_model=OneEmbedding | ManyEmbeddings,
    openapi_extra=IMAGE_BODY,
    responses=_content(_DESCRIPTORS, **{answers.NPY: _BINARY}),
)
async def embed_street(request: Request, api: Api, body: Images, rows: Rows, heading: Heading = 0.0) -> Response:
    """Unit descriptors of 360-degree panoramas."""
    kind = accepted(request, answers.EMBEDDING_TYPES)
    descriptors = await _street_descriptors(api, body, heading, rows)
    return _encoded(api, lambda: answers.embeddings(api.release.id, body, np.stack(descriptors), kind))


@inference.post(
    "/embed/satellite",
    response_model=OneEmbedding | ManyEmbeddings,
    openapi_extra=IMAGE_BODY,
    responses=_content(_DESCRIPTORS, **{answers.NPY: _BINARY}),
)
async def embed_satellite(request: Request, api: Api, body: Images, layout: LayoutOf = "auto") -> Response:
    """Unit descriptors of satellite images."""
    kind = accepted(request, answers.EMBEDDING_TYPES)
    views = await _views(api, body, lambda pixels: api.release.geometry.satellite(pixels, layout))
    descriptors = await asyncio.gather(*(api.ask("satellite", "model", view) for view in views))
    return _encoded(api, lambda: answers.embeddings(api.release.id, body, np.stack(descriptors), kind))


@inference.post(
    "/synthesize",
    response_model=Synthesis,
    openapi_extra=IMAGE_BODY,
    responses=_content(
        "The street view, by Accept as PNG, JPEG or WebP; of several images, or with application/json, all views "
        "with their polar images",
        **dict.fromkeys(answers.ENCODINGS, _BINARY),
    )
    | _errors({409: "The release was trained without a generator"}),
)
async def synthesize(request: Request, api: Api, body: Images, layout: LayoutOf = "auto") -> Response:
    """The street views that the model expects at the middle of satellite images, north in the middle column."""
    if not api.release.description.synthesizes:
        raise RequestError(409, f"Release {api.release.id} was trained without a generator: it synthesises no views.")
    kind = accepted(request, answers.SEVERAL_SYNTHESIS_TYPES if body.form else answers.SYNTHESIS_TYPES)
    polars = await _views(api, body, lambda pixels: api.release.geometry.satellite(pixels, layout))
    streets = await asyncio.gather(*(api.ask("synthesis", "model", view) for view in polars))

    def encode() -> Response:
        if kind != answers.JSON:
            return answers.view(streets[0], kind)
        return answers.views(api.release.id, body, streets, [polar.transpose(1, 2, 0) for polar in polars])

    return await api.off_loop(lambda: _encoded(api, encode))


@inference.post(
    "/localize",
    response_model=OneLocalization | ManyLocalizations,
    openapi_extra=IMAGE_BODY,
    responses=_content(
        "The matches, by Accept as JSON or GeoJSON",
        **{answers.GEOJSON: {"schema": _inlined(TileCollection)}},
    ),
)
async def localize(
    request: Request,
    api: Api,
    body: Images,
    rows: Rows,
    prior: Area,
    truth: Truth,
    heading: Heading = 0.0,
    k: K = None,
) -> Response:
    """Where 360-degree panoramas were taken: the nearest tiles of the release's index, best first."""
    kind = accepted(request, answers.LOCALIZATION_TYPES)
    count = api.release.description.index.count
    if k is not None and k > count:
        raise RequestError(400, f"k={k}: the index of this release has {count} tiles.")
    most = k or min(DEFAULT_K, count)
    descriptors = await _street_descriptors(api, body, heading, rows)
    found = await asyncio.gather(*(api.ask("search", "search", one, most, prior) for one in descriptors))
    matches = [answers.matches(one, truth) for one in found]
    return answers.localizations(api.release.id, body, matches, kind)


@described.get("/model")
async def model(api: Api) -> ModelInfo:
    """What is served."""
    return api.release.description


@described.get("/releases", responses=_errors({409: "The service was given one release for good"}))
async def releases(api: Api) -> Releases:
    """The releases of the served name."""
    root, name = _registry(api)
    listed = await asyncio.to_thread(registry.list_releases, root, name)
    current = await asyncio.to_thread(registry.current, root, name)
    return Releases.model_validate(
        {
            "release": api.release.id,
            "releases": [
                {
                    "release": one.id,
                    "run": one.run,
                    "step": one.step,
                    "created": one.created.isoformat(),
                    "indexed": one.index_uri is not None,
                    "current": one.id == current,
                }
                for one in listed
            ],
        }
    )


@described.get("/examples")
async def examples(api: Api) -> Examples:
    """Places of the data set that the index was built from."""
    found = await api.ask("search", "search", method="examples")
    places = [
        {
            **{key: one[key] for key in ("id", "latitude", "longitude")},
            "street": f"v1/examples/{place}/street",
            "tile": f"v1/examples/{place}/tile",
        }
        for place, one in enumerate(found)
    ]
    return Examples.model_validate({"release": api.release.id, "examples": places})


_JPEG: dict[str, Any] = {
    "response_class": Response,
    "responses": {
        **_content("JPEG", **{"image/jpeg": _BINARY}),
        **_errors({400: "Bad parameter", 404: "No such picture"}),
    },
}


@described.get("/examples/{place}/{view}", **_JPEG)
async def example(
    api: Api, place: Annotated[int, Path(ge=0)], view: Annotated[str, Path(pattern="^(street|tile)$")]
) -> Response:
    """Panorama or tile of an example; the panorama is as the model takes it (`rows=0,1`)."""
    found = await api.ask("search", "search", method="examples")
    if place >= len(found):
        raise RequestError(404, f"There is no example {place}; there are {len(found)}.")
    return Response(found[place][view], media_type="image/jpeg")


@described.get("/thumbnail", **_JPEG)
async def thumbnail(api: Api, id: Annotated[str, Query(description="Of a tile, as in a match.")]) -> Response:
    """A small picture of a tile of the index."""
    picture = await api.ask("search", "search", id, method="thumbnail")
    if picture is None:
        raise RequestError(404, f"There is no picture of {id!r}: no such tile, or an index built without pictures.")
    return Response(picture, media_type="image/jpeg")


_CHANGES = _errors(
    _TOKENS,
    _FAULTS,
    {
        403: "A token that may not do this, or a service without admin tokens",
        404: "No such release, or none before",
        409: "The service was given one release for good",
    },
)


@administration.post("/releases/{release}/promote", responses=_CHANGES)
async def promote(api: Api, release: str) -> Promotion:
    """Make a release the current one; the service takes it over as soon as it is loaded everywhere."""
    return await _change(api, lambda root, name: registry.promote(root, name, release))


@administration.post("/releases/rollback", responses=_CHANGES)
async def rollback(api: Api) -> Promotion:
    """Go back to the release before."""
    return await _change(api, registry.rollback)


@service.get("/healthz")
async def healthz(api: Api) -> Health:
    """Whether the ingress is alive."""
    return Health(status="ok", release=None if api.stamp is None else api.stamp.id)


@service.get("/readyz", responses={503: {"model": Readiness, "description": "Not ready"}})
async def readyz(api: Api) -> Response:
    """Whether a release is loaded on every deployment that may not stand at zero."""
    rollout = api.service.rollout
    ready = await rollout.ready()
    state = Readiness(
        status="ready" if ready else "not ready",
        release=None if rollout.current is None else rollout.current.id,
        next=rollout.next,
        fault=rollout.fault,
        deployments=await rollout.replicas() if rollout.current else {},
    )
    return JSONResponse(state.model_dump(), 200 if ready else 503)


@service.get(
    "/metrics",
    response_class=Response,
    dependencies=[Depends(authorized)],
    responses={**_content("Prometheus' text format", **{"text/plain": {}}), **_errors(_TOKENS)},
)
async def metrics() -> Response:
    """The figures of all replicas on all nodes of the cluster."""
    return Response(await scrape(), media_type="text/plain; version=0.0.4")


async def _street_descriptors(
    api: Exchange, body: Uploads, heading: float, rows: tuple[float, float] | None
) -> list[Descriptors]:
    views = await _views(api, body, lambda pixels: api.release.geometry.street(pixels, heading, rows))
    descriptors: list[Descriptors] = await asyncio.gather(*(api.ask("street", "model", view) for view in views))
    return descriptors


async def _views(api: Exchange, body: Uploads, prepare: Callable[[Pixels], Tensor]) -> list[Pixels]:
    """Bytes of images -> uint8 3 H W each."""
    several = len(body.images) > 1

    def work(place: int, image: Image) -> Pixels:
        which = f"Image {place} ({image.name!r})" if several else "The image"
        try:
            started = time.perf_counter()
            pixels = decode(image.content, api.service.max_pixels)
            decoded = time.perf_counter()
            view: Pixels = np.asarray(prepare(pixels))
        except UnreadableImageError as error:
            status = 413 if isinstance(error, TooManyPixelsError) else 400
            raise RequestError(status, f"{which} {error}.") from None
        except ViewError as error:
            sentence = f"{str(error)[0].upper()}{str(error)[1:]}."
            raise RequestError(422, f"{which}: {sentence}" if several else sentence) from None
        api.spent("decode", decoded - started)
        api.spent("transform", time.perf_counter() - decoded)
        return view

    assert api.release is not None, "before any work, so that its geometry is that of the answer"
    jobs = [
        api.off_loop(lambda place=place, image=image: work(place, image))  # type: ignore[misc]
        for place, image in enumerate(body.images, start=1)
    ]
    return await asyncio.gather(*jobs)


def _encoded(api: Exchange, encode: Callable[[], Response]) -> Response:
    started = time.perf_counter()
    try:
        return encode()
    finally:
        api.spent("encode", time.perf_counter() - started)


def _registry(api: Exchange) -> tuple[str, str]:
    args = api.service.args
    if not args.follows:
        raise RequestError(409, "This service was given one release for good; there are no others to change to.")
    assert args.registry is not None
    assert args.name is not None
    return storage.absolute(args.registry), args.name


async def _change(api: Exchange, change: Callable[[str, str], registry.Release]) -> Promotion:
    root, name = _registry(api)
    try:
        chosen = await asyncio.to_thread(change, root, name)
    except RegistryError as error:
        raise RequestError(404, f"{str(error)[0].upper()}{str(error)[1:]}.") from None
    return Promotion(release=api.release.id, current=chosen.id)
