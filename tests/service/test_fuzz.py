"""Damaged uploads and query strings against the application in process: none fails the service.

Each gets a documented response. `make fuzz` sends 20,000 of them, `make test` the first 500.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import parse_qsl, quote, urlencode

import httpx2
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from s2s_ray.geo.images import encode
from s2s_ray.service.http.application import create_api
from tests.support.fake_service import Fakes, flat
from tests.support.uploads import uploads

COUNT = int(os.environ.get("S2S_FUZZ", "500"))
DOCUMENTED = {200, 400, 406, 413, 415, 422}


@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow warns about damaged TIFF and EXIF
def test_no_upload_fails_the_service() -> None:
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it logs a line for each damaged form
    statuses: Counter[int] = Counter()

    async def send() -> None:
        with ThreadPoolExecutor(2) as decoders:
            transport = httpx2.ASGITransport(create_api(Fakes().service(decoders)))
            async with httpx2.AsyncClient(transport=transport, base_url="http://service") as client:
                for number, (path, params, headers, content) in enumerate(uploads(0, COUNT)):
                    response = await client.post(path, params=params, headers=headers, content=content)
                    statuses[response.status_code] += 1
                    assert response.status_code in DOCUMENTED, (number, response.status_code, response.text)
                    if response.status_code != 200:
                        assert response.json()["error"].endswith("."), (number, response.text)

    asyncio.run(send())
    print(f"\n{COUNT} uploads: {dict(sorted(statuses.items()))}")
    assert set(statuses) >= {200, 400, 415, 422}, "all kinds of damage occur"
    assert statuses[200] > COUNT // 20


PATHS = (
    ("POST", "/v1/embed/street"), ("POST", "/v1/embed/satellite"), ("POST", "/v1/synthesize"), ("POST", "/v1/localize"),
    ("GET", "/v1/model"), ("GET", "/v1/examples"), ("GET", "/v1/examples/0/tile"), ("GET", "/v1/thumbnail"),
    ("GET", "/v1/releases"), ("POST", "/v1/releases/rollback"), ("GET", "/healthz"), ("GET", "/readyz"),
)  # fmt: skip
PANORAMA = encode(flat(40, 100), "png")
KNOWN = {
    "heading", "fov", "projection", "pitch", "roll", "rows", "k", "near", "bbox", "prior", "true", "together",
    "surface", "layout",
}  # fmt: skip
names = st.sampled_from(sorted(KNOWN | {"id", "Heading", "top_k", "hfov", ""}))
numbers = st.one_of(st.integers().map(str), st.floats().map(repr), st.sampled_from(["", " 1", "1_0", "0x1", "\u0661"]))
values = st.one_of(numbers, st.lists(numbers, max_size=5).map(",".join), st.text(max_size=20))
pairs = st.lists(st.tuples(names, values), max_size=3).map(urlencode).map(str.encode)
queries = st.one_of(pairs, st.binary(max_size=30).map(lambda raw: quote(raw, safe="=&+%,").encode()))


@pytest.fixture(scope="module")
def send() -> Iterator[Callable[[str, str, bytes], httpx2.Response]]:
    """Return a function that sends a request with a query string, as it is, to one application."""
    with ThreadPoolExecutor(2) as decoders, asyncio.Runner() as runner:
        transport = httpx2.ASGITransport(create_api(Fakes().service(decoders)), raise_app_exceptions=False)
        client = httpx2.AsyncClient(transport=transport, base_url="http://service")

        def function(method: str, path: str, query: bytes) -> httpx2.Response:
            url = httpx2.URL(f"http://service{path}").copy_with(query=query)
            content = PANORAMA if path.startswith(("/v1/e", "/v1/s", "/v1/l")) and method == "POST" else b""
            return runner.run(client.request(method, url, content=content))

        yield function
        runner.run(client.aclose())


@settings(max_examples=200, deadline=None)
@given(route=st.sampled_from(PATHS), query=queries)
@example(route=("POST", "/v1/localize"), query=b"near=1,2,3&near=1,2,3")
@example(route=("POST", "/v1/localize"), query=b"%ff=%fe&k=%00")
@example(route=("POST", "/v1/localize"), query=b"k=" + b"9" * 5000)
@example(route=("POST", "/v1/localize"), query=b"true=1e308,1e-320")
@example(route=("POST", "/v1/localize"), query=b"prior=file,1e-320&fov=1e-320&heading=unknown")
@example(route=("POST", "/v1/localize"), query=b"fov=5e-324&projection=cylindrical&pitch=90&roll=-180")
@example(route=("POST", "/v1/embed/street"), query=b"fov=179.99999999999997&projection=rectilinear&rows=0,1e-320")
@example(route=("GET", "/v1/thumbnail"), query=b"id=%ed%a0%80")
def test_no_query_fails_the_service(
    send: Callable[[str, str, bytes], httpx2.Response], route: tuple[str, str], query: bytes
) -> None:
    response = send(*route, query)
    assert response.status_code in {200, 400, 403, 404, 409, 413, 415, 422}, response.text
    if response.status_code != 200:
        assert response.json()["error"].endswith(".")
    elif route[1] != "/v1/thumbnail":
        given = [name for name, _ in parse_qsl(query.decode("latin-1"), keep_blank_values=True)]
        assert len(set(given)) == len(given), "a repeated parameter would be ignored"
        assert set(given) <= KNOWN, "so would an unknown one"
