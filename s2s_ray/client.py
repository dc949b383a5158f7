"""A client of the HTTP service: images in, arrays and matches out. It needs neither PyTorch, Ray, FAISS nor pyarrow.

    client = Client("http://127.0.0.1:8000")
    [matches] = client.localize(["panorama.jpg"], k=5)

All inference requests are idempotent, so after a lost replica, a restart or an overload they are retried until
`timeout_s` expires.
"""

from __future__ import annotations

import base64
import io
import random
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar
from urllib.parse import quote, urlsplit

import httpx2
import numpy as np
from numpy.typing import NDArray

from s2s_ray.errors import InputError, ServiceError
from s2s_ray.geo.images import Descriptors, Layout, Pixels, decode, encode
from s2s_ray.geo.prior import Box, Circle, Prior

T = TypeVar("T")
ImageLike = str | Path | bytes | NDArray[np.uint8]
"""A path or URI of an image file, its bytes, or pixels h w 3 (uint8 RGB)."""

_RETRIED_STATUSES = (500, 502, 503)  # Serve's proxy turns a lost ingress into a 500
_FIRST_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 5.0
_IMAGES_PER_REQUEST = 8
_MAX_RELEASES = 3  # attempts to get all responses from one release


class ServedMatch(NamedTuple):
    """A reference tile found for a panorama (`s2s_ray.index.Match`); unknown values are None."""

    rank: int
    id: str
    latitude: float | None
    longitude: float | None
    descriptor_distance: float
    distance_m: float | None


