"""The client: what each request of the service takes, and what it gives."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable, Mapping, Sized
from functools import partial
from types import TracebackType
from typing import Any, Literal, Self, TypeVar
from urllib.parse import quote

import numpy as np

from s2s_ray.client import parameters
from s2s_ray.client.connection import Connection, Response
from s2s_ray.client.location import ServedLocation, ServedMatch, served_match
from s2s_ray.client.parameters import ImageLike
from s2s_ray.errors import ServiceError
from s2s_ray.geo.images import Descriptors, Layout, Pixels, decode
from s2s_ray.geo.prior import FileCircle, Prior
from s2s_ray.geo.query import Projection, Query

T = TypeVar("T")

Heading = float | Literal["auto", "unknown"]
Fov = float | Literal["auto"] | None
_IMAGES_PER_REQUEST = 8
_MAX_RELEASES = 3  # attempts to get all responses from one release


class Client:
    """A connection to one service.

    All methods raise ServiceError, StorageError for an image file that cannot be read, and InputError for an array
    that is not an image or a parameter out of its range; numbers may be Python's or NumPy's.

    Attributes:
        url: of the service.
    """

    def __init__(self, url: str, token: str | None = None, timeout_s: float = 60.0) -> None:
        """Open no connection yet.

        Args:
            url: of the service, http://HOST:PORT or https://HOST.
            token: bearer token, if the service requires one.
            timeout_s: limit for one request including all its retries.

        Raises:
            InputError: `url` is not an HTTP URL, the token cannot be sent in a header, or the limit is not above 0.
        """
        self._connection = Connection(url, token, timeout_s)
        self.url = self._connection.url

    @property
    def release(self) -> str | None:
        """The release that made the last response."""
        return self._connection.release

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: type[BaseException] | None, _error: object, _trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._connection.close()

    def embed_street(
        self,
        images: Iterable[ImageLike],
        heading: Heading = "auto",
        rows: tuple[float, float] | None = None,
        *,
        fov: Fov = None,
        projection: Projection | Literal["auto"] = "auto",
        pitch: float | None = None,
        roll: float | None = None,
    ) -> Descriptors:
        """Return unit descriptors of panoramas and photographs, N x D, all from one release.

        The parameters are those of `s2s_ray.geo.query.Query`, the same for all images. The service refuses a picture
        of unknown heading: one descriptor has one heading.
        """
        query = Query(heading, fov, projection, pitch, roll, rows)
        return self._embed("/v1/embed/street", images, parameters.picture(query))

    def embed_satellite(self, images: Iterable[ImageLike], layout: Layout = "auto") -> Descriptors:
        """Return unit descriptors of satellite images, N x D, all from one release."""
        return self._embed("/v1/embed/satellite", images, parameters.tile(layout))

    def synthesize(self, images: Iterable[ImageLike], layout: Layout = "auto") -> list[Pixels]:
        """Return the street view of each satellite image, H W 3 uint8."""

        def read(response: Response) -> list[Pixels]:
            return [decode(base64.b64decode(image["street"])) for image in response.json()["images"]]

        parts = self._in_parts("/v1/synthesize", images, parameters.tile(layout), "application/json", read)
        return [view for part in parts for view in part]

    def localize(
        self,
        images: Iterable[ImageLike],
        k: int | None = None,
        heading: Heading = "auto",
        rows: tuple[float, float] | None = None,
        prior: Prior | None = None,
        true: tuple[float, float] | None = None,
    ) -> list[list[ServedMatch]]:
        """Return the most likely tiles of each picture, best first; `locate` says more.

        Args:
            images: the pictures.
            k: number of tiles; default: that of the service, or all tiles if there are fewer.
            heading: compass bearing of the pictures' middle column, in degrees; `unknown`, which the service then
                finds; or `auto`: from the file's metadata, else the release's default, else unknown.
            rows: part of the height to keep; default: that of the data set.
            prior: area in which they were taken.
            true: latitude and longitude at which they were taken, for `distance_m`.
        """
        asked = self._asked(Query(heading=heading, rows=rows), k, prior, true)

        def read(response: Response) -> list[list[ServedMatch]]:
            return [list(map(served_match, one["matches"])) for one in _images(response)]

        parts = self._in_parts("/v1/localize", images, asked, "application/json", read)
        return [matches for part in parts for matches in part]

    def locate(
        self,
        images: Iterable[ImageLike],
        query: Query | None = None,
        *,
        k: int | None = None,
        prior: Prior | FileCircle | None = None,
        true: tuple[float, float] | None = None,
        together: bool = False,
    ) -> list[ServedLocation]:
        """Return where each picture was taken, with the picture as it was understood and the most likely tiles.

        Args:
            images: the pictures.
            query: what is known of them; default: only what their files say.
            k: number of tiles; default: that of the service, or all tiles if there are fewer.
            prior: area in which they were taken; `FileCircle`: around the position in the file.
            true: latitude and longitude at which they were taken, for `distance_m`.
            together: all pictures were taken at one place: they are sent in one request and make one location.
        """
        asked = self._asked(query or Query(), k, prior, true)

        def read(response: Response) -> list[ServedLocation]:
            return [ServedLocation.parse(one) for one in _images(response)]

        if together:
            return self._together(images, asked)
        parts = self._in_parts("/v1/localize", images, asked, "application/json", read)
        return [location for part in parts for location in part]

    def model(self) -> dict[str, Any]:
        """Return the description of the served model (`/v1/model`)."""
        return self._read("GET", "/v1/model", dict)

    def releases(self) -> list[dict[str, Any]]:
        """Return the releases of the served name, oldest first."""
        return self._read("GET", "/v1/releases", lambda tree: list(tree["releases"]))

    def promote(self, release: str) -> str:
        """Make a release the current one and return its id; needs an admin token.

        It is sent once: somebody may have promoted another release before a second attempt.
        """
        path = f"/v1/releases/{quote(parameters.release(release), safe='')}/promote"
        return self._read("POST", path, lambda tree: str(tree["current"]), repeatable=False)

    def rollback(self) -> str:
        """Return to the previous release and return its id; needs an admin token.

        It is sent once: a second attempt would go back one release further.
        """
        return self._read("POST", "/v1/releases/rollback", lambda tree: str(tree["current"]), repeatable=False)

    def _asked(
        self, query: Query, k: int | None, prior: Prior | FileCircle | None, true: tuple[float, float] | None
    ) -> Mapping[str, str]:
        return {
            **parameters.picture(query),
            **parameters.area(prior),
            **parameters.count(k),
            **parameters.true_position(true),
        }

    def _together(self, images: Iterable[ImageLike], query: Mapping[str, str]) -> list[ServedLocation]:
        """Send all images in one request."""
        files = [parameters.encoded(image) for image in parameters.listed(images)]
        if not files:
            return []

        def read(response: Response) -> list[ServedLocation]:
            location = ServedLocation.parse(response.json())
            if len(location.queries) != len(files):
                raise ValueError(f"expected {len(files)} queries")
            return [location]

        asked = {**query, "together": "true"}
        response = self._connection.request("POST", "/v1/localize", query=asked, images=files)
        return self._connection.parse(response, read)

    def _embed(self, path: str, images: Iterable[ImageLike], query: Mapping[str, str]) -> Descriptors:
        parts = self._in_parts(path, images, query, "application/x-npy", _descriptors)
        return np.concatenate(parts) if parts else np.empty((0, int(self.model()["descriptor_size"])), np.float32)

    def _in_parts(
        self,
        path: str,
        images: Iterable[ImageLike],
        query: Mapping[str, str],
        accept: str,
        read: Callable[[Response], T],
    ) -> list[T]:
        """Send a few images per request; start again if the release changes in between."""
        every = parameters.listed(images)
        for _ in range(_MAX_RELEASES):
            parsed, releases = [], set()
            for start in range(0, len(every), _IMAGES_PER_REQUEST):
                files = [parameters.encoded(image) for image in every[start : start + _IMAGES_PER_REQUEST]]
                response = self._connection.request("POST", path, accept=accept, query=query, images=files)
                parsed.append(self._connection.parse(response, partial(_read_each, read, len(files))))
                releases.add(response.headers.get("S2S-Release"))
            if len(releases) <= 1:
                return parsed
        raise ServiceError(f"{self.url} keeps changing its release; try again later")

    def _read(self, method: str, path: str, read: Callable[[Any], T], *, repeatable: bool = True) -> T:
        response = self._connection.request(method, path, repeatable=repeatable)
        return self._connection.parse(response, lambda response: read(response.json()))


def _descriptors(response: Response) -> Descriptors:
    descriptors = np.load(io.BytesIO(response.content), allow_pickle=False)
    if not isinstance(descriptors, np.ndarray) or descriptors.ndim != 2 or descriptors.dtype != np.float32:
        raise ValueError("expected descriptors, float32 N x D")
    return descriptors


def _images(response: Response) -> list[Any]:
    """Return the parts of a response, one for each image."""
    tree = response.json()
    return list(tree.get("images", [tree]))


def _read_each(read: Callable[[Response], T], count: int, response: Response) -> T:
    """Return the results of a request. Raises ValueError if there is not one for each image."""
    results = read(response)
    if not isinstance(results, Sized) or len(results) != count:
        raise ValueError(f"expected {count} results")
    return results
