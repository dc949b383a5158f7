"""The query parameters and headers of requests, each rejected with a sentence."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from fastapi import Depends, Header, Query
from pydantic import WithJsonSchema

from s2s_ray.errors import PriorError, RequestError, ViewError
from s2s_ray.geo import query as pictures
from s2s_ray.geo.images import Layout
from s2s_ray.geo.prior import Box, Circle, FileCircle, Prior, check_position

MAX_K = 100
DEFAULT_K = 10
_LONGEST_SHOWN = 40


def shown(text: str) -> str:
    """Return what a caller has sent, quoted and cut to a length that fits a sentence."""
    return repr(text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}...")


def _numbers(text: str, name: str, count: int, example: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != count or not all(math.isfinite(number) for number in numbers):
        raise RequestError(400, f"{name}={shown(text)}: expected {count} numbers such as {example}.")
    return numbers


def _schema(*words: str, **limits: float) -> WithJsonSchema:
    """Return the documentation of a parameter that is a number within limits, or one of some words."""
    return WithJsonSchema({"anyOf": [{"type": "number", **limits}, {"type": "string", "enum": list(words)}]})


def _number(text: str, name: str, *words: str) -> Any:
    """Return the number, or the word, that a text is."""
    if text in words:
        return text
    try:
        return float(text)
    except ValueError:
        expected = ", ".join(("a number of degrees", *words[:-1]))
        last = f" or {words[-1]}" if words else ""
        raise RequestError(400, f"{name}={shown(text)}: expected {expected}{last}.") from None


async def _picture(
    heading: Annotated[
        Annotated[str, _schema("unknown", "auto", minimum=-360, maximum=360)],
        Query(
            description="Compass bearing of the middle column in degrees. `unknown`: the service finds it. `auto`: "
            "that of the file's metadata, else, for pictures of the whole horizon, the default of the release "
            "(`default_heading` of `/v1/model`), else unknown.",
            examples=["217.5"],
        ),
    ] = "auto",
    fov: Annotated[
        Annotated[str, _schema("auto", exclusiveMinimum=0, maximum=360)] | None,
        Query(
            description="Horizontal field of view in degrees. `auto`: by the file's metadata, else 360 for a panorama "
            "at least twice as wide as high whose ends meet or that has the model's own shape; required of all other "
            "pictures. Default: `auto`, except "
            "where `heading` is a number and `projection`, `pitch` and `roll` are left out: a picture at least twice "
            "as wide as high then shows the whole horizon and is level, whatever its file says, with a warning.",
            examples=["73.7"],
        ),
    ] = None,
    projection: Annotated[
        Literal["auto", pictures.Projection],
        Query(
            description="equirectangular: a panorama on a sphere; rectilinear: a photograph; cylindrical: the sweep of "
            "a phone; auto: by the file's metadata, else by the shape of the picture."
        ),
    ] = "auto",
    pitch: Annotated[
        float | None,
        Query(
            ge=-90,
            le=90,
            allow_inf_nan=False,
            description="Degrees that the camera looks above the horizon. Default: by the file's metadata, else 0.",
        ),
    ] = None,
    roll: Annotated[
        float | None,
        Query(
            ge=-180,
            le=180,
            allow_inf_nan=False,
            description="Degrees that the camera is turned clockwise. Default: by the file's metadata, else 0.",
        ),
    ] = None,
    rows: Annotated[
        str | None,
        Query(
            description="Part of the height to use, FIRST,LAST as fractions from the top: of an equirectangular "
            "picture that which shows the model's range of elevations; of others, the rest counts as unseen. Default: "
            "all, where an equirectangular picture has the horizon in its middle and equal scales along both sides. "
            "But if `heading` alone is given, or the picture has the model's own shape: `panorama_rows` of "
            "`/v1/model`; if that is null, the middle half of a 2:1 panorama, and all of a wider one.",
            examples=["0.25,0.75"],
        ),
    ] = None,
) -> pictures.Query:
    try:
        return pictures.Query(
            heading=_number(heading, "heading", "unknown", "auto"),
            fov=None if fov is None else _number(fov, "fov", "auto"),
            projection=projection,
            pitch=pitch,
            roll=roll,
            rows=_rows(rows),
        )
    except ViewError as error:
        raise RequestError(400, f"{error}.") from None


def _rows(rows: str | None) -> tuple[float, float] | None:
    if rows is None:
        return None
    first, last = _numbers(rows, "rows", 2, "0.25,0.75")
    if not 0 <= first < last <= 1:
        raise RequestError(400, f"rows={shown(rows)}: expected 0 <= first < last <= 1.")
    return first, last


async def _prior(
    near: Annotated[
        str | None,
        Query(
            description="Return only tiles within a circle: LATITUDE,LONGITUDE,RADIUS in degrees and metres.",
            examples=["48.1372,11.5756,2000"],
        ),
    ] = None,
    bbox: Annotated[
        str | None,
        Query(
            description="Return only tiles within a box: WEST,SOUTH,EAST,NORTH in degrees; a west above east spans "
            "the date line. Cannot be combined with `near`.",
            examples=["11.3,48.0,11.8,48.3"],
        ),
    ] = None,
    prior: Annotated[
        str | None,
        Query(
            description="`file`: return only tiles within 2,000 m of the position in the file's metadata; "
            "`file,METRES`: within that many. By default that position is not used, but for `distance_m`. Cannot be "
            "combined with `near` or `bbox`.",
            examples=["file,500"],
        ),
    ] = None,
) -> Prior | FileCircle | None:
    given = [name for name, text in (("near", near), ("bbox", bbox), ("prior", prior)) if text is not None]
    if len(given) > 1:
        raise RequestError(400, f"{' and '.join(given)} exclude each other: give one of them.")
    try:
        if near is not None:
            return Circle(*_numbers(near, "near", 3, "48.1372,11.5756,2000"))
        if bbox is not None:
            return Box(*_numbers(bbox, "bbox", 4, "11.3,48.0,11.8,48.3"))
        return None if prior is None else FileCircle.parse(prior)
    except PriorError as error:
        raise RequestError(error.http_status, f"{given[0]}: {error}.") from None


async def _true_position(
    true: Annotated[
        str | None,
        Query(
            description="The true position, LATITUDE,LONGITUDE in degrees: adds `distance_m` to every match.",
            examples=["48.1372,11.5756"],
        ),
    ] = None,
) -> tuple[float, float] | None:
    if true is None:
        return None
    latitude, longitude = _numbers(true, "true", 2, "48.1372,11.5756")
    try:
        check_position(latitude, longitude)
    except PriorError as error:
        raise RequestError(error.http_status, f"true: {error}.") from None
    return latitude, longitude


async def deadline(
    s2s_timeout: Annotated[
        float | None,
        Header(
            gt=0,
            allow_inf_nan=False,
            description="Time limit of the request in seconds, after which the response is a 504 and work that has "
            "not started is dropped. At most the limit of the service, which also applies without this header.",
        ),
    ] = None,
) -> None:
    """Document and validate the header; `s2s_ray.service.http.middleware` applies it."""


Picture = Annotated[pictures.Query, Depends(_picture)]
Area = Annotated[Prior | FileCircle | None, Depends(_prior)]
TruePosition = Annotated[tuple[float, float] | None, Depends(_true_position)]
K = Annotated[
    int | None,
    Query(ge=1, le=MAX_K, description="Number of tiles to return; by default 10, or all if the index has fewer."),
]
Together = Annotated[
    bool,
    Query(description="All images of the request were taken at one place, and make one fix."),
]
WithSurface = Annotated[
    bool,
    Query(description="Add `surface`, the likelihood over the tiles of the index, for a heat map."),
]
TileLayout = Annotated[
    Layout,
    Query(
        description="north-up: a square tile; polar: already unrolled; auto: by aspect ratio (a square is north-up, "
        "the model's own shape is polar)."
    ),
]
