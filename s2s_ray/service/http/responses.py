"""The bodies of responses: embeddings, views and locations in the media types that callers accept."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson
from fastapi import Response
from fastapi.responses import JSONResponse

from s2s_ray.errors import S2SError
from s2s_ray.geo.images import Encoding, Pixels, encode
from s2s_ray.index import Descriptors
from s2s_ray.service import geojson
from s2s_ray.service.http.uploads import Uploads

Tree = dict[str, Any]
JSON, NPY, GEOJSON = "application/json", "application/x-npy", "application/geo+json"
ENCODINGS: dict[str, Encoding] = {"image/png": "png", "image/jpeg": "jpeg", "image/webp": "webp"}
_PARAMETERS = ("heading", "fov", "projection", "pitch", "roll", "rows")
EMBEDDING_TYPES = (JSON, NPY)
LOCALIZATION_TYPES = (JSON, GEOJSON)
SYNTHESIS_TYPES = (*ENCODINGS, JSON)
SEVERAL_SYNTHESIS_TYPES = (JSON,)


def embeddings(
    release: str, uploads: Uploads, descriptors: Descriptors, kind: str, queries: Sequence[Tree] | None = None
) -> Response:
    """Encode descriptors B x D, one per upload, as JSON or as a `.npy` file of float32.

    In JSON each number is the shortest that float32 reads back as itself. This takes less time than handing the work to
    a thread would.

    Args:
        queries: street views as they were understood, for JSON.

    Raises:
        FloatingPointError: a number is not finite.
    """
    if not np.isfinite(descriptors).all():
        raise FloatingPointError("the model returned a descriptor that is not finite")
    if kind == NPY:
        buffer = io.BytesIO()
        np.save(buffer, descriptors, allow_pickle=False)
        return Response(buffer.getvalue(), media_type=NPY)
    understood = [{} for _ in descriptors] if queries is None else [{"query": query} for query in queries]
    results = [{**known, "descriptor": descriptor} for known, descriptor in zip(understood, descriptors, strict=True)]
    content = _one_or_many(release, uploads, results)
    return Response(orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY), media_type=JSON)


def localizations(release: str, uploads: Uploads, queries: Sequence[Tree], found: Sequence[Tree]) -> Response:
    """Encode what was found for each upload as JSON."""
    results = [{"query": query, **tree} for query, tree in zip(queries, found, strict=True)]
    return JSONResponse(_one_or_many(release, uploads, results))


def place(release: str, uploads: Uploads, queries: Sequence[Tree], found: Tree) -> Response:
    """Encode what was found for all uploads together as JSON."""
    return JSONResponse({"release": release, "images": _named(uploads, queries), **found})


def features(
    release: str, uploads: Uploads, queries: Sequence[Tree], found: Sequence[Tree], together: bool
) -> Response:
    """Encode what was found for each upload, or for all of them together, as GeoJSON."""
    names = [None] if together else [image.name for image in uploads.images]
    tree = geojson.collection(release, _named(uploads, queries), list(zip(names, found, strict=True)))
    return JSONResponse(tree, media_type=GEOJSON)


def view(pixels: Pixels, kind: str) -> Response:
    """Encode one street view as an image file."""
    return Response(encode(pixels, ENCODINGS[kind]), media_type=kind)


def views(release: str, uploads: Uploads, streets: list[Pixels], polars: list[Pixels]) -> Response:
    """Encode street views and the polar images they were synthesised from, as base64 of PNG files in JSON."""
    images = [
        {
            "name": image.name,
            "content_type": "image/png",
            "street": base64.b64encode(encode(street, "png")).decode("ascii"),
            "polar": base64.b64encode(encode(polar, "png")).decode("ascii"),
        }
        for image, street, polar in zip(uploads.images, streets, polars, strict=True)
    ]
    return JSONResponse({"release": release, "images": images})


def sentence(error: S2SError) -> str:
    """Return the message of an error as a sentence."""
    return as_sentence(str(error))


def as_sentence(message: str) -> str:
    """Return a message as a sentence; the name of a parameter at its beginning stays as it is."""
    first = message.partition(" ")[0]
    if "=" in first or first in _PARAMETERS:
        return f"{message}."
    return f"{message[:1].upper()}{message[1:]}."


def _one_or_many(release: str, uploads: Uploads, results: list[dict[str, Any]]) -> dict[str, Any]:
    if not uploads.form:
        return {"release": release, **results[0]}
    named = [{"name": image.name, **result} for image, result in zip(uploads.images, results, strict=True)]
    return {"release": release, "images": named}


def _named(uploads: Uploads, queries: Sequence[Tree]) -> list[Tree]:
    return [{"name": image.name, "query": query} for image, query in zip(uploads.images, queries, strict=True)]
