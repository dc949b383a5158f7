"""Requests to the real application in process, over fake deployments."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx2
import numpy as np
from numpy.typing import NDArray

from s2s_ray.geo.images import encode
from s2s_ray.service.http.application import create_api
from tests.support.fake_service import Fakes


@contextmanager
def requests(fakes: Fakes) -> Iterator[Callable[..., httpx2.Response]]:
    """Yield a function that sends requests to one new application, whose limits are 10 kB and 0.1 megapixels.

    The application takes half a second to build.
    """
    with ThreadPoolExecutor(1) as decoders, asyncio.Runner() as runner:
        transport = httpx2.ASGITransport(create_api(fakes.service(decoders)), raise_app_exceptions=False)
        client = httpx2.AsyncClient(transport=transport, base_url="http://service")

        def send(method: str, path: str, **options: Any) -> httpx2.Response:
            response = runner.run(client.request(method, path, **options))
            assert response.headers.get("s2s-release") == (fakes.current and fakes.current.id)
            assert response.headers["x-request-id"]
            return response

        yield send
        runner.run(client.aclose())


def request(fakes: Fakes, method: str, path: str, **options: Any) -> httpx2.Response:
    """Send one request to a new application."""
    with requests(fakes) as send:
        return send(method, path, **options)


def post(fakes: Fakes, path: str, pixels: NDArray[np.uint8], **options: Any) -> httpx2.Response:
    headers = {"content-type": "image/png", **options.pop("headers", {})}
    return request(fakes, "POST", path, content=encode(pixels, "png"), headers=headers, **options)


def form(fakes: Fakes, path: str, *images: NDArray[np.uint8], **options: Any) -> httpx2.Response:
    files = [("image", (f"{number}.png", encode(pixels, "png"))) for number, pixels in enumerate(images)]
    return request(fakes, "POST", path, files=files, **options)


def sentence(response: httpx2.Response) -> str:
    assert response.headers["content-type"] == "application/json"
    assert list(response.json()) == ["error"]
    text = response.json()["error"]
    assert text.endswith(".")
    return str(text)
