"""The parameters of requests, checked before anything is sent: each error names the parameter and its value."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from s2s_ray.errors import InputError
from s2s_ray.geo.images import LAYOUTS, Layout, encode
from s2s_ray.geo.numbers import finite, pair, whole
from s2s_ray.geo.prior import Box, Circle, FileCircle, Prior, check_position
from s2s_ray.geo.query import Query
from s2s_ray.secrets import masked_address

ImageLike = str | os.PathLike[str] | bytes | bytearray | memoryview | NDArray[np.uint8]
"""A path or URI of an image file, its bytes, or pixels h w 3 (uint8 RGB)."""

Parameters = dict[str, str]


def picture(query: Query) -> Parameters:
    """Return the parameters of pictures. What the service decides anyway is left out."""
    names = ("heading", "fov", "projection", "pitch", "roll")
    said = {name: value for name in names if (value := getattr(query, name)) is not None}
    parameters = {name: value if isinstance(value, str) else repr(value) for name, value in said.items()}
    if query.rows is not None:
        first, last = query.rows
        parameters["rows"] = f"{first!r},{last!r}"
    return {name: text for name, text in parameters.items() if text != "auto" or name == "fov"}


def tile(layout: Layout) -> Parameters:
    """Return the parameters of satellite images. Raises InputError."""
    if layout not in LAYOUTS:
        raise InputError(f"layout={layout!r}: expected {', '.join(LAYOUTS[:-1])} or {LAYOUTS[-1]}")
    return {"layout": layout}


def count(k: int | None) -> Parameters:
    """Return the parameter of the number of tiles. Raises InputError."""
    if k is None:
        return {}
    number = whole("k", k)
    if number < 1:
        raise InputError(f"k={number}: expected at least 1")
    return {"k": str(number)}


def area(prior: Prior | FileCircle | None) -> Parameters:
    """Return the parameter of an area. Raises InputError."""
    if prior is None:
        return {}
    if isinstance(prior, Circle):
        return {"near": f"{prior.latitude!r},{prior.longitude!r},{prior.radius_m!r}"}
    if isinstance(prior, Box):
        return {"bbox": f"{prior.west!r},{prior.south!r},{prior.east!r},{prior.north!r}"}
    if isinstance(prior, FileCircle):
        return {"prior": f"file,{prior.radius_m!r}"}
    raise InputError(f"prior={prior!r}: expected a Circle, a Box or a FileCircle")


def true_position(true: tuple[float, float] | None) -> Parameters:
    """Return the parameter of a true position. Raises InputError."""
    if true is None:
        return {}
    latitude, longitude = pair("true", true)
    try:
        check_position(latitude, longitude)
    except InputError as error:
        raise InputError(f"true: {error}") from None
    return {"true": f"{latitude!r},{longitude!r}"}


def listed(images: Iterable[ImageLike]) -> list[ImageLike]:
    """Return images as a list. Raises InputError for a single one."""
    single = isinstance(images, str | bytes | bytearray | memoryview | os.PathLike)
    if single or (isinstance(images, np.ndarray) and images.ndim < 4) or not isinstance(images, Iterable):
        raise InputError(f"images: expected a sequence of images, found one {type(images).__name__}")
    return list(images)


def encoded(image: ImageLike) -> bytes:
    """Return an image as the bytes of a file. Raises StorageError or InputError."""
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    if isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
            raise InputError(f"image has shape {image.shape} and dtype {image.dtype}: expected h w 3, uint8")
        return encode(image, "png")
    if not isinstance(image, str | Path | os.PathLike):
        raise InputError(f"image is {type(image).__name__}: expected a path, the bytes of a file, or pixels h w 3")
    from s2s_ray import storage  # not needed for pixels and bytes

    return storage.read_bytes(str(os.fspath(image)))


def timeout(timeout_s: float) -> float:
    """Return a time limit. Raises InputError."""
    seconds = finite("timeout_s", timeout_s, expected="a finite number of seconds")
    if seconds <= 0:
        raise InputError(f"timeout_s={seconds:g}: expected seconds above 0")
    return seconds


def service_url(url: str) -> str:
    """Return the URL of a service without a slash at its end. Raises InputError."""
    try:
        parts = urlsplit(url)
        (parts.hostname or "").encode("idna")
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and url.split() == [url]
    except (ValueError, AttributeError, TypeError):  # not a port, an IPv6 address or a host name; not a string
        valid = False
    if not valid or parts.query or parts.fragment:
        raise InputError(f"url={masked_address(str(url))!r}: expected http://HOST:PORT or https://HOST")
    return url.rstrip("/")


def headers(token: str | None) -> dict[str, str]:
    """Return the headers that identify the caller. Raises InputError."""
    if token is None or token == "":
        return {}
    if not (isinstance(token, str) and token.isascii() and token.isprintable()):
        raise InputError("token: expected printable ASCII characters")
    return {"Authorization": f"Bearer {token}"}


def release(name: str) -> str:
    """Return the id of a release. Raises InputError."""
    if not isinstance(name, str) or not name.strip(". "):
        raise InputError(f"release={name!r}: expected the id of a release")
    return name


def shown(value: Any, longest: int = 300) -> str:
    """Return text of a server on one line, cut to a length that fits an error."""
    text = " ".join(str(value).split())
    return text if len(text) <= longest else f"{text[:longest]}..."
