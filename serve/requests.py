"""What may come in: the body, the query parameters and the headers, each refused with a sentence."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Query, Request
from starlette.requests import ClientDisconnect

from s2s_ray.data.images import Encoding
from s2s_ray.data.views import Layout
from serve.schemas import Limits

ENCODINGS: dict[str, Encoding] = {"image/png": "png", "image/jpeg": "jpeg", "image/webp": "webp"}
IMAGE_BODY = {
    "requestBody": {
        "required": True,
        "description": "One image file: JPEG, PNG, WebP or TIFF.",
        "content": {
            kind: {"schema": {"type": "string", "format": "binary"}}
            for kind in ("image/jpeg", "image/png", "image/webp", "image/tiff", "application/octet-stream")
        },
    }
}


class RequestError(Exception):
    """An answer other than 200, with its sentence."""

    def __init__(self, status: int, sentence: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(sentence)
        self.status, self.sentence, self.headers = status, sentence, headers


def _rows(
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
    try:
        first, last = (float(part) for part in rows.split(","))
    except ValueError:
        raise RequestError(400, f"rows={rows!r}: expected two fractions such as 0.25,0.75.") from None
    if not 0 <= first < last <= 1:
        raise RequestError(400, f"rows={rows!r}: expected 0 <= first < last <= 1.")
    return first, last


async def _body(request: Request) -> bytes:
    """The raw body, within the limit, of a type that can be an image."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind and not kind.startswith("image/") and kind != "application/octet-stream":
        raise RequestError(
            415,
            f"Content-Type {kind!r} is not taken: send one image as the raw body, with image/jpeg, image/png, "
            "image/webp, image/tiff or application/octet-stream.",
        )
    limits: Limits = request.app.state.service.limits
    most = limits.max_bytes
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
    except ClientDisconnect:
        raise RequestError(400, "The connection closed before the whole image had arrived.") from None
    return bytes(body)


Body = Annotated[bytes, Depends(_body)]
Rows = Annotated[tuple[float, float] | None, Depends(_rows)]
Heading = Annotated[
    float,
    Query(ge=-360, le=360, allow_inf_nan=False, description="Compass bearing of the middle column, in degrees."),
]
LayoutOf = Annotated[
    Layout,
    Query(description="north-up: a square tile; polar: unrolled already; auto: by aspect ratio."),
]


def negotiate(accept: str) -> str | None:
    """The image type that an `Accept` header likes best, PNG where it is indifferent; None where it takes none."""
    ranges: dict[str, float] = {}
    for item in accept.split(","):
        kind, *parameters = (part.strip().lower() for part in item.split(";"))
        quality = next((p[2:] for p in parameters if p.startswith("q=")), "1")
        try:
            ranges[kind] = min(max(float(quality), 0.0), 1.0)
        except ValueError:
            ranges[kind] = 0.0
    likes = {kind: ranges.get(kind, ranges.get("image/*", ranges.get("*/*", 0.0))) for kind in ENCODINGS}
    best = max(likes, key=lambda kind: likes[kind])
    return best if likes[best] > 0 else None
