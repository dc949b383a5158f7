"""The bodies of responses: embeddings, views and matches in the media types that callers accept."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import orjson
from fastapi import Response
from fastapi.responses import JSONResponse

from s2s_ray.errors import S2SError
from s2s_ray.geo.images import Encoding, Pixels, encode
from s2s_ray.geo.prior import distances_m
from s2s_ray.index import Descriptors
from s2s_ray.service.http.uploads import Uploads

JSON, NPY, GEOJSON = "application/json", "application/x-npy", "application/geo+json"
ENCODINGS: dict[str, Encoding] = {"image/png": "png", "image/jpeg": "jpeg", "image/webp": "webp"}
EMBEDDING_TYPES = (JSON, NPY)
LOCALIZATION_TYPES = (JSON, GEOJSON)
SYNTHESIS_TYPES = (*ENCODINGS, JSON)
SEVERAL_SYNTHESIS_TYPES = (JSON,)


def embeddings(release: str, uploads: Uploads, descriptors: Descriptors, kind: str) -> Response:
    """Encode descriptors B x D, one per upload, as JSON or as a `.npy` file of float32.

    In JSON each number is the shortest that float32 reads back as itself. This takes less time than handing the work to
    a thread would.

    Raises:
        FloatingPointError: a number is not finite.
    """
    if not np.isfinite(descriptors).all():
        raise FloatingPointError("the model returned a descriptor that is not finite")
    if kind == NPY:
        buffer = io.BytesIO()
        np.save(buffer, descriptors, allow_pickle=False)
        return Response(buffer.getvalue(), media_type=NPY)
    content = _one_or_many(release, uploads, [{"descriptor": descriptor} for descriptor in descriptors])
    return Response(orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY), media_type=JSON)


def localizations(release: str, uploads: Uploads, found: list[list[dict[str, Any]]], kind: str) -> Response:
    """Encode the matches of each upload as JSON or GeoJSON."""
    if kind == JSON:
        return JSONResponse(_one_or_many(release, uploads, [{"matches": matches} for matches in found]))
    features = [
        _feature(match, image.name) for image, matches in zip(uploads.images, found, strict=True) for match in matches
    ]
    return JSONResponse({"type": "FeatureCollection", "release": release, "features": features}, media_type=GEOJSON)


def matches(found: list[dict[str, Any]], true_position: tuple[float, float] | None) -> list[dict[str, Any]]:
    """Return the public fields of each `Match`, with metres from the true position if it is known."""
    kept = [
        {key: match[key] for key in ("rank", "id", "latitude", "longitude", "descriptor_distance")} for match in found
    ]
    metres: list[float | None] = [None] * len(kept)
    if true_position is not None:
        positions = np.array([[match["latitude"], match["longitude"]] for match in kept], np.float64).reshape(-1, 2)
        metres = [
            None if np.isnan(m) else float(m) for m in distances_m(*true_position, positions[:, 0], positions[:, 1])
        ]
    return [{**match, "distance_m": distance} for match, distance in zip(kept, metres, strict=True)]


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
    """Return a message as a sentence."""
    return f"{message[:1].upper()}{message[1:]}."


def _one_or_many(release: str, uploads: Uploads, results: list[dict[str, Any]]) -> dict[str, Any]:
    if not uploads.form:
        return {"release": release, **results[0]}
    named = [{"name": image.name, **result} for image, result in zip(uploads.images, results, strict=True)]
    return {"release": release, "images": named}


def _feature(match: dict[str, Any], query: str | None) -> dict[str, Any]:
    geometry = None
    if match["latitude"] is not None and match["longitude"] is not None:
        geometry = {"type": "Point", "coordinates": [match["longitude"], match["latitude"]]}
    return {"type": "Feature", "geometry": geometry, "properties": {"query": query, **match}}
