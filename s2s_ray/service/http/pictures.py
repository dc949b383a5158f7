"""The images of a request, decoded and prepared for the model."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import numpy as np
from torch import Tensor

from s2s_ray.errors import RequestError, UnreadableImageError, ViewError
from s2s_ray.geo.images import Pixels, Seen, decode_seen
from s2s_ray.geo.metadata import read_metadata
from s2s_ray.geo.query import Known, Query
from s2s_ray.service.http import responses
from s2s_ray.service.http.exchange import Exchange
from s2s_ray.service.http.holding import Image
from s2s_ray.service.http.parameters import shown
from s2s_ray.service.http.uploads import Uploads

T = TypeVar("T")


class StreetView(NamedTuple):
    """A picture taken on the ground: what is known of it, and the model's view of it.

    Attributes:
        pixels: uint8 3 H W.
        seen: which of its pixels the picture shows, H W; None if it shows all.
    """

    known: Known
    pixels: Pixels
    seen: Seen | None


async def street_views(api: Exchange, body: Uploads, query: Query) -> list[StreetView]:
    """Return the street views of a request, of which `query` and their files say something.

    Raises:
        RequestError: an image that cannot be decoded or cannot become a view.
    """
    geometry = api.release.geometry

    def prepare(pixels: Pixels, shown: Seen | None, content: bytes) -> StreetView:
        known = geometry.settle(query, pixels, read_metadata(content))
        view = geometry.of_query(pixels, known, shown)
        return StreetView(known, np.asarray(view.pixels), None if view.seen is None else np.asarray(view.seen))

    return await _prepared(api, body, prepare)


async def satellite_views(api: Exchange, body: Uploads, prepare: Callable[[Pixels], Tensor]) -> list[Pixels]:
    """Return the model's views of the satellite images of a request, uint8 3 H W each. Raises RequestError."""
    return await _prepared(api, body, lambda pixels, _shown, _content: np.asarray(prepare(pixels)))


async def _prepared(api: Exchange, body: Uploads, prepare: Callable[[Pixels, Seen | None, bytes], T]) -> list[T]:
    """Decode images, and prepare each from its pixels, from which of them are not transparent, and from its file."""
    several = len(body.images) > 1

    def decode_and_prepare(number: int, image: Image) -> T:
        subject = f"Image {number} ({shown(image.name or '')})" if several else "The image"
        try:
            started = time.perf_counter()
            content = image.content
            pixels, opaque = decode_seen(content, api.service.max_pixels)
            decoded = time.perf_counter()
            prepared = prepare(pixels, opaque, content)
        except UnreadableImageError as error:  # its message continues the sentence
            raise RequestError(error.http_status, f"{subject} {error}.") from None
        except ViewError as error:
            sentence = responses.sentence(error)
            raise RequestError(error.http_status, f"{subject}: {sentence}" if several else sentence) from None
        api.spent("decode", decoded - started)
        api.spent("transform", time.perf_counter() - decoded)
        return prepared

    assert api.release is not None, "checked before any work, so that its geometry is that of the response"
    jobs = [
        api.in_thread(lambda number=number, image=image: decode_and_prepare(number, image))  # type: ignore[misc]
        for number, image in enumerate(body.images, start=1)
    ]
    return await asyncio.gather(*jobs)
