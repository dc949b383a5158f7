"""What may come in: bodies, query parameters and headers, each refused with a sentence."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Sequence
from typing import Annotated, NamedTuple

from fastapi import Depends, Header, Query, Request
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from s2s_ray.errors import PriorError, RequestError
from s2s_ray.geo.images import Layout
from s2s_ray.geo.prior import (
    Box,
    Circle,
    Prior,
    check_position,
)

LARGEST_K = 100
DEFAULT_K = 10
_IMAGES = ("image/jpeg", "image/png", "image/webp", "image/tiff")
_UNSPECIFIC = (b"application/octet-stream", b"application/x-www-form-urlencoded")  # the latter: curl's own default
_BINARY = {"type": "string", "format": "binary"}
IMAGE_BODY = {
    "requestBody": {
        "required": True,
        "description": "One image file (JPEG, PNG, WebP or TIFF) as it is, or a form of several image files.",
        "content": {kind: {"schema": _BINARY} for kind in (*_IMAGES, "application/octet-stream")}
        | {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["image"],
                    "properties": {"image": {"type": "array", "items": _BINARY, "minItems": 1}},
                }
            }
        },
    }
}


class Image(NamedTuple):
    """One uploaded file; its name where it came in a form."""

    name: str | None
    content: bytes


class Uploads(NamedTuple):
    """The images of a request, and whether they came as a form (which decides the shape of the answer)."""

    images: list[Image]
    form: bool


async def _uploads(request: Request) -> Uploads:
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    form = kind == b"multipart/form-data"
    if kind and not form and not kind.startswith(b"image/") and kind not in _UNSPECIFIC:
        raise RequestError(
            415,
            f"Content-Type {kind.decode('latin-1')!r} is not taken: send one image as the raw body with image/jpeg, "
            "image/png, image/webp, image/tiff or application/octet-stream, or several as multipart/form-data.",
        )
    body = await _body(request)
    exchange = request.state.exchange
    images = await _files(body, request, options) if form else [Image(None, body)]
    exchange.images = len(images)
    return Uploads(images, form)


async def _body(request: Request) -> bytes:
    """The body, within the limit of one and of all that are under way."""
    service = request.app.state.service
    most = service.max_bytes
    too_large = RequestError(413, f"The body is larger than {most:,} bytes; make the image smaller.")
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > most:
        raise too_large
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > most:
                raise too_large
            request.state.exchange.hold(len(chunk))
    except ClientDisconnect:
        raise RequestError(400, "The connection closed before the whole image had arrived.") from None
    return bytes(body)


async def _files(body: bytes, request: Request, options: dict[bytes, bytes]) -> list[Image]:
    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    boundary = options.get(b"boundary")
    if not boundary:
        raise RequestError(400, "The form has no boundary in its Content-Type.")
    if b"--" + boundary + b"--" not in body:  # the parser takes the end of the body for the end of the form
        raise RequestError(400, "The form is cut short: its closing boundary is missing.")
    most = request.app.state.service.args.max_images
    parser = MultiPartParser(request.headers, stream(), max_files=most, max_fields=0)
    try:
        fields = await parser.parse()
    except MultiPartException as error:
        if "Too many files" in error.message:
            raise RequestError(413, f"The form has more than {most} images; send fewer at a time.") from None
        if "Too many fields" in error.message:
            raise RequestError(
                400, "The form has a field that is no file: files need a filename, parameters go into the URL."
            ) from None
        raise RequestError(400, f"The form cannot be read: {error.message.rstrip('.')}.") from None
    except (ValueError, KeyError, LookupError) as error:
        raise RequestError(400, f"The form cannot be read: {error}.") from None
    finally:
        files = parser._files_to_close_on_error  # every file it has opened, also those whose part never ended
    try:
        parts = [part for _, part in fields.multi_items() if isinstance(part, UploadFile)]
        images = [Image(part.filename or "", await part.read()) for part in parts]
    finally:
        for file in files:
            file.close()
    if not images:
        raise RequestError(400, "The form has no image; send each as a part with a filename.")
    return images


def _numbers(text: str, name: str, count: int, example: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != count or not all(math.isfinite(number) for number in numbers):
        raise RequestError(400, f"{name}={text!r}: expected {count} numbers such as {example}.")
    return numbers


async def _rows(
    rows: Annotated[
        str | None,
        Query(
            description="Part of the panorama's height that is kept, FIRST,LAST as fractions from the top. Default: "
            "that of the model's data set (`panorama_rows` of `/v1/model`); where it is null, a 2:1 panorama keeps "
            "its middle half and a wider one is whole.",
            examples=["0.25,0.75"],
        ),
    ] = None,
) -> tuple[float, float] | None:
    if rows is None:
        return None
    first, last = _numbers(rows, "rows", 2, "0.25,0.75")
    if not 0 <= first < last <= 1:
        raise RequestError(400, f"rows={rows!r}: expected 0 <= first < last <= 1.")
    return first, last


async def _prior(
    near: Annotated[
        str | None,
        Query(
            description="Only tiles within a circle: LATITUDE,LONGITUDE,RADIUS in degrees and metres.",
            examples=["48.1372,11.5756,2000"],
        ),
    ] = None,
    bbox: Annotated[
        str | None,
        Query(
            description="Only tiles within a box: WEST,SOUTH,EAST,NORTH in degrees; west above east spans the date "
            "line. Not together with `near`.",
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
        raise RequestError(400, f"{'near' if near is not None else 'bbox'}: {error}.") from None
    return None


async def _truth(
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
        raise RequestError(400, f"true: {error}.") from None
    return latitude, longitude


async def deadline(
    s2s_timeout: Annotated[
        float | None,
        Header(
            gt=0,
            allow_inf_nan=False,
            description="Seconds after which nobody waits any more (504); work that has not begun by then is "
            "dropped. At most the service's own limit, which also holds without this header.",
        ),
    ] = None,
) -> None:
    """Documents the header; the frame around the routes obeys it (`s2s_ray.service.http.exchange.Frame`)."""


Images = Annotated[Uploads, Depends(_uploads)]
Rows = Annotated[tuple[float, float] | None, Depends(_rows)]
Area = Annotated[Prior | None, Depends(_prior)]
Truth = Annotated[tuple[float, float] | None, Depends(_truth)]
K = Annotated[int | None, Query(ge=1, le=LARGEST_K, description="Tiles to return; default 10, or all of fewer.")]
Heading = Annotated[
    float,
    Query(ge=-360, le=360, allow_inf_nan=False, description="Compass bearing of the middle column, in degrees."),
]
LayoutOf = Annotated[
    Layout,
    Query(
        description="north-up: a square tile; polar: unrolled already; auto: by aspect ratio (square is north-up, "
        "the model's own shape is polar)."
    ),
]


def negotiate(accept: str, offered: Sequence[str]) -> str | None:
    """The media type that an `Accept` header likes best, the first of equals; None where it takes none."""
    ranges: dict[str, float] = {}
    for item in accept.split(","):
        kind, *parameters = (part.strip().lower() for part in item.split(";"))
        quality = next((p[2:] for p in parameters if p.startswith("q=")), "1")
        try:
            ranges[kind] = min(max(float(quality), 0.0), 1.0)
        except ValueError:
            ranges[kind] = 0.0

    def likes(kind: str) -> float:
        family = f"{kind.partition('/')[0]}/*"
        return ranges.get(kind, ranges.get(family, ranges.get("*/*", 0.0)))

    best = max(offered, key=likes)
    return best if likes(best) > 0 else None


def accepted(request: Request, offered: Sequence[str]) -> str:
    """The media type to answer with. Raises RequestError (406)."""
    kind = negotiate(request.headers.get("accept", "*/*"), offered)
    if kind is None:
        raise RequestError(406, f"Accept names none of {', '.join(offered)}.")
    return kind
