"""Query parameters and the `Accept` header: each one is understood or refused."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

from s2s_ray.geo.images import encode
from s2s_ray.service.http import responses
from s2s_ray.service.http.negotiation import negotiate
from tests.support.fake_service import Fakes, flat
from tests.support.http_requests import post, request, requests, sentence


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("heading=400", "heading=400"),
        ("heading=nan", "heading=nan"),
        ("heading=north", "heading='north'"),
        ("heading=", "heading='': expected a number of degrees, unknown or auto"),
        ("heading=Auto", "heading='Auto'"),
        ("fov=unknown", "fov='unknown': expected a number of degrees or auto"),
        ("fov=0", "fov=0: expected above 0"),
        ("fov=361", "fov=361"),
        ("fov=nan", "fov=nan"),
        ("fov=180&projection=rectilinear", "a plane shows less than 180 degrees"),
        ("projection=fisheye", "projection='fisheye'"),
        ("pitch=91", "pitch='91'"),
        ("roll=nan", "roll='nan'"),
        ("together=perhaps", "together='perhaps'"),
        ("surface=2", "surface='2'"),
        ("prior=here", "prior: 'here': expected file or file,METRES"),
        ("prior=file,", "prior: 'file,': expected file or file,METRES"),
        ("prior=file,0", "prior: radius 0 m"),
        ("prior=file&near=1,2,3", "near and prior exclude each other"),
        ("rows=0.5", "rows='0.5'"),
        ("rows=0.8,0.2", "expected 0 <= first < last <= 1"),
        ("rows=nan,1", "expected 2 numbers such as 0.25,0.75"),
        ("k=0", "k='0'"),
        ("k=101", "k='101'"),
        ("k=13", "k=13: the index of this release has 12 tiles"),
        ("near=1,2", "near='1,2': expected 3 numbers"),
        ("near=91,2,5", "near: latitude 91: expected -90 to 90"),
        ("near=1,2,0", "near: radius 0 m"),
        ("near=1,2,nan", "expected 3 numbers"),
        ("bbox=1,5,2,4", "bbox: south=5 is above north=4"),
        ("bbox=1,2,3", "expected 4 numbers"),
        ("bbox=1,2,3,4&near=1,2,3", "exclude each other"),
        ("true=1", "true='1': expected 2 numbers"),
        ("true=1,181", "true: longitude 181"),
    ],
)
def test_bad_parameters(fakes: Fakes, query: str, words: str) -> None:
    response = post(fakes, f"/v1/localize?{query}", flat(40, 100))
    assert response.status_code == 400
    assert words in sentence(response)
    assert not fakes.street.calls


def test_bad_layout_and_accept(fakes: Fakes) -> None:
    response = post(fakes, "/v1/embed/satellite?layout=sideways", flat(50, 50))
    assert (response.status_code, "layout='sideways'" in sentence(response)) == (400, True)
    response = post(fakes, "/v1/synthesize", flat(50, 50), headers={"accept": "text/html"})
    assert (response.status_code, "image/webp" in sentence(response)) == (406, True)
    assert not fakes.synthesis.calls


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("*/*", "image/png"),
        ("image/*", "image/png"),
        ("image/*;q=0.2, image/webp", "image/webp"),
        ("image/png;q=0.5, image/jpeg;q=0.9", "image/jpeg"),
        ("text/html, */*;q=0.1", "image/png"),
        ("image/png;q=0, image/*", "image/jpeg"),
        ("image/png;q=x", None),
        ("image/png;q=nan", None),
        ("text/html", None),
        ("", None),
    ],
)
def test_negotiation(accept: str, kind: str | None) -> None:
    assert negotiate(accept, responses.SYNTHESIS_TYPES) == kind


LOCALIZE = "/v1/localize"
BODIES = ("/v1/embed/street", "/v1/embed/satellite", "/v1/synthesize", LOCALIZE)


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("Heading=90", "Unknown query parameter 'Heading': the nearest known one is 'heading'"),
        ("topk=5", "Unknown query parameter 'topk': the nearest known one is 'k'"),
        ("headin=9&k=2", "'headin': the nearest known one is 'heading'"),
        ("zoom=18", "this path takes bbox, fov, heading, k, near, pitch, prior, projection, roll, rows, "),
        ("row=0.1,0.6", "the nearest known one is 'rows'"),
        ("hfov=180", "Unknown query parameter 'hfov': the nearest known one is 'fov'"),
        ("=5", "Unknown query parameter ''"),
        ("k%00=5", r"Unknown query parameter 'k\x00'"),
        (f"{'x' * 5000}=1", "..."),
        ("k=2&k=3", "Query parameter 'k' is given 2 times: give it once"),
        ("heading=1&heading=1", "'heading' is given 2 times"),
        ("layout=polar", "Unknown query parameter 'layout'"),  # of the satellite routes
    ],
)
def test_unknown_and_repeated_parameters_are_named(fakes: Fakes, query: str, words: str) -> None:
    response = post(fakes, f"{LOCALIZE}?{query}", flat(40, 100))
    assert response.status_code == 400
    assert words in sentence(response)
    assert len(response.content) < 400
    assert not fakes.street.calls


LONG = "x" * 5000
NAMES = (
    "bbox",
    "fov",
    "heading",
    "k",
    "near",
    "pitch",
    "prior",
    "projection",
    "roll",
    "rows",
    "surface",
    "together",
    "true",
)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *(("POST", f"{LOCALIZE}?{name}={LONG}") for name in NAMES),
        ("POST", f"{LOCALIZE}?rows=0.8{'0' * 5000},0.2"),
        ("POST", f"{LOCALIZE}?near=91{'0' * 200},0,1"),
        ("POST", f"{LOCALIZE}?k={'9' * 4000}"),
        ("POST", f"/v1/embed/satellite?layout={LONG}"),
        ("GET", f"/v1/thumbnail?id={LONG}"),
        ("GET", f"/v1/examples/{'9' * 4000}/tile"),
        ("GET", f"/v1/examples/0/{LONG}"),
        ("GET", f"/v1/{LONG}"),
        ("POST", f"/v1/releases/{LONG}/promote"),
    ],
    ids=lambda value: value[:40],
)
def test_long_texts_of_a_caller_are_not_repeated(fakes: Fakes, tmp_path: Path, method: str, path: str) -> None:
    token = {"name": "ops", "sha256": hashlib.sha256(b"t").hexdigest(), "admin": True}
    registry = {"registry": str(tmp_path), "name": "n", "checkpoint": None, "index": None}
    fakes.settings = {"tokens": [token]} | (registry if "releases" in path else {})
    response = request(
        fakes,
        method,
        path,
        content=b"x" * (method == "POST" and "releases" not in path),
        headers={"authorization": "Bearer t"},
    )
    assert response.status_code in (400, 404)
    assert len(sentence(response)) < 400


@pytest.mark.parametrize(
    ("header", "status", "value"),
    [("content-type", 415, LONG), ("s2s-timeout", 400, LONG), ("accept", 406, f"image/{LONG}")],
    ids=["content-type", "s2s-timeout", "accept"],
)
def test_long_headers_are_not_repeated(fakes: Fakes, header: str, status: int, value: str) -> None:
    response = post(fakes, "/v1/synthesize", flat(50, 50), headers={header: value})
    assert (response.status_code, len(sentence(response)) < 400) == (status, True)


def test_the_long_name_of_an_image_is_not_repeated_in_an_error(fakes: Fakes) -> None:
    files = [("image", ("a.png", encode(flat(40, 100), "png"))), ("image", (f"{LONG}.png", b"no image"))]
    response = request(fakes, "POST", LOCALIZE, files=files)
    assert response.status_code == 400
    assert len(sentence(response)) < 400


def test_the_value_of_an_unknown_parameter_is_not_repeated(fakes: Fakes) -> None:
    """It may be a token."""
    assert "hunter2" not in request(fakes, "GET", "/v1/model?token=hunter2").text


def documented(fakes: Fakes) -> list[tuple[str, str]]:
    """Return the method and a path of every operation of the OpenAPI document."""
    paths = request(fakes, "GET", "/openapi.json").json()["paths"]
    values = {"{place}": "0", "{view}": "tile", "{release}": "x"}
    return [
        (method.upper(), re.sub(r"\{\w+\}", lambda found: values[found[0]], path))
        for path, operations in paths.items()
        for method in operations
    ]


def test_every_route_refuses_what_it_does_not_know(fakes: Fakes) -> None:
    hashed = hashlib.sha256(b"secret").hexdigest()
    fakes.settings = {"tokens": [{"name": "ops", "sha256": hashed, "admin": True}]}
    headers = {"authorization": "Bearer secret"}
    operations = documented(fakes)
    assert len(operations) >= 14
    with requests(fakes) as send:
        for method, path in operations:
            response = send(method, f"{path}?unheard=1", headers=headers)
            assert (response.status_code, "'unheard'" in sentence(response)) == (400, True), path
            takes_a_body = path in BODIES
            response = send(method, path, headers=headers, json={"release": "y", "heading": 1})
            if takes_a_body:
                assert (response.status_code, "application/json" in sentence(response)) == (415, True), path
            else:
                assert (response.status_code, "nothing named 'release', 'heading'" in sentence(response)) == (400, True)
                response = send(method, path, headers=headers, content=b"x" * 9000)
                assert (response.status_code, "takes no body: send none" in sentence(response)) == (400, True), path
                for nothing in (b"", b"{}", b" null\n"):
                    status = send(method, path, headers=headers, content=nothing).status_code
                    assert status != 400 or path == "/v1/thumbnail", (path, nothing)
        for method, path in operations:
            response = send(method, path, headers={**headers, "s2s-release": "x"})
            assert (response.status_code, "Unknown header 's2s-release'" in sentence(response)) == (400, True), path
            if path not in ("/v1/thumbnail", *BODIES):
                response = send(method, path, headers={**headers, "s2s-timeout": "soon"})
                assert (response.status_code, "s2s-timeout='soon'" in sentence(response)) == (400, True), path
            if not path.endswith("z"):  # the two probes are open
                assert send(method, f"{path}?unheard=1").status_code == 401, "before anything else"


def test_pages_and_files_ignore_parameters(fakes: Fakes) -> None:
    for path in ("/", "/docs", "/openapi.json", "/static/page.js"):
        assert request(fakes, "GET", f"{path}?version=2").status_code == 200


def test_the_refusal_is_documented(fakes: Fakes) -> None:
    paths = request(fakes, "GET", "/openapi.json").json()["paths"]
    for path, operations in paths.items():
        for operation in operations.values():
            assert "repeated" in operation["responses"]["400"]["description"] or (
                "given twice" in operation["responses"]["400"]["description"]
            ), path
