"""The query parameters and headers of requests, each rejected with a sentence."""

from __future__ import annotations

import math
from typing import Annotated

from fastapi import Depends, Header, Query

from s2s_ray.errors import PriorError, RequestError
from s2s_ray.geo.images import Layout
from s2s_ray.geo.prior import Box, Circle, Prior, check_position

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


async def _rows(
    rows: Annotated[
        str | None,
        Query(
            description="Part of the panorama's height to keep, FIRST,LAST as fractions from the top. Default: that "
            "of the model's data set (`panorama_rows` of `/v1/model`); if that is null, the middle half of a 2:1 "
            "panorama is kept, and all of a wider one.",
            examples=["0.25,0.75"],
        ),
    ] = None,
) -> tuple[float, float] | None:
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
) -> Prior | None:
    if near is not None and bbox is not None:
        raise RequestError(400, "near and bbox exclude each other: give one of them.")
    try:
        if near is not None:
            return Circle(*_numbers(near, "near", 3, "48.1372,11.5756,2000"))
        if bbox is not None:
            return Box(*_numbers(bbox, "bbox", 4, "11.3,48.0,11.8,48.3"))
    except PriorError as error:
        raise RequestError(error.http_status, f"{'near' if near is not None else 'bbox'}: {error}.") from None
    return None


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


Rows = Annotated[tuple[float, float] | None, Depends(_rows)]
Area = Annotated[Prior | None, Depends(_prior)]
TruePosition = Annotated[tuple[float, float] | None, Depends(_true_position)]
K = Annotated[
    int | None,
    Query(ge=1, le=MAX_K, description="Number of tiles to return; by default 10, or all if the index has fewer."),
]
Heading = Annotated[
    float,
    Query(ge=-360, le=360, allow_inf_nan=False, description="Compass bearing of the middle column, in degrees."),
]
TileLayout = Annotated[
    Layout,
    Query(
        description="north-up: a square tile; polar: already unrolled; auto: by aspect ratio (a square is north-up, "
        "the model's own shape is polar)."
    ),
]
