"""A client of the service: images in, arrays and matches out, with patience for a service that is busy.

    client = Client("http://127.0.0.1:8000")
    [matches] = client.localize(["panorama.jpg"], k=5)

Every question may be asked twice: none changes anything. So what a lost replica, a restart or an overload costs is
asked again, until `timeout_s` is over.
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

import httpx2
import numpy as np
from numpy.typing import NDArray

from s2s_ray import storage
from s2s_ray.errors import ServiceError
from s2s_ray.geo.images import Layout, Pixels, decode, encode
from s2s_ray.geo.prior import Box, Circle, Prior
from s2s_ray.index import Descriptors

T = TypeVar("T")
ImageLike = str | Path | bytes | NDArray[np.uint8]
"""A path or URI of an image file, its bytes, or pixels h w 3 (uint8 RGB)."""

_AGAIN = (500, 502, 503)  # 500 is what Serve's proxy makes of a lost ingress
_FIRST_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 5.0
_AT_A_TIME = 8  # images in one request


class ServedMatch(NamedTuple):
    """A reference tile found for a panorama; what is not known is None (`s2s_ray.index.Match`)."""

    rank: int
    id: str
    latitude: float | None
    longitude: float | None
    descriptor_distance: float
    distance_m: float | None


class Client:
    """Asks one service. All methods raise ServiceError and, for images that cannot be read here, StorageError.

    Attributes:
        release: the release that the last answer came from.
    """

    def __init__(self, url: str, token: str | None = None, timeout_s: float = 60.0) -> None:
        """`timeout_s`: for one request with all its repetitions."""
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
        """Unit descriptors of panoramas, N x D; all from one release."""
        return self._embed("/v1/embed/street", images, _panorama(heading, rows))

    def embed_satellite(self, images: Sequence[ImageLike], layout: Layout = "auto") -> Descriptors:
        """Unit descriptors of satellite images, N x D; all from one release."""
        return self._embed("/v1/embed/satellite", images, {"layout": layout})

    def synthesize(self, images: Sequence[ImageLike], layout: Layout = "auto") -> list[Pixels]:
        """The street view of each satellite image, H W 3 uint8."""

        def read(answer: httpx2.Response) -> list[Pixels]:
            return [decode(base64.b64decode(image["street"])) for image in answer.json()["images"]]

        parts = self._in_parts("/v1/synthesize", images, {"layout": layout}, "application/json", read)
        return [view for part in parts for view in part]

    def localize(
        self,
        images: Sequence[ImageLike],
        k: int = 10,
        heading: float = 0.0,
        rows: tuple[float, float] | None = None,
        prior: Prior | None = None,
        true: tuple[float, float] | None = None,
    ) -> list[list[ServedMatch]]:
        """The most likely tiles of each panorama, best first.

        Args:
            heading: compass bearing of the panoramas' middle column, in degrees.
            rows: part of the height that is kept; default: the data set's.
            prior: where they may have been taken.
            true: latitude and longitude where they were taken, for `distance_m`.
        """
        parameters: dict[str, Any] = {"k": k, **_panorama(heading, rows), **_area(prior)}
        if true is not None:
            parameters["true"] = f"{true[0]!r},{true[1]!r}"

        def read(answer: httpx2.Response) -> list[list[ServedMatch]]:
            tree = answer.json()
            return [[ServedMatch(**match) for match in one["matches"]] for one in tree.get("images", [tree])]

        parts = self._in_parts("/v1/localize", images, parameters, "application/json", read)
        return [matches for part in parts for matches in part]

    def model(self) -> dict[str, Any]:
        """What is served (`/v1/model`)."""
        return self._tree("GET", "/v1/model")

    def releases(self) -> list[dict[str, Any]]:
        """The releases of the served name, oldest first."""
        listed: list[dict[str, Any]] = self._tree("GET", "/v1/releases")["releases"]
        return listed

    def promote(self, release: str) -> str:
        """Make a release the current one; needs an admin token. Returns its id."""
        return str(self._tree("POST", f"/v1/releases/{release}/promote")["current"])

    def rollback(self) -> str:
        """Go back to the release before; needs an admin token. Not repeated where its answer is lost."""
        return str(self._checked(self._http.post("/v1/releases/rollback")).json()["current"])

    def _embed(self, path: str, images: Sequence[ImageLike], parameters: Mapping[str, Any]) -> Descriptors:
        def read(answer: httpx2.Response) -> Descriptors:
            descriptors: Descriptors = np.load(io.BytesIO(answer.content), allow_pickle=False)
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
        """Answers to a few images at a time, from one release: where it changed in between, all over again."""
        for _ in range(3):
            answers, releases = [], set()
            for start in range(0, len(images), _AT_A_TIME):
                answer = self._ask("POST", path, images[start : start + _AT_A_TIME], parameters, accept)
                answers.append(read(answer))
                releases.add(answer.headers.get("S2S-Release"))
            if len(releases) <= 1:
                return answers
        raise ServiceError(f"{self.url} keeps changing its release; try again later")

    def _tree(self, method: str, path: str) -> dict[str, Any]:
        tree: dict[str, Any] = self._ask(method, path, (), {}, "application/json").json()
        return tree

    def _ask(
        self, method: str, path: str, images: Sequence[ImageLike], parameters: Mapping[str, Any], accept: str
    ) -> httpx2.Response:
        content: dict[str, Any] = {"params": parameters, "headers": {"Accept": accept}}
        if images:
            content["files"] = [("image", (f"{place}", _file(image))) for place, image in enumerate(images)]
        deadline = time.monotonic() + self._timeout_s
        pause = _FIRST_PAUSE_S
        while True:
            left = max(0.001, deadline - time.monotonic())
            content["headers"]["S2S-Timeout"] = f"{left:.3f}"
            try:
                answer = self._http.request(method, path, timeout=left, **content)
                if answer.status_code not in _AGAIN or time.monotonic() + pause > deadline:
                    return self._checked(answer)
                asked = answer.headers.get("Retry-After", "0")
                wait = max(pause, float(asked) if asked.isdecimal() else 0.0)
            except httpx2.TransportError as error:
                if time.monotonic() + pause > deadline:
                    raise ServiceError(f"{self.url} does not respond ({error or type(error).__name__})") from None
                wait = pause
            # Spread, so that all who were turned away do not come back at once.
            time.sleep(min(wait * random.uniform(1, 1.5), max(0.0, deadline - time.monotonic())))
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    def _checked(self, answer: httpx2.Response) -> httpx2.Response:
        if answer.status_code >= 400:
            try:
                sentence = str(answer.json()["error"])
            except (ValueError, KeyError, TypeError):
                sentence = answer.text.strip() or answer.reason_phrase
            raise ServiceError(f"{self.url} responds {answer.status_code}: {sentence}", answer.status_code)
        self.release = answer.headers.get("S2S-Release")
        return answer


def _file(image: ImageLike) -> bytes:
    if isinstance(image, bytes):
        return image
    if isinstance(image, np.ndarray):
        return encode(image, "png")
    return storage.read_bytes(str(image))


def _panorama(heading: float, rows: tuple[float, float] | None) -> dict[str, Any]:
    return {"heading": heading} if rows is None else {"heading": heading, "rows": f"{rows[0]!r},{rows[1]!r}"}


def _area(prior: Prior | None) -> dict[str, str]:
    if isinstance(prior, Circle):
        return {"near": f"{prior.latitude!r},{prior.longitude!r},{prior.radius_m!r}"}
    if isinstance(prior, Box):
        return {"bbox": f"{prior.west!r},{prior.south!r},{prior.east!r},{prior.north!r}"}
    return {}
