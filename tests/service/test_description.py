"""The routes that describe the service, its page and its documentation."""

from __future__ import annotations

import re
from urllib.parse import urljoin

from tests.support.fake_service import COUNT, HEIGHT, RELEASE, Fakes
from tests.support.http_requests import request


def test_model_health_and_documentation(fakes: Fakes) -> None:
    model = request(fakes, "GET", "/v1/model").json()
    assert (model["release"], model["height"], model["index"]["count"]) == (RELEASE.id, HEIGHT, COUNT)
    assert request(fakes, "GET", "/healthz").json() == {"status": "ok", "release": RELEASE.id}
    ready = request(fakes, "GET", "/readyz")
    assert (ready.status_code, ready.json()["status"], ready.json()["fault"]) == (200, "ready", None)
    assert set(ready.json()["deployments"].values()) == {1}
    paths = request(fakes, "GET", "/openapi.json").json()["paths"]
    assert {"/v1/embed/street", "/v1/embed/satellite", "/v1/synthesize", "/v1/localize"} <= set(paths)
    assert "image/jpeg" in paths["/v1/localize"]["post"]["requestBody"]["content"]


def test_images_of_the_index(fakes: Fakes) -> None:
    assert request(fakes, "GET", "/v1/thumbnail", params={"id": "tile-1"}).content == b"jpeg"
    assert request(fakes, "GET", "/v1/thumbnail", params={"id": "tile-9"}).status_code == 404
    [place] = request(fakes, "GET", "/v1/examples").json()["examples"]
    for page in ("http://service/v1/examples", "https://host/a/proxy/prefix/v1/examples"):
        assert urljoin(page, place["street"]) == f"{page}/0/street"
    listed = "http://service/v1/examples"
    assert request(fakes, "GET", urljoin(listed, place["street"])).content == b"street"
    assert request(fakes, "GET", urljoin(listed, place["tile"])).headers["content-type"] == "image/jpeg"
    assert request(fakes, "GET", "/v1/examples/1/tile").status_code == 404


def test_the_page_sends_only_parameters_that_exist(fakes: Fakes) -> None:
    script = request(fakes, "GET", "/static/page.js").text
    paths = request(fakes, "GET", "/openapi.json").json()["paths"]
    sent = re.findall(r"`(v1/\w+)\?([^`#]*)", script)
    assert sent
    for path, query in sent:
        operation = next(iter(paths[f"/{path}"].values()))
        known = {parameter["name"] for parameter in operation["parameters"]}
        assert set(re.findall(r"(?:^|&)(\w+)=", query)) <= known, path


def test_the_page_and_the_documentation_use_no_other_host(fakes: Fakes) -> None:
    for path in ("/", "/docs", "/static/page.js", "/static/page.css"):
        text = request(fakes, "GET", path).text
        assert not re.findall(r"https?://(?!www\.w3\.org)[a-z]", text), path
    assert request(fakes, "GET", "/").headers["content-security-policy"].startswith("default-src 'self'")
    fakes.settings = {
        "base_map_url": "https://tiles.example/{z}/{x}/{y}.png",
        "base_map_attribution": 'a "map" <of> us',
    }
    page = request(fakes, "GET", "/")
    assert "https://tiles.example;" in page.headers["content-security-policy"]
    assert "&lt;of&gt;" in page.text
