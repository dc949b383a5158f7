"""The body of a request: one image, or a form of several, each limit checked before anything is decoded."""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple

from fastapi import Depends, Request
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from s2s_ray.errors import RequestError

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
                    "required": ["image"],
                    "properties": {"image": {"type": "array", "items": _BINARY, "minItems": 1}},
                }
            }
        },
    }
}


class Image(NamedTuple):
    """One uploaded file; it has a name if it came in a form."""

    name: str | None
    content: bytes


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
            f"Unsupported Content-Type {kind.decode('latin-1')!r}: send one image as the raw body with image/jpeg, "
            "image/png, image/webp, image/tiff or application/octet-stream, or several as multipart/form-data.",
        )
    body = await _body(request)
    exchange = request.state.exchange
    images = await _files(body, request, options) if form else [Image(None, body)]
    exchange.images = len(images)
    return Uploads(images, form)


UploadedImages = Annotated[Uploads, Depends(_uploads)]


async def _body(request: Request) -> bytes:
    """Read the body, within the limit of one request and of all that are in progress."""
    service = request.app.state.service
    limit = service.max_bytes
    too_large = RequestError(413, f"The body is larger than {limit:,} bytes; make the image smaller.")
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > limit:
        raise too_large
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit:
                raise too_large
            request.state.exchange.hold(len(chunk))
    except ClientDisconnect:
        raise RequestError(400, "The connection closed before the whole image had arrived.") from None
    return bytes(body)


async def _files(body: bytes, request: Request, options: dict[bytes, bytes]) -> list[Image]:
    """Return the files of a form in its order."""
    boundary = options.get(b"boundary")
    if not boundary:
        raise RequestError(400, "The form has no boundary in its Content-Type.")
    # The parser accepts the end of the body as the end of the form, and would leave the file of that part open.
    if b"\r\n--" + boundary + b"--" not in b"\r\n" + body:
        raise RequestError(400, "The form is cut short: its closing boundary is missing.")
    limit = request.app.state.service.args.max_images
    try:
        async with _replayed(request, body).form(max_files=limit, max_fields=0) as fields:
            parts = [part for _, part in fields.multi_items() if isinstance(part, UploadFile)]
            images = [Image(part.filename or "", await part.read()) for part in parts]
    except HTTPException as error:
        raise _malformed(error.detail, limit) from None
    except (ValueError, LookupError) as error:
        raise RequestError(400, f"The form cannot be parsed: {error}.") from None
    if not images:
        raise RequestError(400, "The form has no image; send each as a part with a filename.")
    return images


def _replayed(request: Request, body: bytes) -> Request:
    """Return the request with a body that was read before, for Starlette to parse as a form."""

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    return Request(request.scope, receive)


def _malformed(reason: str, max_images: int) -> RequestError:
    """Return the error for a form that Starlette rejects."""
    if "Too many files" in reason:
        return RequestError(413, f"The form has more than {max_images} images; send fewer at a time.")
    if "Too many fields" in reason:
        return RequestError(
            400, "The form has a field that is not a file: files need a filename, parameters go into the URL."
        )
    return RequestError(400, f"The form cannot be parsed: {reason.rstrip('.')}.")
