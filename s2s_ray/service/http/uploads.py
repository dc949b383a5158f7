"""The body of a request: one image, or a form of several, each limit checked before anything is decoded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, NamedTuple

from fastapi import Depends, Request
from python_multipart.multipart import parse_options_header
from starlette.requests import ClientDisconnect

from s2s_ray.errors import RequestError
from s2s_ray.service.http.exchange import Exchange
from s2s_ray.service.http.form import FIELD, Form
from s2s_ray.service.http.holding import Buffer, Image
from s2s_ray.service.http.parameters import shown

_IMAGES = ("image/jpeg", "image/png", "image/webp", "image/tiff")
_UNSPECIFIC = (b"application/octet-stream", b"application/x-www-form-urlencoded")  # the latter is curl's default
_BINARY = {"type": "string", "format": "binary"}
IMAGE_BODY = {
    "requestBody": {
        "required": True,
        "description": "One unmodified image file (JPEG, PNG, WebP or TIFF), or a form of several image files.",
        "content": {kind: {"schema": _BINARY} for kind in (*_IMAGES, "application/octet-stream")}
        | {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": [FIELD],
                    "properties": {FIELD: {"type": "array", "items": _BINARY, "minItems": 1}},
                }
            }
        },
    }
}


class Uploads(NamedTuple):
    """The images of a request; `form` is true if they came as a form, which decides the shape of the response."""

    images: list[Image]
    form: bool


async def _uploads(request: Request) -> Uploads:
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    form = kind == b"multipart/form-data"
    if kind and not form and not kind.startswith(b"image/") and kind not in _UNSPECIFIC:
        raise RequestError(
            415,
            f"Unsupported Content-Type {shown(kind.decode('latin-1'))}: send one image as the raw body with "
            "image/jpeg, image/png, image/webp, image/tiff or application/octet-stream, or several as "
            "multipart/form-data.",
        )
    exchange: Exchange = request.state.exchange
    if form:
        boundary = options.get(b"boundary")
        if not boundary:
            raise RequestError(400, "The form has no boundary in its Content-Type.")
        parsed = Form(boundary, exchange.service.args.max_images, exchange.hold)
        await _receive(request, parsed.write)
        images = parsed.images()
    else:
        body = Buffer(exchange.hold)
        await _receive(request, body.write)
        images = [Image(None, body.content())]
    exchange.images = len(images)
    exchange.uploads = images
    return Uploads(images, form)


UploadedImages = Annotated[Uploads, Depends(_uploads)]


async def _receive(request: Request, write: Callable[[bytes], None]) -> None:
    """Pass on the body as it arrives, within the limit of one request; `write` may raise RequestError."""
    limit = request.state.exchange.service.max_bytes
    too_large = RequestError(413, f"The body is larger than {limit:,} bytes; make the image smaller.")
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > limit:
        raise too_large
    count = 0
    try:
        async for chunk in request.stream():
            count += len(chunk)
            if count > limit:
                raise too_large
            write(chunk)
    except ClientDisconnect:
        raise RequestError(400, "The connection closed before the whole image had arrived.") from None