class Client:
    """A connection to one service.

    All methods raise ServiceError, StorageError for an image file that cannot be read, and InputError for an array
    that is not an image.

    Attributes:
        release: the release that made the last response.
    """

    def __init__(self, url: str, token: str | None = None, timeout_s: float = 60.0) -> None:
        """Open no connection yet.

        Args:
            url: of the service, http://HOST:PORT or https://HOST.
            token: bearer token, if the service requires one.
            timeout_s: limit for one request including all its retries.

        Raises:
            InputError: `url` is not an HTTP URL, or the token cannot be sent in a header.
        """
        if not _is_http(url):
            raise InputError(f"url={url!r}: expected http://HOST:PORT or https://HOST")
        if token is not None and not (token.isascii() and token.isprintable()):
            raise InputError("token: expected printable ASCII characters")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.url = url.rstrip("/")
        self.release: str | None = None
        self._timeout_s = timeout_s
        self._http = httpx2.Client(base_url=self.url, headers=headers, timeout=timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: type[BaseException] | None, _error: object, _trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def embed_street(
        self, images: Sequence[ImageLike], heading: float = 0.0, rows: tuple[float, float] | None = None
    ) -> Descriptors:
        """Return unit descriptors of panoramas, N x D, all from one release."""
        return self._embed("/v1/embed/street", images, _panorama(heading, rows))

    def embed_satellite(self, images: Sequence[ImageLike], layout: Layout = "auto") -> Descriptors:
        """Return unit descriptors of satellite images, N x D, all from one release."""
        return self._embed("/v1/embed/satellite", images, {"layout": layout})

    def synthesize(self, images: Sequence[ImageLike], layout: Layout = "auto") -> list[Pixels]:
        """Return the street view of each satellite image, H W 3 uint8."""

        def read(response: httpx2.Response) -> list[Pixels]:
            return [decode(base64.b64decode(image["street"])) for image in response.json()["images"]]

        parts = self._in_parts("/v1/synthesize", images, {"layout": layout}, "application/json", read)
        return [view for part in parts for view in part]

    def localize(
        self,
        images: Sequence[ImageLike],
        k: int | None = None,
        heading: float = 0.0,
        rows: tuple[float, float] | None = None,
        prior: Prior | None = None,
        true: tuple[float, float] | None = None,
    ) -> list[list[ServedMatch]]:
        """Return the most likely tiles of each panorama, best first.

        Args:
            k: number of tiles; default: that of the service, or all tiles if there are fewer.
            heading: compass bearing of the panoramas' middle column, in degrees.
            rows: part of the height to keep; default: that of the data set.
            prior: area in which they were taken.
            true: latitude and longitude at which they were taken, for `distance_m`.
        """
        parameters: dict[str, Any] = {**_panorama(heading, rows), **_area(prior)}
        if k is not None:
            parameters["k"] = k
        if true is not None:
            parameters["true"] = f"{true[0]!r},{true[1]!r}"

        def read(response: httpx2.Response) -> list[list[ServedMatch]]:
            tree = response.json()
            return [[ServedMatch(**match) for match in one["matches"]] for one in tree.get("images", [tree])]

        parts = self._in_parts("/v1/localize", images, parameters, "application/json", read)
        return [matches for part in parts for matches in part]

    def model(self) -> dict[str, Any]:
        """Return the description of the served model (`/v1/model`)."""
        return self._request_json("GET", "/v1/model", lambda tree: dict(tree))

    def releases(self) -> list[dict[str, Any]]:
        """Return the releases of the served name, oldest first."""
        return self._request_json("GET", "/v1/releases", lambda tree: list(tree["releases"]))

    def promote(self, release: str) -> str:
        """Make a release the current one and return its id; needs an admin token.

        It is retried, as promoting the current release changes nothing.
        """
        path = f"/v1/releases/{quote(release, safe='')}/promote"
        return self._request_json("POST", path, lambda tree: str(tree["current"]))

    def rollback(self) -> str:
        """Return to the previous release and return its id; needs an admin token.

        It is not retried: a second attempt would go back one release further.
        """
        try:
            response = self._checked(self._http.post("/v1/releases/rollback"))
        except httpx2.TransportError as error:
            raise ServiceError(
                f"{self.url} did not respond ({error or type(error).__name__}): see its releases before you try again"
            ) from None
        return self._parse(response, lambda response: str(response.json()["current"]))

    def _embed(self, path: str, images: Sequence[ImageLike], parameters: Mapping[str, Any]) -> Descriptors:
        def read(response: httpx2.Response) -> Descriptors:
            descriptors: Descriptors = np.load(io.BytesIO(response.content), allow_pickle=False)
            return descriptors

        parts = self._in_parts(path, images, parameters, "application/x-npy", read)
        return np.concatenate(parts) if parts else np.empty((0, int(self.model()["descriptor_size"])), np.float32)

    def _in_parts(
        self,
        path: str,
        images: Sequence[ImageLike],
        parameters: Mapping[str, Any],
        accept: str,
        read: Callable[[httpx2.Response], T],
    ) -> list[T]:
        """Send a few images per request; start again if the release changes in between."""
        for _ in range(_MAX_RELEASES):
            parsed, releases = [], set()
            for start in range(0, len(images), _IMAGES_PER_REQUEST):
                response = self._request("POST", path, images[start : start + _IMAGES_PER_REQUEST], parameters, accept)
                parsed.append(self._parse(response, read))
                releases.add(response.headers.get("S2S-Release"))
            if len(releases) <= 1:
                return parsed
        raise ServiceError(f"{self.url} keeps changing its release; try again later")

    def _request_json(self, method: str, path: str, read: Callable[[Any], T]) -> T:
        response = self._request(method, path, (), {}, "application/json")
        return self._parse(response, lambda response: read(response.json()))

    def _request(
        self, method: str, path: str, images: Sequence[ImageLike], parameters: Mapping[str, Any], accept: str
    ) -> httpx2.Response:
        content: dict[str, Any] = {"params": parameters, "headers": {"Accept": accept}}
        if images:
            content["files"] = [("image", (f"{number}", _encoded(image))) for number, image in enumerate(images)]
        deadline = time.monotonic() + self._timeout_s
        pause = _FIRST_PAUSE_S
        while True:
            left = max(0.001, deadline - time.monotonic())
            content["headers"]["S2S-Timeout"] = f"{left:.3f}"
            try:
                response = self._http.request(method, path, timeout=left, **content)
                if response.status_code not in _RETRIED_STATUSES or time.monotonic() + pause > deadline:
                    return self._checked(response)
                requested = response.headers.get("Retry-After", "0")
                wait = max(pause, float(requested) if requested.isdecimal() else 0.0)
            except httpx2.TransportError as error:
                if time.monotonic() + pause > deadline:
                    raise ServiceError(f"{self.url} does not respond ({error or type(error).__name__})") from None
                wait = pause
            # Spread, so that clients that were turned away together do not return together.
            time.sleep(min(wait * random.uniform(1, 1.5), max(0.0, deadline - time.monotonic())))
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    def _checked(self, response: httpx2.Response) -> httpx2.Response:
        """Return a successful response. Raises ServiceError with the service's own sentence for any other."""
        if response.status_code >= 400:
            try:
                sentence = str(response.json()["error"])
            except (ValueError, KeyError, TypeError):
                sentence = response.text.strip() or response.reason_phrase
            raise ServiceError(f"{self.url} responds {response.status_code}: {sentence}", response.status_code)
        self.release = response.headers.get("S2S-Release")
        return response

    def _parse(self, response: httpx2.Response, read: Callable[[httpx2.Response], T]) -> T:
        try:
            return read(response)
        except (ValueError, KeyError, TypeError, EOFError) as error:
            raise ServiceError(
                f"{self.url} sent a response that is not this service's ({error!r}): check the URL",
                response.status_code,
            ) from None


def _encoded(image: ImageLike) -> bytes:
    """Return an image as the bytes of a file. Raises StorageError or InputError."""
    if isinstance(image, bytes):
        return image
    if isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
            raise InputError(f"image has shape {image.shape} and dtype {image.dtype}: expected h w 3, uint8")
        return encode(image, "png")
    from s2s_ray import storage  # not needed for pixels and bytes

    return storage.read_bytes(str(image))


def _is_http(url: str) -> bool:
    try:
        parts = urlsplit(url)
        (parts.hostname or "").encode("idna")
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # not a port, an IPv6 address or a host name
        return False


def _panorama(heading: float, rows: tuple[float, float] | None) -> dict[str, Any]:
    return {"heading": heading} if rows is None else {"heading": heading, "rows": f"{rows[0]!r},{rows[1]!r}"}


def _area(prior: Prior | None) -> dict[str, str]:
    if isinstance(prior, Circle):
        return {"near": f"{prior.latitude!r},{prior.longitude!r},{prior.radius_m!r}"}
    if isinstance(prior, Box):
        return {"bbox": f"{prior.west!r},{prior.south!r},{prior.east!r},{prior.north!r}"}
    return {}
