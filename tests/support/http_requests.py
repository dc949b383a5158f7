"""Requests to the real application in process, over fake deployments."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import numpy as np
from numpy.typing import NDArray

from s2s_ray.geo.images import encode
from s2s_ray.service.http.application import create_api
from tests.support.fake_service import Fakes


def request(fakes: Fakes, method: str, path: str, **options: Any) -> httpx2.Response:
    """Send one request to a new application, whose limits are 10 kB and 0.1 megapixels."""

    async def exchange() -> httpx2.Response:
        with ThreadPoolExecutor(1) as decoders:
            api = create_api(fakes.service(decoders))
            transport = httpx2.ASGITransport(api, raise_app_exceptions=False)
            async with httpx2.AsyncClient(transport=transport, base_url="http://service") as client:
                return await client.request(method, path, **options)

    run: Coroutine[Any, Any, httpx2.Response] = exchange()
    response = asyncio.run(run)
    assert response.headers.get("s2s-release") == (fakes.current and fakes.current.id)
    assert response.headers["x-request-id"]
    return response


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
