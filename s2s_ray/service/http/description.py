"""The routes that describe the served release: its model, and images of its index."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Response

from s2s_ray.errors import RequestError
from s2s_ray.service.http import openapi
from s2s_ray.service.http.parameters import shown
from s2s_ray.service.http.route import StrictRoute
from s2s_ray.service.http.security import Api, authorized
from s2s_ray.service.schemas import Examples, ModelInfo

router = APIRouter(
    prefix="/v1",
    route_class=StrictRoute,
    tags=["service"],
    dependencies=[Depends(authorized)],
    responses=openapi.errors(openapi.UNAUTHORIZED, openapi.UNAVAILABLE),
)
_JPEG: dict[str, Any] = {
    "response_class": Response,
    "responses": {
        **openapi.content("JPEG", **{"image/jpeg": openapi.BINARY}),
        **openapi.errors({400: "Invalid, unknown or repeated parameter", 404: "No such image"}),
    },
}


@router.get("/model")
async def model(api: Api) -> ModelInfo:
    """Describe the served release."""
    return api.release.description


@router.get("/examples")
async def examples(api: Api) -> Examples:
    """List places of the data set that the index was built from."""
    found = await api.call("search", "search", method="examples")
    places = [
        {
            **{key: one[key] for key in ("id", "latitude", "longitude")},
            "street": f"examples/{number}/street",  # relative to the address of this response (RFC 3986)
            "tile": f"examples/{number}/tile",
        }
        for number, one in enumerate(found)
    ]
    return Examples.model_validate({"release": api.release.id, "examples": places})


@router.get("/examples/{place}/{view}", **_JPEG)
async def example(
    api: Api, place: Annotated[int, Path(ge=0)], view: Annotated[str, Path(pattern="^(street|tile)$")]
) -> Response:
    """Return the panorama or the tile of an example, the panorama as the model receives it (`rows=0,1`)."""
    found = await api.call("search", "search", method="examples")
    if place >= len(found):
        raise RequestError(404, f"There is no example {shown(str(place))}; there are {len(found)}.")
    return Response(found[place][view], media_type="image/jpeg")


@router.get("/thumbnail", **_JPEG)
async def thumbnail(api: Api, id: Annotated[str, Query(description="Id of a tile, as in a match.")]) -> Response:
    """Return a small image of a tile of the index."""
    image = await api.call("search", "search", id, method="thumbnail")
    if image is None:
        raise RequestError(
            404, f"There is no image of {shown(id)}: the tile does not exist, or the index was built without pictures."
        )
    return Response(image, media_type="image/jpeg")
